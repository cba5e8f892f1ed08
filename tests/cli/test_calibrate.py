"""`llamahome calibrate` as a user types it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llamahome.config import PolicyConfig, load_config
from tests.cli.terminal import run, summary


def test_the_policy_it_writes_is_the_one_it_prints(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "mine.yaml"
    result = run(
        "calibrate", "--model", str(tiny_folder), "--context", "512", "--budget", "0.4",
        "--length", "256", "--probes", "2", "--output", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = summary(result.stdout)
    written = OmegaConf.load(file)
    assert isinstance(written, DictConfig)
    policy = load_config(written, PolicyConfig)
    assert (policy.budget, policy.pattern) == (said["budget"], said["pattern"])
    assert list(policy.pattern.values()) == [None]
    assert [len(said["scores"]), len(said["scores"][0])] == [2, 2]
    assert f"policy.budget={policy.budget}" in result.stdout


def test_a_budget_of_the_context_is_refused(tiny_folder: Path) -> None:
    result = run("calibrate", "--model", str(tiny_folder), "--budget", "2048")
    assert result.exit_code == 2
    assert "--budget=2048.0 is not allowed: below --context=2048" in result.stderr
