"""`llamahome calibrate` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from llamahome.config import ModelConfig, PolicyConfig, load_config
from llamahome.models import load_model
from tests.cli.terminal import run, summary

SMALL = ("--context", "512", "--budget", "0.4", "--windows", "1", "--probes", "2")


def _written(file: Path) -> PolicyConfig:
    written = OmegaConf.load(file)
    assert isinstance(written, DictConfig)
    return load_config(written, PolicyConfig)


def _mean(policy: PolicyConfig) -> float:
    held = [policy.budget_of(layer, head, 2) for layer in range(2) for head in range(2)]
    return sum(512 if budget is None else budget for budget in held) / 4


def test_the_policy_it_writes_is_the_one_it_prints(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "mine.yaml"
    result = run(
        "calibrate", "--model", str(tiny_folder), *SMALL, "--output", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said, policy = summary(result.stdout), _written(file)
    assert (policy.name, policy.budget, policy.pattern) == (
        said["policy"], said["budget"], said["pattern"]
    )  # fmt: skip
    assert policy.name == "h2o"
    assert _mean(policy) == round(0.4 * 512)
    assert [len(said["judged"]), len(said["judged"][0])] == [2, 2]
    assert f"policy=h2o policy.budget={policy.budget}" in result.stdout


def test_heads_that_retrieve_may_keep_everything(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    result = run(
        "calibrate", "--method", "retrieval", "--model", str(tiny_folder), *SMALL,
        "--output", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert list(_written(file).pattern.values()) == [None]
    assert _mean(_written(file)) == pytest.approx(0.4 * 512, abs=2)


def test_a_learned_policy_comes_as_a_model_that_carries_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    command = ["calibrate", "--method", "learned", "--model", str(tiny_folder), *SMALL]
    result = run(*command, "--output", str(folder))
    assert result.exit_code == 0, result.output
    loaded = load_model(ModelConfig(name=str(folder)))
    assert loaded.policy is not None
    assert loaded.policy.config.pattern == summary(result.stdout)["pattern"]
    assert _mean(loaded.policy.config) == round(0.4 * 512)
    answer = run("generate", "--raw", "--model", str(folder), "--max-tokens", "4", "hello " * 200)
    assert answer.exit_code == 0, answer.output
    assert "evicted" in answer.stderr
    again = run(*command, "--output", str(folder))
    assert again.exit_code == 2
    assert "exists; name a new folder" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "2048"], "--budget=2048.0 is not allowed: below --context=2048"),
        (["--method", "learned"], "--method=learned: say where its weights go"),
        (["--method", "learned", "--output", "x.yaml"], "--output=x.yaml: a learned policy has"),
        (["--context", "512", "--budget", "20"], "--budget: 20 entries a head on average are not"),
        (["--context", "512", "--windows", "900"], "--windows=900 of --context=512 need 460800"),
        (["--text", "no-such-text"], "--text='no-such-text': no such file"),
    ],
)
def test_mistakes_are_one_line(tiny_folder: Path, arguments: list[str], message: str) -> None:
    result = run("calibrate", "--model", str(tiny_folder), "--probes", "1", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
