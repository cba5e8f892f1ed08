"""The first mistake in a request body, under the client's name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serve.http.errors import ApiError

# A name that a client made up may be of any length.
SHOWN = 64


def invalid_body(error: ValidationError, body: object) -> ApiError:
    """Name the first wrong field of a request body, without its value, which may be private.

    pydantic's locations also name the branches of unions that it tried, so `body` says which
    parts are fields. Of several branches, the one that came furthest into the body is meant.
    """
    found: list[Any] = list(error.errors(include_input=False, include_url=False))
    paths = [_path(one, body) for one in found]
    tried = [i for i, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
    best = max(tried, key=lambda i: len(paths[i]))
    param = ".".join(part[:SHOWN] for part in paths[best]) or None
    if found[best]["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {param}", param=param, code="unknown_field")
    reasons = dict.fromkeys(_reason(found[i]) for i in tried if paths[i] == paths[best])
    where = f"{param}: " if param else ""
    return ApiError(400, where + "; or: ".join(reasons), param=param, code=found[best]["type"])


def _path(one: Mapping[str, Any], body: object) -> tuple[str, ...]:
    """Return the client's fields that lead to an error."""
    path: list[str] = []
    inside, known = body, True
    for part in one["loc"]:
        known = True
        if isinstance(inside, dict) and str(part) in inside:
            inside = inside[str(part)]
        elif isinstance(inside, list) and isinstance(part, int) and part < len(inside):
            inside = inside[part]
        else:
            known = False
            continue
        path.append(str(part))
    if one["type"] == "missing" and not known:
        path.append(str(one["loc"][-1]))
    if one["type"].startswith("union_tag") and isinstance(inside, dict):
        path.append("type")
    return tuple(path)


def _reason(one: Mapping[str, Any]) -> str:
    if one["type"] == "union_tag_invalid":  # pydantic's own text repeats the client's
        return f"Input should be one of {one['ctx']['expected_tags']}"
    if one["type"] == "union_tag_not_found":
        return "Input should be an object that has a type"
    return str(one["msg"])
