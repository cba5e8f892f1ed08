"""POST /v1/load_lora_adapter, /v1/unload_lora_adapter and /admin/promote: for admins' keys only."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from serve.http.bodies import parse
from serve.http.changes import Changes
from serve.http.fields import Strict
from serve.http.routes.route import Route


class LoadAdapterBody(Strict):
    """POST /v1/load_lora_adapter, with vLLM's fields."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None


class UnloadAdapterBody(Strict):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


class PromoteBody(Strict):
    """POST /admin/promote: a finished run in place of a served model."""

    run: str
    model: str | None = None


def routes(changes: Changes) -> list[Route]:
    """Return the routes that change which models are served."""

    async def load_adapter(request: Request) -> Response:
        body = await parse(request, LoadAdapterBody)
        await changes.load_adapter(body.lora_name, body.lora_path, body.base_model_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(request: Request) -> Response:
        body = await parse(request, UnloadAdapterBody)
        await changes.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def promote(request: Request) -> Response:
        body = await parse(request, PromoteBody)
        served = await changes.promote(body.run, body.model)
        return JSONResponse(
            {
                "model": served.name,
                "root": served.root,
                "revision": served.revision,
                "system_fingerprint": served.fingerprint,
            }
        )

    return [
        Route("/v1/load_lora_adapter", load_adapter, "POST", LoadAdapterBody),
        Route("/v1/unload_lora_adapter", unload_adapter, "POST", UnloadAdapterBody),
        Route("/admin/promote", promote, "POST", PromoteBody),
    ]
