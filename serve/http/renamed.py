"""Errors about a field of one API, in the words of another API that it was translated from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from llamahome.requests import RequestError
from serve.http.errors import ApiError, invalid_request


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """Return an error with the client's name for its field."""
    param = error.param
    if param is None:
        return error
    first, dot, rest = param.partition(".")
    if first not in names:
        return error
    client = names[first] + dot + rest
    message = error.message
    if message.startswith(param):
        message = client + message.removeprefix(param)
    return replace(error, message=message, param=client)


@contextmanager
def fields_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Raise errors of the block as ApiError, with the client's names for their fields."""
    try:
        yield
    except RequestError as error:
        raise renamed(invalid_request(error.for_client(error.field), error.field), names) from None
    except ApiError as error:
        raise renamed(error, names) from None
