"""A fast tokenizer in GGUF's words: tokens, merges, the way text is split, the chat template.

llama.cpp has its own code for every way to split text before the merges, and a name for each
(`llama_vocab::impl::load` in llama.cpp's llama-vocab.cpp). A tokenizer that splits otherwise would
give other tokens, so it is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import GenerationConfig, PreTrainedTokenizerFast

from train.errors import ExportError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(digits: str) -> list[dict[str, Any]]:
    pattern = {"Regex": _CONTRACTIONS + digits + _REST}
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [cut, _byte_level(False)]


# Name -> steps of the pre-tokenizer, and whether whole words go before merges.
SPLITS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([_byte_level(True)], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _byte_level(True)], False),
    "llama-bpe": (_split(r"\p{N}{1,3}"), True),
    "qwen2": (_split(r"\p{N}"), False),
}
CURE = "use --format merged, and llama.cpp's own script to convert it"


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer that llama.cpp can express.

    Attributes:
        split: llama.cpp's name of the way text is split.
        tokens, kinds: of each id of the model's vocabulary.
        merges: pairs, first the ones that are merged first.
        special: ids by GGUF's names: bos, eos, eot, eom, padding, unknown.
        adds: whether a text begins with bos, and ends with eos.
    """

    split: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]
    special: dict[str, int]
    adds: dict[str, bool]
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        for name, added in self.adds.items():
            writer.add_bool(f"tokenizer.ggml.add_{name}_token", added)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def gguf_tokenizer(
    tokenizer: PreTrainedTokenizerFast, ends: GenerationConfig, vocabulary: int
) -> GgufTokenizer:
    """Translate a tokenizer of byte-level BPE.

    Args:
        ends: names the tokens that end an answer.
        vocabulary: rows of the model's embeddings; ids beyond the tokenizer's are padded.

    Raises:
        ExportError: for what llama.cpp would do otherwise; names the field.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    split = _split_name(backend)
    added = _added_tokens(backend)
    texts = [tokenizer.backend_tokenizer.id_to_token(i) for i in range(len(tokenizer))]
    tokens = [text for text in texts if text is not None]
    if len(tokens) > vocabulary or len(tokens) < len(texts):
        raise ExportError(
            f"the tokenizer has {len(texts)} tokens, some without a text, and the model "
            f"{vocabulary}; save it again from the model that it belongs to"
        )
    kinds = [_kind(added.get(token)) for token in range(len(tokens))]
    unused = range(len(tokens), vocabulary)
    return GgufTokenizer(
        split=split,
        tokens=tokens + [f"[PAD{token}]" for token in unused],
        kinds=kinds + [TokenType.UNUSED for _ in unused],
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in _merges(backend)],
        special=_special_ids(tokenizer, ends),
        adds=_additions(tokenizer),
        chat_template=_chat_template(tokenizer),
    )


def _split_name(backend: dict[str, Any]) -> str:
    model = backend["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte_fallback" if model["type"] == "BPE" else model["type"]
        raise ExportError(f"tokenizer.json: model={kind} is not byte-level BPE; {CURE}")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise ExportError(f"tokenizer.json: model.{field}={model[field]!r} is lost; {CURE}")
    steps = _steps(backend["pre_tokenizer"])
    found = (steps, bool(model.get("ignore_merges")))
    name = next((name for name, split in SPLITS.items() if split == found), None)
    if name is None:
        raise ExportError(
            f"tokenizer.json: its pre_tokenizer splits text in a way that GGUF is not written for "
            f"(known: {', '.join(SPLITS)}); {CURE}"
        )
    normalizer = backend["normalizer"]
    # llama.cpp leaves NFC out for Qwen: the same for text that is in NFC, as nearly all is.
    if normalizer is not None and (name != "qwen2" or normalizer != {"type": "NFC"}):
        raise ExportError(f"tokenizer.json: normalizer={normalizer['type']} would be lost; {CURE}")
    return name


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps without `trim_offsets`, which changes no token."""
    if pre_tokenizer is None:
        return []
    whole = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [{key: step[key] for key in step if key != "trim_offsets"} for step in whole]


def _added_tokens(backend: dict[str, Any]) -> dict[int, dict[str, Any]]:
    for token in backend["added_tokens"]:
        for field in ("lstrip", "rstrip", "single_word"):
            if token[field]:
                raise ExportError(
                    f"tokenizer.json: {field}=true of the token {token['content']!r} would be "
                    f"lost; {CURE}"
                )
    return {token["id"]: token for token in backend["added_tokens"]}


def _kind(added: dict[str, Any] | None) -> TokenType:
    if added is None:
        return TokenType.NORMAL
    return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED


def _merges(backend: dict[str, Any]) -> list[Any]:
    merges: list[Any] = backend["model"]["merges"]
    return merges


def _special_ids(tokenizer: PreTrainedTokenizerFast, ends: GenerationConfig) -> dict[str, int]:
    eos = ends.eos_token_id
    stops = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    ids = [token for token in dict.fromkeys(stops) if token is not None]
    if len(ids) > len(("eos", "eot", "eom")):
        raise ExportError(f"generation_config.json: eos_token_id={eos}: GGUF holds three; {CURE}")
    named = {
        "bos": tokenizer.bos_token_id,
        **dict(zip(("eos", "eot", "eom"), ids, strict=False)),
        "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id,
    }
    return {name: token for name, token in named.items() if token is not None}


def _additions(tokenizer: PreTrainedTokenizerFast) -> dict[str, bool]:
    """Return which tokens are put around a text."""
    text = "a"
    plain = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.encode(text)
    begins = whole[: len(whole) - len(plain)] == [tokenizer.bos_token_id]
    ends = whole[len(plain) + begins :] == [tokenizer.eos_token_id]
    if len(whole) != len(plain) + begins + ends:
        raise ExportError(
            "tokenizer.json: its post_processor adds more than bos before and eos after a text, "
            f"which would be lost; {CURE}"
        )
    return {"bos": begins, "eos": ends}


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
