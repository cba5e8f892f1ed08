"""Model cards for the Hugging Face hub: base, data, config, figures, and how to serve the model.

A card is public, so it holds no path of a machine, no host name, and nothing from a URL but its
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import ModelCard, ModelCardData

from llamahome.config import PolicyConfig
from llamahome.models.four_bits import is_on_four_bits
from train.publish.data_facts import DataFacts, data_facts
from train.publish.gguf_preflight import served_dense
from train.publish.source import EMBEDDED_ID, EMBEDDED_LICENSE, Source
from train.runs.environment import PACKAGES, read_environment
from train.runs.tables import FIGURES, PLACE, rounded, spelled

LIBRARIES = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}
RELATIONS = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}
SECTIONS = ("model.", "policy.", "data.", "trainer.", "deepspeed.")  # the others are of machines
SHOWN = ("python", *PACKAGES, "git_revision")
HIDDEN_FIGURES = ("state", "size")


def write_card(
    source: Source, kind: str, folder: Path, *, name: str, license: str | None, gap: float
) -> None:
    """Write `folder/README.md`.

    Args:
        name: the model's name in commands, such as its id on the hub.
        license: its identifier on the hub; None leaves it out unless the base's is known.
        gap: mean difference of log-probabilities that rounding makes, in nats.
    """
    facts = data_facts(source.run) if source.run is not None else []
    front = ModelCardData(
        base_model=source.base_id,
        base_model_relation=RELATIONS[kind] if source.base_id else None,
        library_name=LIBRARIES[kind],
        pipeline_tag="text-generation",
        license=license or (EMBEDDED_LICENSE if source.base_id == EMBEDDED_ID else None),
        datasets=[fact.hub_id for fact in facts if fact.hub_id] or None,
        tags=_tags(source, kind),
        ignore_metadata_errors=False,
    )
    body = "\n\n".join(_paragraphs(source, kind, folder, name, facts, gap))
    ModelCard(f"---\n{front.to_yaml()}\n---\n\n{body}\n").save(folder / "README.md")


def public(value: Any) -> Any:
    """Return a value of a config without paths of a machine, and without a URL's secrets."""
    if isinstance(value, list):
        return [public(each) for each in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        url = urlsplit(value)
        return f"{url.scheme}://{url.hostname or ''}{url.path}"
    path = Path(value)
    if path.is_absolute() or value.startswith(("~", "..")):
        return path.parent.name if path.name == "model" else path.name
    return value


def _tags(source: Source, kind: str) -> list[str]:
    policy, run = source.found.policy_config, source.run
    tags = ["llamahome", "kv-cache"] + ([policy.name] if policy is not None else [])
    if run is not None and run.value("trainer.method") == "lora":
        tags.append("lora")
    if run is not None and run.value("trainer.objective") != "cross_entropy":
        tags.append(run.value("trainer.objective"))
    if source.found.tokenizer().chat_template:
        tags.append("conversational")
    return tags + (["gguf"] if kind == "gguf" else [])


def _paragraphs(
    source: Source, kind: str, folder: Path, name: str, facts: list[DataFacts], gap: float
) -> list[str]:
    run = source.run
    base = f"[{source.base_id}](https://huggingface.co/{source.base_id})" if source.base_id else ""
    parts = [
        f"# {name.rpartition('/')[2]}",
        f"{'Fine-tuned' if run else 'Exported'} with LlamaHome{' from ' + base if base else ''}"
        f"{_attention(source.found.policy_config)}{_embedded(source)}{_four_bits(source, kind)}",
        "## Use",
        _usage(source, kind, folder, name, gap),
    ]
    if run is None:
        return parts
    changes = {
        key: public(value)
        for key, value in run.changes.items()
        if key.startswith(SECTIONS) and key not in PLACE
    }
    environment = read_environment(run.directory)
    tables = {
        "Data": _table(
            ("source", "records", "SHA-256 at export"),
            [(fact.name, fact.size, fact.digest or "-") for fact in facts],
        ),
        "Figures": _pairs(
            {key: of(run) for key, of in FIGURES.items() if key not in HIDDEN_FIGURES}
        ),
        "Config": _pairs({key: spelled(value) for key, value in changes.items()}),
        "Environment": _pairs({key: environment.get(key) or "-" for key in SHOWN}),
    }
    for title, table in tables.items():
        parts += [f"## {title}", table]
    return parts


def _attention(policy: PolicyConfig | None) -> str:
    if policy is None or not served_dense(policy):
        return ", with full attention."
    return (
        f", for a KV cache of fixed size: policy `{policy.name}`, budget {spelled(policy.budget)} "
        f"per KV head (sink {policy.sink}, recent {policy.recent}, interval {policy.interval}). "
        "The model was trained with the eviction that serves it."
    )


def _embedded(source: Source) -> str:
    if source.base_id != EMBEDDED_ID:
        return ""
    return " The base was read from its 4-bit GGUF file, so it differs by rounding from that model."


def _four_bits(source: Source, kind: str) -> str:
    if not _is_on_four_bits(source):
        return ""
    trained = " Its adapter was trained on a base of 4 bits (QLoRA: NF4, double quantisation)"
    if kind == "adapter":
        return f"{trained}, and needs that base; on the original weights it predicts other text."
    return f"{trained} and merged, in float32, into the weights that those 4 bits hold."


def _is_on_four_bits(source: Source) -> bool:
    return source.adapter is not None and is_on_four_bits(source.adapter)


def _usage(source: Source, kind: str, folder: Path, name: str, gap: float) -> str:
    if kind == "gguf":
        file = next(folder.glob("*.gguf")).name
        dense = served_dense(source.found.policy_config)
        note = (
            "\n\nllama.cpp has no eviction, so it serves this model **dense**: with full attention "
            "and a cache that grows with the text, which is not how it was trained."
            if dense
            else ""
        )
        return (
            f"```\nllama-server -m {file}\n```\n\nRounding changes log-probabilities by "
            f"{rounded(gap)} nats on average.{note}"
        )
    serve = f"```\nllamahome serve model.name={name}\n```\n\nserves it under its policy"
    if kind == "adapter":
        code = _adapter_code(source, name)
    else:
        code = (
            "from transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{name}")'
        )
    return f"{serve}. Without LlamaHome it runs with full attention:\n\n```python\n{code}\n```"


def _adapter_code(source: Source, name: str) -> str:
    imports, base = "AutoModelForCausalLM", f'"{source.base_id}"'
    bits = ""
    if _is_on_four_bits(source):
        imports += ", BitsAndBytesConfig"
        base += ", quantization_config=bits"
        bits = (
            'bits = BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            "bnb_4bit_use_double_quant=True\n)\n"
        )
    return (
        f"from peft import PeftModel\nfrom transformers import {imports}\n\n"
        f"{bits}base = AutoModelForCausalLM.from_pretrained({base})\n"
        f'model = PeftModel.from_pretrained(base, "{name}")'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return _table(("", "value"), [(f"`{key}`", str(value)) for key, value in values.items()])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
