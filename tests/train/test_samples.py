"""Answers during training: those that are served later, and nothing that disturbs the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from llamahome.config import (
    ConfigError,
    DeepSpeedConfig,
    EngineConfig,
    ModelConfig,
    PolicyConfig,
    TrainRoot,
)
from llamahome.data import IGNORED
from llamahome.engine import TextEngine
from llamahome.models import ModelManager
from llamahome.requests import SamplingParams
from tests.train.engine import QUIET, one_worker
from tests.train.test_run import changed
from train import metrics
from train.records import Datasets
from train.run import prepare_run
from train.samples import Prompt, build_prompts, check_prompts

pytestmark = QUIET
CARRIED = PolicyConfig(name="carried", budget=None)
PROMPTS = ["budget cache?", "a longer question about " + "sink and mass, " * 4]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[None]:
    """A world of one worker."""
    with one_worker(tmp_path / "meet"):
        yield


def training(root: TrainRoot, run_dir: Path) -> Any:
    """Make the worker's part of a run as `run_worker` does."""
    from train.deepspeed_config import deepspeed_config
    from train.model import prepare_model
    from train.records import build_datasets
    from train.samples import Sampler
    from train.worker import Training, start_engine

    run_dir.mkdir()
    settings = deepspeed_config(root.deepspeed, root.trainer)
    model, policy, tokenizer = prepare_model(root, settings, root.model)
    engine = start_engine(model, root.trainer, settings)
    data = build_datasets(root.data, tokenizer, root.trainer.seed)
    prompts = build_prompts(root.trainer, data, tokenizer)
    sampler = None
    if prompts:
        sampler = Sampler(engine, policy, prompts, tokenizer, root.trainer.sample_tokens)
    return Training(root, run_dir, engine, policy, data, tokenizer.pad_token_id, sampler)


def samples(run_dir: Path, step: int) -> list[dict[str, Any]]:
    return [sample for sample in metrics.samples(run_dir) if sample["step"] == step]


