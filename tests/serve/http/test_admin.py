"""Models that change while an endpoint serves: the routes for admins, over a real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.keys import KeyFile
from llamahome.models import write_adapter_policy
from serve.catalog import Catalog, Served
from serve.host import Host
from serve.http.api import build_app
from serve.http.changes import Changes, LocalCatalog, Sources
from serve.http.settings import HttpSettings
from serve.security.settings import SecuritySettings
from tests.serve.one_host import OneHost
from tests.serve.tuned import save_adapter, save_run

# PEFT reads it of a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

POLICY = PolicyConfig(budget=64, recent=16, interval=8)
OTHER_POLICY = PolicyConfig(budget=32, recent=16, interval=8)
ASKED = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 1}


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `adapters/`, some of which do not fit, and `runs/`."""
    folder = tmp_path_factory.mktemp("changes")
    adapters = folder / "adapters"
    save_adapter(tiny_model, adapters / "pirate")
    write_adapter_policy(adapters / "pirate", POLICY)
    save_adapter(tiny_model, adapters / "foreign")
    write_adapter_policy(adapters / "foreign", OTHER_POLICY)
    wide = LlamaForCausalLM.from_pretrained(tiny_model).config
    wide.hidden_size = 64
    torch.manual_seed(0)
    LlamaForCausalLM(wide).save_pretrained(folder / "wide")
    save_adapter(folder / "wide", adapters / "wide")
    save_adapter(tiny_model, folder / "outside")
    (adapters / "link").symlink_to(folder / "outside")
    (adapters / "empty").mkdir()
    save_run(tiny_model, folder / "runs" / "tuned" / "model", scale=1.0)
    (folder / "runs" / "unfinished").mkdir()
    return folder


