"""Tokens of llama.cpp, which are those of training and serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from llamahome.data import RowEncoder
from llamahome.data.records import Chat
from llamahome.engine.text.chat import ChatEncoder
from llamahome.models import ModelManager
from tests.conftest import make_byte_tokenizer
from tests.train.engine import QUIET
from tests.train.publish.conftest import VOCABULARY, save_model, small, trained_tokenizer
from tests.train.publish.llama_cpp import llama_cpp
from train.errors import ExportError
from train.publish.gguf_file import check_gguf, write_gguf
from train.publish.gguf_tokenizer import SPLITS, GgufTokenizer, gguf_tokenizer
from train.publish.source import find_source

pytestmark = QUIET
HARD = (
    "Hi 1234's we'LL don't\n\n\n 56789  ünïcödé 日本語 \U0001f999\t\r\n  x=1;  <|im_end|> a\u00a0é "
    "  end\n \n  2024-11-27...!? \u0660\u0661 ①"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How much is 12 + 345?\n\nTell me, don't guess."},
    {"role": "assistant", "content": "It's 357."},
]


@pytest.mark.parametrize("split", SPLITS)
def test_llama_cpp_has_our_tokens(split: str, tmp_path: Path, manager: ModelManager) -> None:
    """The ids of one chat: in training, in serving, in the exported folder, in llama.cpp."""
    folder = save_model(tmp_path / "model", small(), split)
    source = find_source(str(folder), tmp_path, manager)
    file = tmp_path / "model.gguf"
    write_gguf(source, check_gguf(source, allow_dense=False), "f16", file)
    tokenizer = source.found.tokenizer()
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    trained = RowEncoder(tokenizer).encode(
        Chat(where="here", messages=CHAT, tools=[], learned=[None] * len(CHAT))
    )
    served = ChatEncoder(tokenizer, "tiny", split_special_tokens=True)
    with llama_cpp(file) as peer:
        assert peer.tokens(HARD) == tokenizer.encode(HARD)
        text = peer.chat(CHAT[:-1])
        prompt = peer.tokens(text)
    assert prompt == served.encode(CHAT[:-1])
    assert prompt == plain.apply_chat_template(CHAT[:-1], add_generation_prompt=True)["input_ids"]
    assert trained["input_ids"][: len(prompt)] == prompt
    whole = served.encode(CHAT, add_generation_prompt=False)
    assert trained["input_ids"] == whole
    assert plain.apply_chat_template(CHAT)["input_ids"] == whole


def test_tokens_around_a_text(tmp_path: Path, manager: ModelManager) -> None:
    folder = save_model(tmp_path / "model", small())
    _change(folder, lambda content: content.update(post_processor=_around("<|im_start|>")))
    source = find_source(str(folder), tmp_path, manager)
    file = tmp_path / "model.gguf"
    tokenizer = check_gguf(source, allow_dense=False)
    assert tokenizer.adds == {"bos": True, "eos": False}
    write_gguf(source, tokenizer, "f16", file)
    with llama_cpp(file) as peer:
        assert peer.tokens(HARD) == source.found.tokenizer().encode(HARD)


def test_ends_of_an_answer_and_rows_without_a_token() -> None:
    """Generation may end with several tokens; GGUF has a name for each of three."""
    translated = translate(trained_tokenizer("smollm"), GenerationConfig(eos_token_id=[0, 1]))
    assert translated.special == {
        "bos": 1,
        "eos": 2,
        "eot": 0,
        "eom": 1,
        "padding": 2,
        "unknown": 0,
    }
    assert translated.tokens[-1] == f"[PAD{VOCABULARY - 1}]"
    assert len(translated.kinds) == VOCABULARY
    with pytest.raises(ExportError, match=r"eos_token_id=\[0, 1, 3\]: GGUF holds three"):
        translate(trained_tokenizer("smollm"), GenerationConfig(eos_token_id=[0, 1, 3]))


def _around(*before: str) -> dict[str, Any]:
    ids = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    return {
        "type": "TemplateProcessing",
        "single": [
            *({"SpecialToken": {"id": name, "type_id": 0}} for name in before),
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in before
        },
    }


def _pre(step: dict[str, Any]) -> Any:
    return lambda content: content.update(pre_tokenizer=step)


def _model(**fields: Any) -> Any:
    return lambda content: content["model"].update(fields)


REFUSED = {
    "splits text in a way": _pre({"type": "Whitespace"}),
    "model=BPE with byte_fallback": _model(byte_fallback=True),
    "model.dropout=0.5 is lost": _model(dropout=0.5),
    "splits text in a way that GGUF is not": _model(ignore_merges=True),
    "normalizer=Lowercase would be lost": lambda c: c.update(normalizer={"type": "Lowercase"}),
    "lstrip=true of the token '<|endoftext|>'": lambda c: c["added_tokens"][0].update(lstrip=True),
    "adds more than bos": lambda c: c.update(
        post_processor=_around("<|im_start|>", "<|endoftext|>")
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message: str) -> None:
    tokenizer = trained_tokenizer("smollm")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    REFUSED[message](content)
    changed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    with pytest.raises(ExportError, match="tokenizer") as caught:
        translate(changed)
    assert message in str(caught.value)


def test_bytes_without_a_split_are_refused() -> None:
    with pytest.raises(ExportError, match="its pre_tokenizer splits text"):
        translate(make_byte_tokenizer())


def translate(
    tokenizer: PreTrainedTokenizerFast, ends: GenerationConfig | None = None
) -> GgufTokenizer:
    return gguf_tokenizer(tokenizer, ends or GenerationConfig(), VOCABULARY)


def _change(folder: Path, change: Any) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
