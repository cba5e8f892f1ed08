"""Ranges of a search, and values drawn from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ray import tune
from ray.tune.search.sample import Domain
from yaml import YAMLError

from llamahome.config import ConfigError

RANGES: dict[str, Callable[..., Domain]] = {
    "choice": lambda *options: tune.choice(list(options)),
    "uniform": tune.uniform,
    "quniform": tune.quniform,
    "loguniform": tune.loguniform,
    "qloguniform": tune.qloguniform,
    "randint": tune.randint,
    "qrandint": tune.qrandint,
    "lograndint": tune.lograndint,
}
DIGITS = 4  # significant ones of a drawn number
_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
_PLAIN = re.compile(r"[\w./-]+")


def parse_space(space: Mapping[str, Any]) -> dict[str, Domain]:
    """Return a range of Ray Tune for each key of `search.space`.

    Raises:
        ConfigError: for a value that is no range, or a range that Ray Tune refuses.
    """
    return {key: _parse(key, text) for key, text in _leaves(space, "")}


def draw(space: Mapping[str, Domain], samples: int, seed: int) -> list[list[str]]:
    """Draw the overrides of each run; more samples begin with those of fewer."""
    random = np.random.default_rng(seed)
    return [
        [f"{key}={_spelled(domain.sample(random_state=random))}" for key, domain in space.items()]
        for _ in range(samples)
    ]


def _leaves(space: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in space.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(key: str, text: Any) -> Domain:
    call = _CALL.fullmatch(str(text).strip())
    if call is None or call[1] not in RANGES:
        raise ConfigError(
            f"search.space.{key}={text!r} is not allowed: give a range such as "
            f"loguniform(1e-5,1e-3); there are {', '.join(RANGES)}"
        )
    try:
        arguments = OmegaConf.to_container(OmegaConf.create(f"[{call[2]}]"))
        range_of = RANGES[call[1]](*cast(list[Any], arguments))
        range_of.sample(random_state=np.random.default_rng(0))  # NumPy refuses ends in wrong order
    except (OmegaConfBaseException, YAMLError, ArithmeticError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"search.space.{key}={text!r} is not allowed: {reason}") from error
    return range_of


def _spelled(value: Any) -> str:
    """Spell a drawn value as an override takes it."""
    if isinstance(value, float):
        return repr(float(f"{value:.{DIGITS}g}"))
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value)