@pytest.fixture
def serve_tiny(tiny_model: Path, folders: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def serving(
        engine: dict[str, Any] | None = None, **settings: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        config = EngineConfig(slots=2, max_length=512, num_threads=1, **(engine or {}))
        tiny = Served(
            name="tiny",
            root="tiny",
            model=ModelConfig(name=str(tiny_model)),
            policy=POLICY,
            engine=config,
        )
        catalog = LocalCatalog(Catalog((tiny,)))
        host = Host(tiny, max_models=2)
        backend = OneHost(host)
        sources = Sources(
            runs=folders / "runs",
            folders=(folders / "adapters",),
            configured={"tiny": tiny.model},
        )
        fixed = {"model_id": "tiny", "created": 1, "request_timeout_s": 60.0}
        app = build_app(
            backend,
            HttpSettings(**{**fixed, "max_body_bytes": 10_000, **settings}),
            models=catalog,
            changes=Changes(catalog, backend, sources),
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield http
        finally:
            await asyncio.to_thread(host.close)

    return serving


async def said(client: httpx.AsyncClient, model: str) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={**ASKED, "model": model})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def names(client: httpx.AsyncClient) -> list[str]:
    return [model["id"] for model in (await client.get("/v1/models")).json()["data"]]


def text(answer: dict[str, Any]) -> tuple[str, list[float]]:
    choice = answer["choices"][0]
    return choice["text"], [round(p, 3) for p in choice["logprobs"]["token_logprobs"]]


async def test_an_adapter_is_added_and_removed(serve_tiny, folders):
    path = str(folders / "adapters" / "pirate")
    async with serve_tiny({"adapters": {"pirate": path}}) as client:
        expected = text(await said(client, "pirate"))  # as one that is there from the start
    async with serve_tiny() as client:
        before = text(await said(client, "tiny"))
        load = {"lora_name": "pirate", "lora_path": path}
        loaded = await client.post("/v1/load_lora_adapter", json=load)
        assert (loaded.status_code, "added successfully" in loaded.text) == (200, True)
        assert await names(client) == ["tiny", "pirate"]
        assert text(await said(client, "pirate")) == expected
        assert text(await said(client, "tiny"))[0] == before[0] != expected[0]
        again = await client.post("/v1/load_lora_adapter", json=load)
        assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
        await client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
        assert await names(client) == ["tiny"]
        gone = await client.post("/v1/completions", json={**ASKED, "model": "pirate"})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        twice = await client.post("/v1/unload_lora_adapter", json={"lora_name": "pirate"})
        assert (twice.status_code, twice.json()["error"]["param"]) == (404, "lora_name")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"lora_path": "foreign"}, "lora_path", "was trained under"),
        ({"lora_path": "wide"}, "lora_path", "does not fit"),
        ({"lora_path": "empty"}, "lora_path", "adapter_config.json"),
        ({"lora_path": "link"}, "lora_path", "serve.model_dirs"),
        ({"lora_path": "../outside"}, "lora_path", "serve.model_dirs"),
        ({"lora_path": "../../../etc"}, "lora_path", "serve.model_dirs"),
        ({"lora_path": "pirate", "lora_name": "a.b"}, "lora_name", "letters"),
        ({"lora_path": "pirate", "lora_name": "tiny"}, "lora_name", "served already"),
        ({"lora_path": "pirate", "base_model_name": "gpt-4"}, "model", "no model"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_an_adapter_that_cannot_be_had_is_refused_in_a_line(
    serve_tiny, folders, body, param, said
):
    path = f"{folders / 'adapters'}/{body['lora_path']}"
    async with serve_tiny() as client:
        asked = {"lora_name": "new", **body, "lora_path": path}
        refused = await client.post("/v1/load_lora_adapter", json=asked)
        assert refused.status_code in (400, 404)
        error = refused.json()["error"]
        assert (error["param"], said in error["message"]) == (param, True), error
        assert "\n" not in error["message"]
        assert await names(client) == ["tiny"]


async def test_a_promotion_loses_no_stream(serve_tiny):
    async with serve_tiny() as client:
        before = await said(client, "tiny")
        body = {**ASKED, "model": "tiny", "max_tokens": 100, "stream": True, "ignore_eos": True}
        whole = await client.post("/v1/completions", json={**body, "stream": False})
        streaming = asyncio.create_task(client.post("/v1/completions", json=body))
        promoted = await client.post("/admin/promote", json={"run": "tuned"})
        assert promoted.json()["root"] == "tuned"
        after = await said(client, "tiny")
        assert text(after) != text(before)
        assert after["system_fingerprint"] == promoted.json()["system_fingerprint"]
        assert after["system_fingerprint"] != before["system_fingerprint"]
        events = [line[6:] for line in (await streaming).text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        streamed = "".join(json.loads(e)["choices"][0]["text"] for e in events)
        assert streamed == whole.json()["choices"][0]["text"]
        [model] = (await client.get("/v1/models")).json()["data"]
        assert (model["id"], model["root"], model["parent"]) == ("tiny", "tuned", None)
        await client.post("/admin/promote", json={"run": "tiny", "model": "tiny"})
        assert text(await said(client, "tiny")) == text(before)


@pytest.mark.parametrize("run", ["unfinished", "nothing", "../runs/tuned", "/etc", "", "."])
async def test_a_run_that_cannot_be_had_is_refused(serve_tiny, run):
    async with serve_tiny() as client:
        refused = await client.post("/admin/promote", json={"run": run})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "run")


async def test_a_model_with_adapters_is_not_promoted_under_them(serve_tiny, folders):
    async with serve_tiny({"adapters": {"pirate": str(folders / "adapters" / "pirate")}}) as client:
        refused = await client.post("/admin/promote", json={"run": "tuned"})
        assert (refused.status_code, "pirate" in refused.text) == (400, True)


async def test_changes_are_for_admins_and_names_for_those_who_may_use_them(
    serve_tiny, folders, tmp_path
):
    keys = KeyFile(tmp_path / "keys.json")
    _, admin = keys.create("boss", role="admin")
    _, user = keys.create("ada", models=("tiny",))
    load = {"lora_name": "pirate", "lora_path": str(folders / "adapters" / "pirate")}
    async with serve_tiny(security=SecuritySettings(keys_file=keys.path)) as client:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/admin/promote"):
            assert (await client.post(path, json=load)).status_code == 401
            headers = {"Authorization": f"Bearer {user}"}
            assert (await client.post(path, json=load, headers=headers)).status_code == 403
        client.headers["Authorization"] = f"Bearer {admin}"
        assert (await client.post("/v1/load_lora_adapter", json=load)).status_code == 200
        assert await names(client) == ["tiny", "pirate"]
        client.headers["Authorization"] = f"Bearer {user}"
        assert await names(client) == ["tiny"]
        refused = await client.post("/v1/completions", json={**ASKED, "model": "pirate"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
