"""GET /v1/models: the model and its adapters."""

from __future__ import annotations

from fastapi import Response
from fastapi.responses import JSONResponse
from openai.types import Model

from serve.http.answering import Answering
from serve.http.bodies import as_json
from serve.http.routes.route import Route


def routes(answering: Answering) -> list[Route]:
    """Return the routes that describe what is served."""
    created = answering.settings.created
    described = {
        name: Model(id=name, created=created, object="model", owned_by="llamahome")
        for name in answering.model_ids
    }

    async def models() -> Response:
        data = [model.to_dict() for model in described.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(model_id: str) -> Response:
        answering.check_model(model_id)
        return as_json(described[model_id])

    return [Route("/v1/models", models), Route("/v1/models/{model_id:path}", model)]
