"""GET /v1/models: the models and their adapters."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Response
from fastapi.responses import JSONResponse
from openai.types import Model
from typing_extensions import TypedDict

from serve.http.answering import Answering
from serve.http.bodies import as_json
from serve.http.errors import no_model
from serve.http.routes.route import Route


class ModelList(TypedDict):
    """The models."""

    object: Literal["list"]
    data: list[dict[str, Any]]


def routes(answering: Answering) -> list[Route]:
    """Return the routes that describe what is served."""

    async def models() -> Response:
        lengths = await _max_lengths(answering)
        data = [_described(answering, name, lengths).to_dict() for name in answering.visible()]
        return JSONResponse(ModelList(object="list", data=data))

    async def model(model_id: str) -> Response:
        answering.check_model(model_id)
        return as_json(_described(answering, model_id, await _max_lengths(answering)))

    return [
        Route("/v1/models", models, answer=ModelList),
        Route("/v1/models/{model_id:path}", model, answer=Model),
    ]


def _described(answering: Answering, name: str, lengths: dict[str, int | None]) -> Model:
    """Return OpenAI's fields, and vLLM's: `root`, `parent` of an adapter, `max_model_len`."""
    target = answering.catalog.target(name)
    if target is None:  # it has just ceased to be served
        raise no_model(name, answering.visible())
    served = target.served
    fields: dict[str, Any] = {
        "id": name,
        "created": answering.settings.created,
        "object": "model",
        "owned_by": "llamahome",
        "root": target.adapter or served.root,
        "parent": None if target.adapter is None else served.name,
        "max_model_len": lengths.get(served.name),
    }
    return Model.model_validate(fields)


async def _max_lengths(answering: Answering) -> dict[str, int | None]:
    """Return the longest context of a request, by model; those that no replica holds are absent."""
    replicas = await answering.backend.replicas()
    held = {model.name: model.max_length for replica in replicas for model in replica.models}
    first = next((replica.max_length for replica in replicas if replica.max_length), None)
    return {answering.settings.model_id: first, **held}
