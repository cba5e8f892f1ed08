"""Every YAML of conf/ composes and passes the dataclasses; every key is settable and read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

import serve.__main__  # noqa: F401  registers its root with Hydra
import train.__main__  # noqa: F401
from llamahome.config import ConfigError, EvalRoot, ServeRoot, TrainRoot, load_config

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
ROOTS = {"train": TrainRoot, "serve": ServeRoot, "eval": EvalRoot}
ConfigStore.instance().store(name="eval_root", node=EvalRoot)  # as `llamahome eval` does
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "experiment"
)
# Options that need a value from the user, and its key.
TO_BE_GIVEN = {
    ("data", "alpaca"): "data.train_file",
    ("data", "auto"): "data.train_file",
    ("data", "chat"): "data.train_file",
    ("data", "custom"): "data.train_file",
    ("serve", "cluster"): "serve.api_key",
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(primary: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(primary, overrides=list(overrides))


def load(primary: str, *overrides: str):
    return load_config(composed(primary, *overrides), ROOTS[primary])


def keys(schema: type, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint):
            yield from keys(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def experiment_file(experiment: str) -> Path:
    return CONF / "experiment" / f"{experiment}.yaml"


def choices(experiment: str) -> dict[str, str]:
    """Return the options that an experiment chooses, by group."""
    entries = yaml.safe_load(experiment_file(experiment).read_text()).get("defaults", [])
    return {
        key.removeprefix("override").strip().lstrip("/"): option
        for entry in entries
        if entry != "_self_"
        for key, option in entry.items()
    }


def values(experiment: str) -> dict:
    """Return the sections in which an experiment sets keys."""
    content = yaml.safe_load(experiment_file(experiment).read_text())
    return {section: keys for section, keys in content.items() if section != "defaults"}


def applies_to(experiment: str) -> list[str]:
    """Return the primaries whose sections hold everything that an experiment sets or chooses."""
    sections = set(choices(experiment)) | set(values(experiment))
    return [p for p, root in ROOTS.items() if sections <= {field.name for field in fields(root)}]


def test_the_tree_is_where_the_tests_look_for_it():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROOTS)
    assert {"model", "policy", "data", "trainer"} <= {group for group, _ in OPTIONS}
    assert EXPERIMENTS
    nested = [p for p in CONF.rglob("*") if p.is_file() and len(p.relative_to(CONF).parts) > 2]
    assert not nested
    assert {p.suffix for p in CONF.rglob("*") if p.is_file()} == {".yaml"}


@pytest.mark.parametrize("primary", ROOTS)
def test_primary_loads(primary):
    assert isinstance(load(primary), ROOTS[primary])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_loads(group, option):
    where = [primary for primary, root in ROOTS.items() if group in get_type_hints(root)]
    assert where, f"conf/{group} is a section of no root"
    given = [f"{TO_BE_GIVEN[group, option]}=x"] if (group, option) in TO_BE_GIVEN else []
    for primary in where:
        section = composed(primary, f"{group}={option}", *given)[group]
        assert load_config(section, get_type_hints(ROOTS[primary])[group])


@pytest.mark.parametrize(("group", "option"), TO_BE_GIVEN)
def test_options_that_need_a_value_ask_for_it(group, option, monkeypatch):
    monkeypatch.delenv("LLAMAHOME_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=TO_BE_GIVEN[group, option].replace(".", r"\.")):
        load("serve" if group == "serve" else "train", f"{group}={option}")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_what_it_is(group, option):
    assert (CONF / group / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_holds_only_what_differs_from_the_dataclass(group, option):
    content = yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}
    defaults = [
        dict(leaves(asdict(getattr(root(), group))))
        for root in ROOTS.values()
        if group in get_type_hints(root)
    ]
    repeated = [
        key
        for key, value in leaves(content)
        if key != "name" and all(default[key] == value for default in defaults)
    ]
    assert repeated == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_holds_only_what_differs_from_its_options(experiment):
    chosen = [f"{group}={option}" for group, option in choices(experiment).items()]
    without = [composed(primary, *chosen) for primary in applies_to(experiment)]
    repeated = [
        key
        for key, value in leaves(values(experiment))
        if all(OmegaConf.select(config, key) == value for config in without)
    ]
    assert repeated == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_loads(experiment):
    where = applies_to(experiment)
    assert where, f"conf/experiment/{experiment}.yaml fits neither train nor serve"
    for primary in where:
        assert load(primary, f"experiment={experiment}") != load(primary)


@pytest.mark.parametrize("primary", ROOTS)
def test_every_key_can_be_set_without_a_plus(primary):
    everything = OmegaConf.to_container(composed(primary), resolve=False)
    assert set(dict(leaves(everything))) == set(keys(ROOTS[primary]))


def test_unknown_override_is_refused_with_and_without_a_plus():
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'trainer\.stepz'"):
        composed("train", "trainer.stepz=1")
    with pytest.raises(ConfigError, match=r"did you mean trainer\.steps\?"):
        load("train", "+trainer.stepz=1")


def test_override_of_a_wrong_type_or_an_unknown_option_is_refused():
    with pytest.raises(ConfigCompositionException, match=r"trainer\.steps"):
        composed("train", "trainer.steps=many")
    with pytest.raises(MissingConfigException, match="policy/h20"):
        composed("train", "policy=h20")


def test_command_line_wins_over_experiment_wins_over_group_option():
    experiment = next(e for e in EXPERIMENTS if applies_to(e) == ["train"])
    key, value = next((k, v) for k, v in leaves(values(experiment)) if type(v) is int)
    plain, chosen = composed("train"), composed("train", f"experiment={experiment}")
    overridden = composed("train", f"experiment={experiment}", f"{key}={value + 1}")
    assert OmegaConf.select(plain, key) != value
    assert OmegaConf.select(chosen, key) == value
    assert OmegaConf.select(overridden, key) == value + 1


def test_group_option_wins_over_dataclass():
    assert load("train", "trainer=lora").trainer.method == "lora"
    assert load("train", "policy=window").policy.name == "window"
    assert load("train", "policy=window", "policy.budget=200").policy.budget == 200


def test_a_pattern_can_be_given_on_the_command_line():
    loaded = load("train", "policy=h2o", "+policy.pattern={L0H1:null,L1:140}")
    assert loaded.policy.pattern == {"L0H1": None, "L1": 140}
    with pytest.raises(ConfigError, match=r"policy\.pattern='x' is not allowed"):
        load("train", "policy=h2o", "+policy.pattern={x:140}")
    with pytest.raises(ConfigError, match=r"policy\.pattern=.* dict\[str, int or null\]"):
        load_config(OmegaConf.create({"policy": {"pattern": {"L0": "many"}}}), TrainRoot)
    with pytest.raises(ConfigCompositionException, match=r"policy\.pattern"):
        load("train", "policy=h2o", "+policy.pattern={L0:many}")


def test_environment_gives_the_api_key_and_the_command_line_wins(monkeypatch):
    monkeypatch.setenv("LLAMAHOME_API_KEY", "from-environment")
    assert load("serve").serve.api_key == "from-environment"
    assert load("serve", "serve=cluster").serve.api_key == "from-environment"
    assert load("serve", "serve.api_key=given").serve.api_key == "given"
    monkeypatch.delenv("LLAMAHOME_API_KEY")
    assert load("serve").serve.api_key is None


def test_every_key_is_read_somewhere():
    read = {
        node.attr
        for folder in ("llamahome", "cluster", "train", "serve")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent != ROOT / "llamahome" / "config"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    dead = {key for root in ROOTS.values() for key in keys(root) if key.split(".")[-1] not in read}
    assert not dead