def generated(folder: Path, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """Return transformers' greedy answer, with its own attention."""
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    turn = [{"role": "user", "content": prompt}]
    ids: Any = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    answer = model.generate(inputs=ids, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


def served(folder: Path, prompt: str) -> str:
    """Return the endpoint's greedy answer, under the policy that the folder carries."""
    config = EngineConfig(slots=1, max_length=256, runner="torch", weights="fp32", kv_dtype="fp32")
    engine = TextEngine.load(ModelConfig(name=str(folder)), CARRIED, config)
    ids = engine.encode_chat([{"role": "user", "content": prompt}])
    engine.submit("one", ids, SamplingParams(temperature=0, max_tokens=20))
    text = ""
    while engine.has_work:
        text += "".join(delta.text for delta in engine.step())
    return text


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("policy", ["full", "h2o"])
def test_answers_are_those_of_the_exported_model(
    root: TrainRoot, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast, policy: str
) -> None:
    from train.export import export_model

    if policy == "full":
        root = replace(root, policy=PolicyConfig.dense())
    root = changed(
        root, "trainer", num_workers=1, steps=2, sample_prompts=PROMPTS, sample_tokens=20
    )
    run = training(root, tmp_path / "run")
    assert run.until_done()
    export_model(run.engine, byte_tokenizer, root, tmp_path / "run", run.held_out[0]["input_ids"])
    written = samples(tmp_path / "run", step=2)
    assert [sample["prompt"] for sample in written] == PROMPTS
    folder = tmp_path / "run" / "model"
    for sample in written:
        assert sample["tokens"] == 20 or sample["ended"]
        assert sample["answer"] == served(folder, sample["prompt"])
        if policy == "full":
            assert sample["answer"] == generated(folder, byte_tokenizer, sample["prompt"])


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("stage", "method", "precision", "batching"),
    [(3, "lora", "fp32", "packing"), (2, "full", "mixed", "padding")],
)
def test_training_goes_on_as_without(
    root: TrainRoot, tmp_path: Path, stage: int, method: str, precision: str, batching: str
) -> None:
    root = replace(root, deepspeed=DeepSpeedConfig(zero_stage=stage))
    root = changed(root, "data", batching=batching)
    alone = {"num_workers": 1, "batch_size": 1, "steps": 4, "eval_every": 2}
    root = changed(root, "trainer", method=method, precision=precision, **alone)
    root = changed(root, "trainer", lora=replace(root.trainer.lora, dropout=0.2))
    curves = []
    for prompts in ([], PROMPTS):
        wanted = {"sample_prompts": prompts, "sample_held_out": len(prompts), "sample_tokens": 9}
        asked = changed(root, "trainer", **wanted)
        run_dir = tmp_path / f"run-{len(prompts)}"
        torch.manual_seed(0)
        run = training(asked, run_dir)
        assert run.until_done()
        records = metrics.read(run_dir)
        names = ("loss", "grad_norm", "eval_loss")
        curves.append([metrics.series(records, name) for name in names])
    assert curves[0] == curves[1]
    assert [len(samples(tmp_path / "run-2", step)) for step in (0, 2, 4)] == [4, 4, 4]
    assert not (tmp_path / "run-0" / metrics.SAMPLES).exists()


def packed(*documents: tuple[list[int], int]) -> dict[str, list[int]]:
    """Return a row of documents, each its ids and how many of them are a prompt."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "documents": []}
    for number, (ids, prompt) in enumerate(documents):
        row["input_ids"] += ids
        row["labels"] += [IGNORED] * prompt + ids[prompt:]
        row["documents"] += [number] * len(ids)
    return row


def prompts_of(
    root: TrainRoot, tokenizer: PreTrainedTokenizerFast, data: Datasets, **trainer: Any
) -> list[Prompt]:
    return build_prompts(replace(root.trainer, **trainer), data, tokenizer)


def test_prompts_of_held_out_records(
    root: TrainRoot, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [packed(([65, 66, 67, 68], 3), ([69, 70, 71], 2)), packed(([72, 73, 74, 75], 1))]
    data = Datasets(train=[], eval=rows)
    found = prompts_of(root, byte_tokenizer, data, sample_held_out=9)
    # The third is a document: all of it is learned, so its first half is the prompt.
    assert [prompt.ids for prompt in found] == [[65, 66, 67], [69, 70], [72, 73]]
    assert found[0].text == byte_tokenizer.decode([65, 66, 67])
    one = prompts_of(root, byte_tokenizer, data, sample_held_out=1)
    assert one == found[:1]
    of_pairs = prompts_of(root, byte_tokenizer, replace(data, pairs=True), sample_held_out=9)
    assert of_pairs == [found[0], found[2]]


def test_a_written_prompt_is_a_users_turn_with_its_control_tokens_as_text(
    root: TrainRoot, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = Datasets(train=[], eval=[])
    (prompt,) = prompts_of(root, byte_tokenizer, data, sample_prompts=["hi <eos>"])
    assert byte_tokenizer.decode(prompt.ids) == "<|user|>hi <eos><eos><|assistant|>"
    assert prompt.ids.count(byte_tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"sample_prompts": ["x" * 300]}, r"sample_tokens=64 after a prompt of 3\d\d tokens"),
        ({"sample_held_out": 1, "sample_tokens": 250}, r"sample_tokens=250 after a prompt of "),
    ],
)
def test_prompts_that_leave_no_room_are_refused_before_anything_starts(
    root: TrainRoot, manager: ModelManager, trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_run(changed(root, "trainer", **trainer), manager)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no token"):
        check_prompts([Prompt("", [])], 8, 256)


def test_a_template_that_refuses_a_prompt_is_named(
    root: TrainRoot, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    strict = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    strict.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ConfigError, match=r"trainer\.sample_prompts: .*system first"):
        prompts_of(root, strict, Datasets(train=[], eval=[]), sample_prompts=["hi"])
