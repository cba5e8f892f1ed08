"""Request fields for the form of an answer: OpenAI's, and vLLM's."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from llamahome.requests import Grammar, GrammarKind
from serve.http.errors import invalid_request
from serve.http.fields import Strict

ANY_OBJECT = '{"type": "object"}'

JsonValue = str | dict[str, Any]
"""A JSON schema, as an object or as its text."""


class PlainFormat(Strict):
    type: Literal["text", "json_object"]


class JsonSchema(Strict):
    """A JSON schema; answers always keep to it, `strict` or not."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """vLLM's newer form of the guided fields."""

    json_: Annotated[JsonValue | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    json_object: bool | None = None


def grammar_of(
    *,
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    guided_json: JsonValue | None,
    guided_regex: str | None,
    guided_choice: list[str] | None,
) -> Grammar | None:
    """Return the one grammar that a request asks for.

    Raises:
        ApiError: when it asks for several.
    """
    outputs = structured_outputs or StructuredOutputs()
    any_object = ANY_OBJECT if outputs.json_object else None
    asked: list[tuple[GrammarKind, JsonValue | list[str] | None, str]] = [
        ("json", _schema(response_format), "response_format"),
        ("json", outputs.json_, "structured_outputs.json"),
        ("regex", outputs.regex, "structured_outputs.regex"),
        ("choice", outputs.choice, "structured_outputs.choice"),
        ("json", any_object, "structured_outputs.json_object"),
        ("json", guided_json, "guided_json"),
        ("regex", guided_regex, "guided_regex"),
        ("choice", guided_choice, "guided_choice"),
    ]
    grammars = [
        Grammar(kind, form if isinstance(form, str) else json.dumps(form), field)
        for kind, form, field in asked
        if form is not None
    ]
    if len(grammars) > 1:
        first, second = grammars[0].source, grammars[1].source
        message = f"{first} already says what the answer must look like; send one of them"
        raise invalid_request(f"{second}: {message}", second)
    return grammars[0] if grammars else None


def _schema(form: ResponseFormat | None) -> JsonValue | None:
    if isinstance(form, JsonSchemaFormat):
        return form.json_schema.schema_
    return ANY_OBJECT if form is not None and form.type == "json_object" else None
