from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import llamahome
from llamahome.config import ConfigError
from llamahome.engine import EngineError, SamplingParams
from serve.process import CacheManager, InputError, process_input

GREEDY = SamplingParams(max_tokens=8)


@pytest.fixture
def config(tiny_model: Path) -> list[str]:
    return [
        f"model.name={tiny_model}",
        *("policy=full", "engine.slots=2", "engine.max_length=256", "engine.weights=fp32"),
        "engine.num_threads=1",
    ]


async def test_an_answer_is_that_of_transformers(tiny_model, config):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, len(prompt[0]) :]
    async with CacheManager() as cache:
        answer = await llamahome.process_input("Hello", config, cache, params=GREEDY)
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.usage.completion_tokens == len(expected)


async def test_calls_share_an_engine_and_its_snapshots(config, tmp_path):
    text = "A long and common beginning of many texts. " * 3
    async with CacheManager(folder=tmp_path) as cache:
        first = await process_input(text, config, cache, params=GREEDY)
        again = await asyncio.gather(
            *(process_input(text, config, cache, params=GREEDY) for _ in range(3))
        )
        [stats] = await cache.stats()
    assert {answer.text for answer in again} == {first.text}
    assert all(answer.usage.cached_tokens > 0 for answer in again)
    assert stats.requests_finished == 4
    async with CacheManager(folder=tmp_path) as later:
        restored = await process_input(text, config, later, params=GREEDY)
    assert restored.text == first.text
    assert restored.usage.cached_tokens > 0


async def test_a_closed_manager_ends_its_answers_and_takes_no_more(config):
    cache = CacheManager()
    endless = SamplingParams(max_tokens=200, ignore_eos=True)
    running = asyncio.create_task(process_input("Hello", config, cache, params=endless))
    async with asyncio.timeout(60):
        while not [stats for stats in await cache.stats() if stats.slots_used]:
            await asyncio.sleep(0.001)
    await asyncio.to_thread(cache.close)
    with pytest.raises(EngineError, match="closed"):
        await running
    with pytest.raises(ConfigError, match="closed"):
        await process_input("Hello", config, cache)


@pytest.mark.parametrize(
    ("text", "params", "message"),
    [("x" * 300, GREEDY, "messages"), ("x", SamplingParams(max_tokens=999), "max_tokens")],
)
async def test_a_refusal_names_what_is_wrong(config, text, params, message):
    async with CacheManager() as cache:
        with pytest.raises(InputError, match=message):
            await process_input(text, config, cache, params=params)


async def test_one_text_is_no_list_of_overrides():
    with pytest.raises(ConfigError, match="list of overrides"):
        await process_input("Hello", "model.name=x")


def test_the_library_alone_says_what_is_missing(tmp_path):
    (tmp_path / "llamahome").symlink_to(Path(llamahome.__file__).parent)
    code = "import llamahome; llamahome.process_input"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "needs the repository" in run.stderr
