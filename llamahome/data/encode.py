"""Token ids and labels of a chat, through the model's own chat template."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llamahome.data.errors import DataError
from llamahome.data.records import Message, Record

# The label that torch's cross entropy ignores.
IGNORED = -100

# One sequence: input_ids, attention_mask and labels of the same length.
Row = dict[str, list[int]]


@dataclass(frozen=True)
class _Turn:
    """Character offsets of one assistant turn in the rendered text."""

    start: int  # just after the generation prompt
    content_end: int
    end: int  # after everything that the template writes for this turn


def encode(record: Record, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return token ids of the whole chat, with labels on the tokens that the model has to write.

    These are each assistant turn's text and the special token with which the template ends the
    turn (`<|im_end|>`, `<|eot_id|>`). If it uses none, they are everything it writes for the turn.
    A token that begins in the prompt is not learned, so an answer may lose leading spaces.
    Templates need no `{% generation %}` marks: turns are found by rendering the chat up to them.

    Raises:
        DataError: for a tokenizer without a chat template or without character offsets, a chat
            that the template refuses, or a template that renders earlier turns differently once
            later ones follow.
    """
    text, turns = _render(record["messages"], tokenizer)
    tokens = _tokenize(text, tokenizer)
    ids: list[int] = tokens["input_ids"]
    starts = [start for start, _ in tokens["offset_mapping"]]
    special = _special_ids(tokenizer)
    labels = [IGNORED] * len(ids)
    for turn in turns:
        first, last = bisect_left(starts, turn.start), bisect_left(starts, turn.end)
        after_content = range(bisect_left(starts, turn.content_end), last)
        closing = next((i for i in after_content if ids[i] in special), last - 1)
        labels[first : closing + 1] = ids[first : closing + 1]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _render(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[_Turn]]:
    text = _apply_template(messages, tokenizer)
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        is_last = i + 1 == len(messages)
        before = _apply_template(messages[:i], tokenizer, generate=True)
        upto = text if is_last else _apply_template(messages[: i + 1], tokenizer)
        if not (text.startswith(upto) and upto.startswith(before)):
            raise DataError(
                f"the chat template of {tokenizer.name_or_path!r} renders a turn differently once "
                f"later turns follow (messages[{i}] of {_name(messages)}), so what the model would "
                "write cannot be marked; use a template that only appends, or single-turn records"
            )
        start = len(before)
        # Templates may trim the text, so the trimmed text is searched for.
        content = message["content"].strip()
        found = upto.find(content, start)
        content_end = start if found < 0 else found + len(content)
        turns.append(_Turn(start, content_end, len(upto)))
    return text, turns


def _apply_template(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, generate: bool = False
) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use the model's "
            "instruction-tuned release, or put its chat_template.jinja next to tokenizer.json"
        )
    chat = cast(list[dict[str, str]], messages)
    try:
        return cast(
            str,
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate),
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses {_name(messages)}: {error}; "
            "change the record's turns to what the model's template allows"
        ) from error


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} gives no character offsets; "
            "convert it to a tokenizer.json (transformers' fast tokenizer)"
        )
    # The template has already written the begin-of-text token where the model wants one.
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}


def _name(messages: list[Message]) -> str:
    return f"the chat that begins {messages[0]['content'][:60]!r}"
