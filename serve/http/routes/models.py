"""GET /v1/models: the model and its adapters."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Response
from fastapi.responses import JSONResponse
from openai.types import Model
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.bodies import as_json
from serve.http.routes.route import Route


class ModelList(TypedDict):
    """The models."""

    object: Literal["list"]
    data: list[dict[str, Any]]


def routes(answering: Answering) -> list[Route]:
    """Return the routes that describe what is served."""

    async def models() -> Response:
        length = await _max_length(answering)
        data = [_described(answering, name, length).to_dict() for name in answering.visible()]
        return JSONResponse(ModelList(object="list", data=data))

    async def model(model_id: str) -> Response:
        answering.check_model(model_id)
        return as_json(_described(answering, model_id, await _max_length(answering)))

    return [
        Route("/v1/models", models, answer=ModelList),
        Route("/v1/models/{model_id:path}", model, answer=Model),
    ]


def _described(answering: Answering, name: str, max_length: int | None) -> Model:
    """Return OpenAI's fields, and vLLM's: `root`, `parent` of an adapter, `max_model_len`."""
    root = answering.settings.model_id
    fields: dict[str, Any] = {
        "id": name,
        "created": answering.settings.created,
        "object": "model",
        "owned_by": "llamahome",
        "root": name,
        "parent": None if name == root else root,
        "max_model_len": max_length,
    }
    return Model.model_validate(fields)


async def _max_length(answering: Answering) -> int | None:
    """Return the longest context of a request; None while no replica runs."""
    replicas = await answering.backend.replicas()
    return next((replica.max_length for replica in replicas if replica.max_length), None)
