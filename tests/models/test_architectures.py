"""Every causal language model class of transformers: equal to `generate`, or refused at load.

    python -m tests.models.test_architectures

writes the table of docs/models.md, against which each class is tested.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from llamahome.attention import build_policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine import Engine, SamplingParams
from llamahome.engine.runners.native_model import unsupported
from llamahome.models import ModelError, ModelManager, find_model, load_model
from llamahome.models.pretrained import decoder_class
from llamahome.models.probe import check_layers
from tests.conftest import make_byte_tokenizer
from tests.models.architectures import default_config, tiny_config, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CLASSES = {cls.model_type: cls for cls in MODEL_FOR_CAUSAL_LM_MAPPING}
PROMPT = torch.arange(40, 61)[None]
ANSWER = 8


def outcome(config_class: type[PreTrainedConfig], parent: Path) -> str:
    """Return what becomes of a class: the runners that answer as `generate` does, or why none."""
    folder = parent / config_class.model_type
    try:
        default = default_config(config_class)
        model_class = decoder_class(default)
        check_layers(default, folder)
        config = tiny_config(config_class)
        check_layers(config, folder)
    except ModelError as error:
        return _reason(error, folder)
    model = tiny_model(model_class, config)
    model.save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)
    try:
        loaded = load_model(ModelConfig(name=str(folder)), manager=ModelManager(parent))
    except ModelError as error:
        return _reason(error, folder)
    expected = _generated(model)
    policy = build_policy(PolicyConfig(name="full", budget=None), loaded.model)
    native = unsupported(loaded.model.config, policy.config, 64) is None
    runners = ["torch", "native"] if native else ["torch"]
    for runner in runners:
        sizes = EngineConfig(slots=1, max_length=64, runner=runner, weights="fp32")
        assert _answered(Engine(loaded.model, policy, sizes)) == expected, runner
    if native:
        found = find_model(ModelConfig(name=str(folder)), ModelManager(parent))
        decoder = found.decoder()
        assert decoder is not None
        sizes = EngineConfig(slots=1, max_length=64, weights="fp32")
        assert _answered(Engine(decoder, policy, sizes)) == expected
    return "served: " + ", ".join(runners)


def _generated(model: Any) -> list[int]:
    ids = model.generate(
        PROMPT, max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, use_cache=False
    )
    answer: list[int] = ids[0, PROMPT.shape[1] :].tolist()
    return answer


def _answered(engine: Engine) -> list[int]:
    engine.submit(
        "a", PROMPT[0].tolist(), SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
    )
    tokens = []
    while engine.has_work:
        tokens += [delta.token for delta in engine.step() if delta.token is not None]
    return tokens


def _reason(error: ModelError, folder: Path) -> str:
    text = str(error).replace(f"{folder / 'config.json'}: ", "").replace(f"{folder}: ", "")
    text = re.sub(r"model_type='[^']*' ", "", text.split("; ")[0])
    return "refused: " + re.sub(r"off by [\d.e+-]+ nats", "off", text)


def rows() -> dict[str, str]:
    """Read the table of docs/models.md: by model_type, its outcome."""
    found = re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return dict(found)


def test_the_table_names_every_class() -> None:
    assert list(rows()) == sorted(CLASSES)


@pytest.mark.filterwarnings("ignore")  # transformers warns about defaults of its own
@pytest.mark.parametrize("model_type", sorted(CLASSES))
def test_a_class_answers_as_generate_or_is_refused(model_type: str, tmp_path: Path) -> None:
    assert outcome(CLASSES[model_type], tmp_path) == rows()[model_type]


def main() -> None:
    with tempfile.TemporaryDirectory() as parent:
        table = [
            f"| `{name}` | {outcome(CLASSES[name], Path(parent))} |" for name in sorted(CLASSES)
        ]
    page = PAGE.read_text()
    head = page[: page.rindex("| --- | --- |\n") + len("| --- | --- |\n")]
    PAGE.write_text(head + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
