"""`load_config`: every mistake is refused in one line that names key, value and cure."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from llamahome.config import ConfigError, ServeConfig, ServeRoot, TrainRoot, load_config
from llamahome.config.other_names import OTHER_NAMES


def refusal(values: dict, root: type = TrainRoot) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(OmegaConf.create(values), root)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_nothing_given_gives_the_defaults():
    assert load_config(OmegaConf.create({}), TrainRoot) == TrainRoot()
    assert load_config(OmegaConf.create({}), ServeRoot) == ServeRoot()


def test_values_arrive_at_every_depth():
    given = {"trainer": {"steps": 7, "lora": {"r": 3, "target_modules": ["q_proj"]}}}
    loaded = load_config(OmegaConf.create(given), TrainRoot)
    assert loaded.trainer.steps == 7
    assert loaded.trainer.lora.r == 3
    assert loaded.trainer.lora.target_modules == ["q_proj"]
    assert loaded.trainer.lora.alpha == TrainRoot().trainer.lora.alpha


@pytest.mark.parametrize(
    ("root", "values", "entries"),
    [
        (TrainRoot, {"policy": {"budget": 0.25}, "data": {"context_length": 2048}}, 512),
        (TrainRoot, {"policy": {"budget": 0.25}}, 256),  # from 1,024 tokens, the default
        (ServeRoot, {"policy": {"budget": 0.1}, "engine": {"max_length": 4096}}, 410),
        (ServeRoot, {"policy": {"budget": 1.0}}, 8192),
        (ServeRoot, {"policy": {"budget": 300}}, 300),
    ],
)
def test_a_budget_of_up_to_1_is_a_share_of_the_context(root, values, entries):
    assert load_config(OmegaConf.create(values), root).policy.budget == entries


def test_a_share_needs_room_too():
    assert refusal({"policy": {"name": "h2o", "budget": 0.1}}).startswith("policy.budget=102 ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainr": {}}, "trainr is not a config key: did you mean trainer?"),
        (
            {"trainer": {"stepz": 1}},
            "trainer.stepz is not a config key: did you mean trainer.steps?",
        ),
        (
            {"learning_rate": 1e-4},
            "learning_rate is not a config key: did you mean trainer.learning_rate?",
        ),
        (
            {"trainer": {"num_train_epochs": 3}},
            "trainer.num_train_epochs is not a config key: did you mean trainer.steps "
            "(optimiser steps)?",
        ),
        (
            {"trainer": {"lora": {"alhpa": 1}}},
            "trainer.lora.alhpa is not a config key: did you mean trainer.lora.alpha?",
        ),
        (
            {"model": {"zzz": 1}},
            "model.zzz is not a config key: choose one of name, revision, dtype",
        ),
        (
            {"model": {"x.y": 1}},
            "model.x.y is not a config key: choose one of name, revision, dtype",
        ),
        (
            {"engine": {}},
            "engine is not a config key: choose one of model, policy, data, trainer, deepspeed, "
            "tracking, search, cluster, log",
        ),
    ],
)
def test_unknown_key_names_its_neighbour(values, message):
    assert refusal(values) == message


def test_names_of_other_programs_lead_to_keys():
    keys = [named.partition(" ")[0].partition("=")[0] for named in OTHER_NAMES.values()]
    found = OmegaConf.structured(TrainRoot)
    assert [key for key in keys if not _has(found, key)] == []


def _has(found, key):
    section, _, name = key.rpartition(".")
    return name in OmegaConf.select(found, section)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer": {"steps": "many"}}, "trainer.steps='many' is not allowed: it must be int"),
        ({"trainer": {"steps": 1.5}}, "trainer.steps=1.5 is not allowed: it must be int"),
        ({"trainer": {"steps": None}}, "trainer.steps=None is not allowed: it must be int"),
        (
            {"trainer": {"use_gpu": "maybe"}},
            "trainer.use_gpu='maybe' is not allowed: it must be bool",
        ),
        (
            {"trainer": {"learning_rate": "fast"}},
            "trainer.learning_rate='fast' is not allowed: it must be float",
        ),
        (
            {"policy": {"budget": "all"}},
            "policy.budget='all' is not allowed: it must be int or null",
        ),
        ({"model": {"revision": []}}, "model.revision=[] is not allowed: it must be str or null"),
        (
            {"trainer": {"lora": {"target_modules": "q_proj"}}},
            "trainer.lora.target_modules='q_proj' is not allowed: it must be list[str]",
        ),
        ({"trainer": 3}, "trainer=3 is not allowed: it is a section; set trainer.<key>"),
        ({"trainer": None}, "trainer=None is not allowed: it is a section; set trainer.<key>"),
        (
            {"trainer": {"lora": [1]}},
            "trainer.lora=[1] is not allowed: it is a section; set trainer.lora.<key>",
        ),
    ],
)
def test_wrong_type_names_the_right_one(values, message):
    assert refusal(values) == message


@pytest.mark.parametrize("path", ["trainer", "trainer.steps", "trainer.lora.r"])
def test_missing_value_says_how_to_set_it(path):
    values = OmegaConf.create({})
    OmegaConf.update(values, path, "???")
    assert refusal(values) == f"{path} has no value: set {path}=..."


def test_numbers_may_come_as_text_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLAMAHOME_TEST_STEPS", "12")
    given = OmegaConf.create({"trainer": {"steps": "${oc.env:LLAMAHOME_TEST_STEPS}"}})
    assert load_config(given, TrainRoot).trainer.steps == 12


def test_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("LLAMAHOME_TEST_STEPS", raising=False)
    message = refusal({"trainer": {"steps": "${oc.env:LLAMAHOME_TEST_STEPS}"}})
    assert message.startswith("trainer.steps: ")
    assert "LLAMAHOME_TEST_STEPS" in message


def test_dangling_interpolation_is_named():
    assert refusal({"model": {"name": "${modle.name}"}}).startswith("model.name: ")
    assert refusal({"trainer": "${data}", "data": {}}).startswith("trainer={}")


def test_api_key_is_never_shown():
    loaded = load_config(
        OmegaConf.create({"serve": {"api_key": "sesame", "host": "0.0.0.0"}}), ServeRoot
    )
    assert loaded.serve.api_key == "sesame"
    assert "sesame" not in f"{loaded} {loaded!r} {loaded.serve}"
    assert "port=8000" in repr(loaded.serve)
    assert "sesame" not in refusal({"serve": {"api_key": "sesame", "port": 0}}, ServeRoot)


def test_api_key_of_a_wrong_type_is_not_shown_either():
    with pytest.raises(ConfigError) as caught:
        load_config(OmegaConf.create({"serve": {"api_key": ["sesame"]}}), ServeRoot)
    assert str(caught.value) == "serve.api_key=<hidden> is not allowed: it must be str or null"
    assert caught.value.__suppress_context__  # nor in the traceback, by way of OmegaConf's error


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_listening_beyond_loopback_needs_a_key(host):
    with pytest.raises(ConfigError, match=r"serve\.host=.* needs serve\.api_key"):
        ServeConfig(host=host)
    with pytest.raises(ConfigError, match=r"serve\.host=.* needs serve\.api_key"):
        ServeConfig(host=host, api_key="")
    assert ServeConfig(host=host, api_key="k").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    assert ServeConfig(host=host).api_key is None


def test_a_login_in_a_url_is_not_repeated():
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        ServeConfig(otlp_traces_endpoint="http://ann:secret@host/v1/traces")
    assert "secret" not in str(caught.value)
