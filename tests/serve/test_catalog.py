"""The names of an endpoint's models."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from llamahome.config import ConfigError, EngineConfig, ModelConfig, ServeConfig, ServeRoot
from serve.catalog import Catalog, Target, first_catalog

ROOT = ServeRoot(
    model=ModelConfig(name="org/base", revision="v1"),
    engine=EngineConfig(slots=3, adapters={"pirate": "/adapters/pirate"}),
    serve=ServeConfig(models={"small": "my-run", "other": "org/other"}),
)


def test_the_catalog_of_a_config_has_the_model_its_adapters_and_the_others() -> None:
    catalog = first_catalog(ROOT)
    assert catalog.names == ["org/base", "pirate", "small", "other"]
    small = catalog.target("small")
    assert small is not None
    assert small.served.model == ModelConfig(name="my-run")  # without the other's revision
    assert (small.served.root, small.served.engine.slots) == ("my-run", 3)
    assert small.served.engine.adapters == {}
    assert catalog.target("pirate") == Target(catalog.default, "pirate")
    assert catalog.target("gpt-4") is None


@pytest.mark.parametrize(
    ("models", "name"), [({"mine": "run"}, "mine"), ({"pirate": "run"}, "pirate")]
)
def test_a_name_stands_for_one_model(models: dict[str, str], name: str) -> None:
    root = replace(ROOT, serve=ServeConfig(model_id="mine", models=models))
    with pytest.raises(ConfigError, match=f"serve.models='{name}'"):
        first_catalog(root)


def test_an_adapter_comes_and_goes_with_a_revision_each() -> None:
    first = first_catalog(ROOT)
    second = first.with_adapter("small", "formal", Path("/adapters/formal"))
    assert second.names == ["org/base", "pirate", "small", "formal", "other"]
    third = second.without_adapter("formal")
    assert third.names == first.names
    assert [c.revision for c in (first, second, third)] == [0, 1, 2]
    keys = {c.models[1].key for c in (first, second, third)}
    assert len(keys) == 3  # a folder may hold another adapter when it is loaded again
    assert first.default.key == third.default.key


def test_a_promotion_changes_what_a_name_stands_for() -> None:
    first = first_catalog(ROOT)
    second = first.promoted("small", "tuned", ModelConfig(name="/runs/tuned/model"))
    assert second.names == first.names
    before, after = first.models[1], second.models[1]
    assert (after.name, after.root, after.revision) == ("small", "tuned", 1)
    assert before.fingerprint != after.fingerprint


def test_a_key_is_the_same_in_every_process() -> None:
    catalog = first_catalog(ROOT)
    copy: Catalog = pickle.loads(pickle.dumps(catalog))
    assert [m.key for m in copy.models] == [m.key for m in first_catalog(ROOT).models]
