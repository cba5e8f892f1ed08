"""lm-evaluation-harness through our engine, against its own Hugging Face model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli import terminal

TEXT = terminal.TEXT * 4
TASK = """\
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def _instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def _ours(folder: Path, **arguments: Any) -> Any:
    from lm_eval.api.registry import get_model

    from llamahome.cli.lm_eval import register

    register()
    return get_model("llamahome")(pretrained=str(folder), **{"weights": "fp32", **arguments})


def _theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


@pytest.fixture
def scored() -> list[Any]:
    pairs = [(TEXT, " The end"), (TEXT[:90], TEXT[90:]), ("", "abc"), ("one ", "two three")]
    return [_instance("loglikelihood", *pair) for pair in pairs]


def test_dense_scores_are_those_of_lm_evals_own_model(tiny_folder: Path, scored: list) -> None:
    own = _ours(tiny_folder, policy="full").loglikelihood(scored, disable_tqdm=True)
    reference = _theirs(tiny_folder).loglikelihood(scored, disable_tqdm=True)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in reference]
    assert [score for score, _ in own] == pytest.approx([s for s, _ in reference], abs=1e-3)


def test_greedy_continuations_are_marked(tiny_folder: Path) -> None:
    model = _ours(tiny_folder, policy="full")
    until = {"until": [], "max_gen_toks": 6}
    (said,) = model.generate_until([_instance("generate_until", TEXT[:60], until)])
    pairs = [(TEXT[:60], said), (TEXT[:60], " The end")]
    scores = model.loglikelihood([_instance("loglikelihood", *p) for p in pairs], disable_tqdm=True)
    # A byte-level model may generate half a character, which no text can repeat.
    assert [greedy for _, greedy in scores][1] is False
    assert scores[0][1] is ("\ufffd" not in said)


def test_rolling_scores_are_those_of_lm_evals_own_model(tiny_folder: Path) -> None:
    asked = [_instance("loglikelihood_rolling", TEXT * 9)]  # longer than the model's context
    own = _ours(tiny_folder, policy="full").loglikelihood_rolling(asked, disable_tqdm=True)
    reference = _theirs(tiny_folder).loglikelihood_rolling(asked, disable_tqdm=True)
    assert own == pytest.approx(reference, rel=1e-5)


def test_answers_are_those_of_lm_evals_own_model(tiny_folder: Path) -> None:
    until = {"until": ["\n\n", "zz"], "max_gen_toks": 12, "do_sample": False}
    asked = [_instance("generate_until", TEXT[start:], until) for start in (0, 50, 100)]
    own = _ours(tiny_folder, policy="full", batch_size=2).generate_until(asked)
    theirs = _theirs(tiny_folder).generate_until(asked, disable_tqdm=True)
    for ours, reference in zip(own, theirs, strict=True):
        # Ours leaves out the half of a character with which an answer is cut.
        assert ours in (reference, reference.removesuffix("\ufffd"))


def test_a_small_budget_changes_scores(tiny_folder: Path, scored: list) -> None:
    dense = _ours(tiny_folder, policy="full").loglikelihood(scored, disable_tqdm=True)
    small = _ours(tiny_folder, policy="h2o", budget=32, recent=16, interval=8)
    evicted = small.loglikelihood(scored, disable_tqdm=True)
    assert abs(evicted[0][0] - dense[0][0]) > 1e-2
    assert evicted[3][0] == pytest.approx(dense[3][0], abs=1e-4)  # nothing to evict


def test_scores_are_by_default_those_of_what_serves(tiny_folder: Path, scored: list) -> None:
    exact = _ours(tiny_folder, policy="full").loglikelihood(scored, disable_tqdm=True)
    served = _ours(tiny_folder, policy="full", weights="auto")
    scores = served.loglikelihood(scored, disable_tqdm=True)
    assert [s for s, _ in scores] == pytest.approx([s for s, _ in exact], rel=0.05)
    assert scores[0][0] != pytest.approx(exact[0][0], abs=1e-4)
    same = _ours(tiny_folder, policy="full", weights="auto", dtype="float32")
    assert same.loglikelihood(scored, disable_tqdm=True) == exact


def test_what_cannot_fit_is_refused_by_name(tiny_folder: Path) -> None:
    from llamahome.config import ConfigError

    model = _ours(tiny_folder, policy="full", max_length=16)
    with pytest.raises(ConfigError, match="max_length=16: a task scores 20"):
        model.loglikelihood([_instance("loglikelihood", "a", "b" * 20)], disable_tqdm=True)
    with pytest.raises(ConfigError, match="max_length=16: a task asks for up to 30"):
        model.generate_until([_instance("generate_until", "a", {"max_gen_toks": 30})])
    with pytest.raises(ConfigError, match="unknown budgett"):
        _ours(tiny_folder, budgett=3)
    with pytest.raises(ConfigError, match=r"engine\.weights='int4' is not allowed"):
        _ours(tiny_folder, weights="int4")


def test_the_command_runs_a_task_of_a_local_file(tiny_folder: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    docs = [
        {"question": TEXT, "choices": [" yes", " no"], "answer": 0},
        {"question": TEXT[:80], "choices": [" a", " b", " c"], "answer": 2},
    ]
    records.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "local_choice.yaml").write_text(TASK.format(file=records))
    policy = "policy=h2o,budget=32,recent=16,interval=8"
    command = [terminal.PROGRAM, "lm_eval", "--tasks", "local_choice"]
    command += ["--model_args", f"pretrained={tiny_folder},{policy}"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")
    result = json.loads(written.read_text())
    assert result["results"]["local_choice"]["acc,none"] in (0.0, 0.5, 1.0)
    assert result["n-samples"]["local_choice"]["effective"] == 2
    assert "local_choice" in done.stdout


def test_rulers_tasks_measure_with_the_models_own_tokenizer(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Run tasks whose prompts are made to a length, for a run that transformers cannot name."""
    cache = tmp_path / "cache"
    run = cache / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "model").symlink_to(tiny_folder)
    # RULER asks the network for sentences' ends unless this folder is there; few tasks read it.
    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    tasks = ["niah_single_1", "niah_multikey_2", "niah_multikey_3"]
    command = [terminal.PROGRAM, "lm_eval", "--tasks", ",".join(tasks), "--limit", "1"]
    command += ["--model_args", "pretrained=mine,policy=h2o,budget=64,recent=32,interval=16"]
    command += ["--metadata", "max_seq_lengths=[1024]", "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    places = {"LLAMAHOME_CACHE": str(cache), "NLTK_DATA": str(tmp_path / "nltk")}
    done = subprocess.run(
        command, env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(written.read_text())["results"]
    assert all(results[task]["1024,none"] in (0.0, 1.0) for task in tasks)
    samples = list((tmp_path / "out").rglob("samples*.jsonl"))
    assert len(samples) == len(tasks)
    for file in samples:
        doc = json.loads(file.read_text())["doc"]
        assert doc["max_length"] == 1024
        # One token is one byte, and 128 are left for the answer.
        assert 400 < len(doc["input"]) <= 1024 - 128
        assert doc["outputs"][0] in doc["input"]
