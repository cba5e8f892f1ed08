"""Model cards, as the hub's own client reads them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llamahome.models.four_bits import write_mark
from tests.train.engine import QUIET
from train.publish.card import public, write_card
from train.publish.data_facts import DataFacts, _facts
from train.publish.source import EMBEDDED_ID, Source

pytestmark = QUIET


def card(source: Source, kind: str, folder: Path, license: str | None = None) -> Any:
    write_card(source, kind, folder, name="owner/small", license=license, gap=0.0123)
    return ModelCard.load(folder / "README.md")


def test_front_matter(source: Source, tmp_path: Path) -> None:
    source = replace(source, base_id="owner/base")
    data = card(source, "adapter", tmp_path, "mit").data
    assert (data.base_model, data.license, data.library_name) == ("owner/base", "mit", "peft")
    assert data.pipeline_tag == "text-generation"
    assert data.datasets == ["owner/chats"]
    assert data.tags == ["llamahome", "kv-cache", "h2o", "lora", "conversational"]
    assert data.to_dict()["base_model_relation"] == "adapter"
    embedded = card(replace(source, base_id=EMBEDDED_ID), "merged", tmp_path)
    assert embedded.data.license == "apache-2.0"
    assert "4-bit" in embedded.text
    unknown = card(replace(source, base_id=None), "merged", tmp_path).data
    assert "base_model" not in unknown.to_dict()
    assert "license" not in unknown.to_dict()


def test_text(source: Source, tmp_path: Path) -> None:
    assert source.run is not None
    text = card(source, "merged", tmp_path).text
    data = Path(source.run.value("data.train_file"))
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    for part in (
        f"| chats.jsonl | 3 | {digest} |",
        "| owner/chats | on the hub | - |",
        "| `held-out loss, last` | 2.5000 |",
        "| `trainer.learning_rate` | 0.003 |",
        "llamahome serve model.name=owner/small",
        "policy `h2o`, budget 24 per KV head",
        "| `torch` | 2.",
    ):
        assert part in text
    data.unlink()
    assert (
        "| chats.jsonl | no longer there at export | - |" in card(source, "merged", tmp_path).text
    )


def test_a_base_of_four_bits_is_named(source: Source, tmp_path: Path) -> None:
    source = replace(source, base_id="owner/base")
    plain = card(source, "adapter", tmp_path).text
    assert "4 bits" not in plain
    assert 'AutoModelForCausalLM.from_pretrained("owner/base")' in plain
    assert source.adapter is not None
    write_mark(source.adapter)
    merged = card(source, "merged", tmp_path).text
    assert "merged, in float32, into the weights that those 4 bits hold" in merged
    assert "BitsAndBytesConfig" not in merged
    alone = card(source, "adapter", tmp_path).text
    assert "4 bits (QLoRA: NF4, double quantisation), and needs that base" in alone
    compile(alone.split("```python\n")[1].split("```")[0], "card", "exec")
    assert 'from_pretrained("owner/base", quantization_config=bits)' in alone


def test_data_at_a_url_is_named_without_server_and_signature() -> None:
    fact = _facts("https://user:secret@example.org/in/chats.jsonl?key=1", "auto")
    assert fact == DataFacts("chats.jsonl", "at a URL", None)


def test_a_card_names_no_place_of_this_machine(source: Source, tmp_path: Path) -> None:
    assert source.run is not None
    text = card(source, "merged", tmp_path).content
    assert "secret place" not in text
    assert str(tmp_path) not in text
    assert str(source.found.chain[-1].parent) not in text
    machine = source.run.directory / "environment.json"
    assert "machine" in machine.read_text()
    assert "machine" not in text


def test_gguf_is_said_to_be_served_dense(source: Source, tmp_path: Path) -> None:
    (tmp_path / "small-f16.gguf").touch()
    text = card(source, "gguf", tmp_path).text
    assert "llama-server -m small-f16.gguf" in text
    assert "serves this model **dense**" in text
    assert "0.0123 nats" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/runs/first/model", "first"),
        ("~/data/chats.jsonl", "chats.jsonl"),
        (["../a/b.jsonl", "owner/chats:train"], ["b.jsonl", "owner/chats:train"]),
        ("s3://key:secret@bucket/chats.jsonl?token=abc", "s3://bucket/chats.jsonl"),
        (0.5, 0.5),
    ],
)
def test_public_values(value: object, shown: object) -> None:
    assert public(value) == shown
