"""One policy, one file: `mass(config)`, and `score(entries, config) -> (B, G, S)`."""

from llamahome.attention.policies import h2o, keydiff, random, snapkv, tova, value_norm, window

SCORERS = {
    "h2o": h2o,
    "value_norm": value_norm,
    "snapkv": snapkv,
    "tova": tova,
    "window": window,
    "keydiff": keydiff,
    "random": random,
}

__all__ = ["SCORERS"]
