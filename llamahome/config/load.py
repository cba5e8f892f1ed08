"""Plain, checked dataclasses from a config that Hydra composed."""

from __future__ import annotations

import difflib
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from llamahome.config.checks import ConfigError, require
from llamahome.config.other_names import OTHER_NAMES
from llamahome.config.policy import entries

Root = TypeVar("Root")

# Tokens that a policy.budget of up to 1 is a share of, in the roots that have them.
CONTEXTS = ("data.context_length", "engine.max_length")


def load_config(composed: DictConfig, root: type[Root]) -> Root:
    """Check `composed` against the dataclass `root` and return it as an instance.

    A `policy.budget` of up to 1 becomes entries: so much of the context that is trained or served.

    Raises:
        ConfigError: for a key that no dataclass has, a value of the wrong type or out of range,
            or a value that is missing; the message names the key, the value and what is allowed.
    """
    try:
        _check_keys(composed, root, "", root)
        structured = OmegaConf.structured(root)
        merged = OmegaConf.merge(structured, _share_in_entries(composed, structured))
        return cast(Root, OmegaConf.to_object(merged))
    except ValidationError as error:  # its text may hold a secret value
        raise ConfigError(_wrong_type(str(error.full_key), composed, root)) from None
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}") from error


def _share_in_entries(composed: DictConfig, structured: DictConfig) -> DictConfig:
    """Return `composed` with a budget in entries where it gives a share of the context."""
    budget = OmegaConf.select(composed, "policy.budget")
    key = next((key for key in CONTEXTS if OmegaConf.select(structured, key) is not None), None)
    if key is None or not isinstance(budget, float) or not 0 < budget <= 1:
        return composed
    sections = [str(name) for name in composed if name != "policy"]
    context = OmegaConf.select(
        OmegaConf.merge(structured, OmegaConf.masked_copy(composed, sections)), key
    )
    counted = OmegaConf.create({"policy": {"budget": entries(budget, context)}})
    return cast(DictConfig, OmegaConf.merge(composed, counted))


def explain_override(error: Exception, root: type[Any]) -> str:
    """Say in one line why Hydra could not compose a config; its own message does not.

    Args:
        error: Hydra's, whose cause is OmegaConf's, or YAML's.
        root: the dataclass that was overridden.
    """
    cause = error.__cause__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        try:
            load_config(OmegaConf.from_dotlist([f"{cause.full_key}="]), root)
        except ConfigError as unknown_key:
            return str(unknown_key)
    override: str | None = getattr(error, "override", None)  # Hydra's parser has it
    key, _, value = (override or "").partition("=")
    if "=" in value and value[0] not in "'\"[{":
        return (
            f"{key}={value} cannot be read: a value with = in it needs quotes of its own, "
            f"'{key}=\"{value}\"'"
        )
    said = " ".join(str(error).partition("Config search path")[0].split())
    return f"{said}: {str(cause).splitlines()[0]}" if cause else said


def _check_keys(section: DictConfig, schema: type[Any], prefix: str, root: type[Any]) -> None:
    types = get_type_hints(schema)
    for key in map(str, section):
        path = prefix + key
        if key not in types:
            raise ConfigError(_unknown_key(path, key, prefix, list(types), root))
        if OmegaConf.is_missing(section, key):
            raise ConfigError(f"{path} has no value: set {path}=...")
        if is_dataclass(types[key]):
            below = section[key]
            own = OmegaConf.is_dict(below) and not OmegaConf.is_interpolation(section, key)
            require(own, path, below, f"it is a section; set {path}.<key>")
            _check_keys(below, cast(type[Any], types[key]), f"{path}.", root)


def _unknown_key(path: str, key: str, prefix: str, known: list[str], root: type[Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        cure = f"did you mean {prefix}{close[0]}?"
    elif elsewhere := _elsewhere(key, root):
        cure = f"did you mean {elsewhere}?"
    else:
        cure = f"choose one of {', '.join(known)}"
    return f"{path} is not a config key: {cure}"


def _elsewhere(key: str, root: type[Any]) -> str | None:
    """Return the key that has this name in another section, or in another program."""
    sections = get_type_hints(root)
    for section, schema in sections.items():
        if is_dataclass(schema) and key in get_type_hints(schema):
            return f"{section}.{key}"
    other = OTHER_NAMES.get(key, "")
    return other if other.partition(".")[0] in sections else None


def _wrong_type(path: str, composed: DictConfig, root: type[Any]) -> str:
    path = path.partition("[")[0]  # an entry of a list is reported as its list
    *parents, name = path.split(".")
    schema = root
    for depth, parent in enumerate(parents):
        below = get_type_hints(schema)[parent]
        if not is_dataclass(below):  # an entry of a dict is reported as its dict
            path, name = ".".join(parents[: depth + 1]), parent
            break
        schema = cast(type[Any], below)
    secret = any(field.name == name and not field.repr for field in fields(schema))
    value = "<hidden>" if secret else repr(OmegaConf.select(composed, path))
    return f"{path}={value} is not allowed: it must be {_spell(get_type_hints(schema)[name])}"


def _spell(hint: Any) -> str:
    """Spell a type as in YAML: `int or null`, `list[str]`."""
    if isinstance(hint, UnionType):
        return " or ".join(map(_spell, get_args(hint)))
    if hint is NoneType:
        return "null"
    if get_origin(hint) is dict:
        return f"dict[{', '.join(map(_spell, get_args(hint)))}]"
    return hint.__name__ if isinstance(hint, type) else str(hint)
