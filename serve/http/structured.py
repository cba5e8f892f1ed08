"""Request fields for the form of an answer: OpenAI's, and vLLM's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from llamahome.requests import Grammar
from serve.http.errors import ApiError
from serve.http.fields import Strict

ANY_OBJECT = '{"type": "object"}'

JsonValue = str | dict[str, Any]
"""A JSON schema, as an object or as its text."""


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchema(Strict):
    """A JSON schema; answers always keep to it, `strict` or not."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StructuredOutputs(Strict):
    """vLLM's newer form of the guided fields."""

    json_: Annotated[JsonValue | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    json_object: bool | None = None


def grammar_of(
    *,
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
    structured_outputs: StructuredOutputs | None,
    guided_json: JsonValue | None,
    guided_regex: str | None,
    guided_choice: list[str] | None,
) -> Grammar | None:
    """Return the one grammar that a request asks for.

    Raises:
        ApiError: when it asks for several.
    """
    found = [
        _of_format(response_format),
        *_of_structured(structured_outputs),
        _json(guided_json, "guided_json"),
        _regex(guided_regex, "guided_regex"),
        _choice(guided_choice, "guided_choice"),
    ]
    grammars = [grammar for grammar in found if grammar is not None]
    if len(grammars) > 1:
        first, second = grammars[0].source, grammars[1].source
        raise ApiError(
            400,
            f"{second}: {first} already says what the answer must look like; send one of them",
            param=second,
            code="invalid_value",
        )
    return grammars[0] if grammars else None


def _of_format(form: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> Grammar | None:
    if isinstance(form, JsonSchemaFormat):
        return _json(form.json_schema.schema_, "response_format")
    if isinstance(form, JsonObjectFormat):
        return _json(ANY_OBJECT, "response_format")
    return None


def _of_structured(outputs: StructuredOutputs | None) -> list[Grammar | None]:
    if outputs is None:
        return []
    return [
        _json(outputs.json_, "structured_outputs.json"),
        _regex(outputs.regex, "structured_outputs.regex"),
        _choice(outputs.choice, "structured_outputs.choice"),
        _json(ANY_OBJECT if outputs.json_object else None, "structured_outputs.json_object"),
    ]


def _json(schema: JsonValue | None, field: str) -> Grammar | None:
    if schema is None:
        return None
    return Grammar("json", schema if isinstance(schema, str) else json.dumps(schema), field)


def _regex(regex: str | None, field: str) -> Grammar | None:
    return None if regex is None else Grammar("regex", regex, field)


def _choice(texts: list[str] | None, field: str) -> Grammar | None:
    return None if texts is None else Grammar("choice", json.dumps(texts), field)
