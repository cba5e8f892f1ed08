"""One policy, one file, one function `score(entries, config) -> (B, G, S)`."""

from llamahome.attention.policies import h2o, random, window

SCORERS = {"h2o": h2o, "random": random, "window": window}

__all__ = ["SCORERS"]
