"""Request bodies in, JSON out."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request, Response
from openai import BaseModel as OpenAIModel
from pydantic import ValidationError
from pydantic_core import from_json

from serve.http.errors import ApiError
from serve.http.fields import Strict
from serve.http.invalid import invalid_body

Body = TypeVar("Body", bound=Strict)


async def parse(request: Request, kind: type[Body]) -> Body:
    """Return the checked body of a request.

    Raises:
        ApiError: when it is not sent as JSON, or a field of it is wrong.
    """
    # JSON alone also keeps web pages out: browsers ask for permission first, and get no answer.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(415, "send the body as Content-Type: application/json")
    return checked(kind, await request.body())


def checked(kind: type[Body], text: str | bytes) -> Body:
    """Return a body from its JSON.

    Raises:
        ApiError: when it is no JSON, or a field of it is wrong.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise invalid_body(error, _read(text)) from None


def checked_fields(kind: type[Body], fields: dict[str, Any]) -> Body:
    """Return a body from its fields; raise as `checked`."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise invalid_body(error, fields) from None


def _read(text: str | bytes) -> object:
    try:
        return from_json(text)
    except ValueError:
        return None


def as_json(content: OpenAIModel) -> Response:
    """Return an answer in one of the `openai` package's types."""
    return Response(content.to_json(indent=None), media_type="application/json")
