"""The endpoints described: an OpenAPI document, and a page that loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic.json_schema import models_json_schema

from serve.http.routes.route import WEBSOCKET, Route

REF = "#/components/schemas/"
PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")
ANSWERS = {
    "200": {"description": "the answer"},
    "4XX": {"description": "the request is refused, and the body says why"},
    "5XX": {"description": "the answer failed"},
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
    bodies = {route.body for route in routes if route.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    refs, schemas = models_json_schema(
        [(body, "validation") for body in ordered], ref_template=REF + "{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in route.methods:
            if method != WEBSOCKET:
                body = None if route.body is None else refs[(route.body, "validation")]
                path = paths.setdefault(PARAMETER.sub(r"{\1}", route.path), {})
                path[method.lower()] = _operation(route, method, body)
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "LlamaHome", "version": version("llamahome")},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {}), "securitySchemes": keys},
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _operation(route: Route, method: str, body: dict[str, Any] | None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()} {route.path}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in PARAMETER.findall(route.path)
        ],
        "responses": ANSWERS,
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


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
