"""Request bodies in, JSON out."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request, Response
from openai import BaseModel as OpenAIModel
from pydantic import ValidationError

from serve.http.errors import ApiError, invalid_body
from serve.http.fields import Strict

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
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid_body(error) from None


def as_json(content: OpenAIModel) -> Response:
    """Return an answer in one of the `openai` package's types."""
    return Response(content.to_json(indent=None), media_type="application/json")
