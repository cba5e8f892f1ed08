"""The endpoints described: an OpenAPI document, and a page that loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import TypeAdapter

from serve.http.routes.route import WEBSOCKET, Route

REF = "#/components/schemas/"
Refs = dict[Any, dict[str, Any]]
Mode = Literal["validation", "serialization"]
PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
REFUSED, FAILED = "the request is refused, and the body says why", "the answer failed"
# Errors in OpenAI's shape, and below /v1/messages in Anthropic's.
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def doc_routes(routes: Sequence[Route]) -> list[Route]:
    """Return the routes of the document of `routes`, and of its page."""
    content = document(routes)
    page = HTMLResponse(_page(content))

    async def openapi() -> Response:
        return JSONResponse(content)

    async def docs() -> Response:
        return page

    return [Route("/openapi.json", openapi), Route("/docs", docs)]


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of HTTP routes."""
    refs, schemas = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in route.methods:
            if method != WEBSOCKET:
                path = paths.setdefault(PARAMETER.sub(r"{\1}", route.path), {})
                path[method.lower()] = _operation(route, method, refs)
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "LlamaHome", "version": version("llamahome")},
        "paths": paths,
        "components": {"schemas": {**schemas, "Error": ERROR}, "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _schemas(routes: Sequence[Route]) -> tuple[Refs, dict[str, Any]]:
    """Return a reference to the schema of each body and answer, and all schemas by name."""
    kinds: dict[Any, Mode] = {route.body: "validation" for route in routes}
    kinds |= {route.answer: "serialization" for route in routes}
    kinds.pop(None)
    ordered = sorted(kinds, key=lambda kind: str(kind.__name__))
    inputs = [(kind, kinds[kind], TypeAdapter(kind)) for kind in ordered]
    refs, schemas = TypeAdapter.json_schemas(inputs, ref_template=REF + "{model}")
    return {kind: ref for (kind, _), ref in refs.items()}, schemas.get("$defs", {})


def _operation(route: Route, method: str, refs: Refs) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()} {route.path}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in PARAMETER.findall(route.path)
        ],
        "responses": {
            "200": {"description": "the answer", **_content(route, refs)},
            "4XX": {"description": REFUSED, "content": _json({"$ref": f"{REF}Error"})},
            "5XX": {"description": FAILED, "content": _json({})},
        },
    }
    if method == "HEAD":
        for answer in operation["responses"].values():
            answer.pop("content", None)
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(refs[route.body])}
    return operation


def _content(route: Route, refs: Refs) -> dict[str, Any]:
    """Return the media types of an answer; bodies with `stream` may ask for events."""
    content = {} if route.answer is None else _json(refs[route.answer])
    if route.body is not None and (content == {} or "stream" in route.body.model_fields):
        content["text/event-stream"] = {}
    return {"content": content} if content else {}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _page(content: dict[str, Any]) -> str:
    """Return a plain page: each path, and the fields of its body."""
    sections = [
        f"<h2>{escape(method.upper())} {escape(path)}</h2>{_fields(operation, content)}"
        for path, operations in content["paths"].items()
        for method, operation in operations.items()
        if method != "head"
    ]
    title = f"LlamaHome {escape(content['info']['version'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<h1>{title}</h1><p>As data: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(sections)}</html>"
    )


def _fields(operation: dict[str, Any], content: dict[str, Any]) -> str:
    body = operation.get("requestBody")
    if body is None:
        return ""
    name = body["content"]["application/json"]["schema"]["$ref"].removeprefix(REF)
    schema = content["components"]["schemas"][name]
    required = schema.get("required", [])
    items = [
        f"<li><code>{escape(field)}</code>{' (required)' if field in required else ''}</li>"
        for field in schema["properties"]
    ]
    return f"<p>{escape(schema.get('description', ''))}</p><ul>{''.join(items)}</ul>"
