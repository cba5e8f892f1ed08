"""Token ids and labels of records."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamahome.data.chat_template import (
    ChatError,
    ChatTemplate,
    ControlTokenError,
    NoTemplateError,
    private_text,
)
from llamahome.data.errors import BadRecord, DataError
from llamahome.data.records import Chat, Completion, Message, Preference, Record, Tokens

# The label that torch's cross entropy ignores.
IGNORED = -100

# One sequence: input_ids, attention_mask and labels of the same length. Two answers to one prompt
# are a row whose `documents` are 0, the chosen one, and 1.
Row = dict[str, list[int]]


@dataclass(frozen=True)
class _Turn:
    """Character offsets of one turn in the rendered text."""

    start: int  # for the assistant, just after the generation prompt
    content_end: int
    end: int  # after everything that the template writes for this turn


class RowEncoder:
    """Makes rows of records: token ids, with labels on the tokens that the model has to write.

    Args:
        train_on: `assistant` learns each assistant turn, `last` the last one, `all` every token.
            A message's `train` or `weight` turns it off, and for `last` another one on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, train_on: str = "assistant") -> None:
        self._tokenizer = tokenizer
        self._train_on = train_on

    def encode(self, record: Record) -> Row:
        """Return a record's row.

        In a chat, the learned tokens are the assistant turn's text and tool calls, and the special
        token with which the template ends the turn (`<|im_end|>`, `<|eot_id|>`). A token that
        begins in the prompt is not learned, so an answer may lose leading spaces. Templates need
        no `{% generation %}` marks: turns are found by rendering the chat up to them.

        Raises:
            BadRecord: for a chat that the template refuses or leaves a part out of, a template
                that renders earlier turns differently once later ones follow, or ids that the
                tokenizer does not have.
            DataError: for a tokenizer without a chat template, without character offsets, or
                without a token that ends a turn.
        """
        match record:
            case Chat():
                return self._chat(record)
            case Completion():
                return self._completion(record)
            case Tokens():
                return self._tokens(record)
            case Preference():
                return _pair(self.encode(record.chosen), self.encode(record.rejected))

    @property
    def _name(self) -> str:
        return repr(self._tokenizer.name_or_path)

    def _chat(self, chat: Chat) -> Row:
        try:
            return self._encoded_chat(chat)
        except NoTemplateError as error:
            raise DataError(
                f"the tokenizer of {self._name} has no chat template; use the model's "
                "instruction-tuned release, or put its chat_template.jinja next to tokenizer.json"
            ) from error
        except ControlTokenError as error:
            raise BadRecord(
                f"{chat.where}: the tokenizer of {self._name} cannot take {error} in a message as "
                "text; remove it or the record"
            ) from error
        except ChatError as error:
            raise BadRecord(
                f"{chat.where}: the chat template of {self._name} refuses this chat: {error}; "
                "change the record's turns to what the model's template allows"
            ) from error

    def _encoded_chat(self, chat: Chat) -> Row:
        rendered = self._template.render(chat.messages, tools=chat.tools)
        self._check_tools(chat)
        encoded = self._template.encode(rendered)
        text = self._template.plain(rendered)
        is_learned = self._is_learned(chat)
        learns_all = self._train_on == "all"
        labels = list(encoded.ids) if learns_all else [IGNORED] * len(encoded.ids)
        last = max(i for i, message in enumerate(chat.messages) if message["role"] == "assistant")
        for i, message in enumerate(chat.messages):
            if learns_all and is_learned[i] and i != last:
                continue  # it has its labels, and one turn shows how the template ends them
            if not learns_all and not is_learned[i]:
                continue
            turn = self._turn(chat, i, text)
            first = bisect_left(encoded.starts, turn.start)
            end = bisect_left(encoded.starts, turn.end)
            if not is_learned[i]:
                labels[first:end] = [IGNORED] * (end - first)
                continue
            content_end = bisect_left(encoded.starts, turn.content_end)
            closing = self._closing(encoded.ids, content_end, end, "tool_calls" in message)
            labels[first : closing + 1] = encoded.ids[first : closing + 1]
        return _row(encoded.ids, labels)

    def _is_learned(self, chat: Chat) -> list[bool]:
        answers = [m["role"] == "assistant" for m in chat.messages]
        if self._train_on == "all":
            chosen = [True] * len(answers)
        elif self._train_on == "last":
            last = max(i for i, is_answer in enumerate(answers) if is_answer)
            chosen = [i == last for i in range(len(answers))]
        else:
            chosen = answers
        return [by if said is None else said for by, said in zip(chosen, chat.learned, strict=True)]

    def _turn(self, chat: Chat, i: int, text: str) -> _Turn:
        """Find a message's turn: from what a prompt up to it ends with, to what follows it."""
        message = chat.messages[i]
        upto = self._upto(chat, i + 1)
        before = self._header(chat) if i == 0 else self._upto(chat, i, message["role"])
        if not (text.startswith(upto) and upto.startswith(before)):
            raise BadRecord(
                f"{chat.where}: the chat template of {self._name} renders turn {i} differently "
                "once later turns follow, so what the model would write cannot be marked; use a "
                "template that only appends, data.train_on=last, or single-turn records"
            )
        # Templates may trim the text, so the trimmed text is searched for.
        content = message["content"].strip()
        found = upto.find(content, len(before)) if content else -1
        content_end = len(before) if found < 0 else found + len(content)
        return _Turn(len(before), content_end, len(upto))

    def _upto(self, chat: Chat, count: int, answers: str = "") -> str:
        rendered = self._template.render(
            chat.messages[:count],
            tools=chat.tools,
            add_generation_prompt=answers == "assistant",
        )
        return self._template.plain(rendered)

    def _header(self, chat: Chat) -> str:
        """Return what the template writes before the text of a chat's first turn.

        No prompt comes before it, so two turns that differ in their text are compared.
        """
        if chat.messages[0]["role"] != "assistant":
            return ""
        texts = [
            self._template.render([{**chat.messages[0], "content": content}], tools=chat.tools)
            for content in "ab"
        ]
        pairs = zip(*map(self._template.plain, texts), strict=False)
        return "".join(
            one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        )

    def _closing(self, ids: list[int], content_end: int, end: int, calls_tools: bool) -> int:
        """Return the place of the token that ends a turn; tool calls have special tokens, too."""
        places = range(content_end, end)
        ordered = reversed(places) if calls_tools else places
        closing = next((i for i in ordered if ids[i] in self._special_ids), None)
        if closing is None:
            raise DataError(
                f"the chat template of {self._name} ends an assistant's turn with no special "
                "token, so the model would not learn to stop; end the turn with eos_token in "
                "chat_template.jinja"
            )
        return closing

    def _check_tools(self, chat: Chat) -> None:
        """Refuse a chat whose tools, calls, results or words next to a call are not written."""
        probe = private_text()
        if chat.tools:
            tools = [{**t, "function": {**t["function"], "name": probe}} for t in chat.tools]
            if probe not in self._template.render(chat.messages, tools=tools):
                raise self._left_out(chat, "tools")
        for i, message in enumerate(chat.messages):
            if "tool_calls" in message:
                self._check_written(chat, i, _with_name(message, probe), probe, "tool_calls")
            if message["role"] == "tool" or ("tool_calls" in message and message["content"]):
                self._check_written(chat, i, {**message, "content": probe}, probe, "content")

    def _check_written(self, chat: Chat, i: int, probing: Message, probe: str, part: str) -> None:
        messages = [*chat.messages[:i], probing]
        if probe not in self._template.render(messages, tools=chat.tools):
            raise self._left_out(chat, f"messages[{i}]: {part}")

    def _left_out(self, chat: Chat, part: str) -> BadRecord:
        return BadRecord(
            f"{chat.where}: {part} is left out by the chat template of {self._name}; use a model "
            "whose template writes it, or remove it or the record"
        )

    def _completion(self, record: Completion) -> Row:
        """Encode raw text as the endpoint's /v1/completions does, and the token that ends it."""
        eos, eos_id = self._tokenizer.eos_token, self._tokenizer.eos_token_id
        if eos is None:
            raise DataError(
                f"the tokenizer of {self._name} has no eos_token, so the model would not learn to "
                "stop; name one in tokenizer_config.json"
            )
        text = record.prompt + record.text.removesuffix(eos)
        ids, starts = self._raw(text)
        first = bisect_left(starts, len(record.prompt)) if self._train_on != "all" else 0
        ids = [*ids, eos_id]
        return _row(ids, [IGNORED] * first + ids[first:])

    def _raw(self, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of raw text and where each begins; BOS begins before the text."""
        if not self._tokenizer.is_fast:
            raise self._without_offsets()
        encoded: Any = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        bos = self._tokenizer.bos_token_id
        added = bos is not None and self._tokenizer.encode("")[:1] == [bos]
        if added and ids[:1] != [bos]:
            return [bos, *ids], [-1, *starts]
        return ids, starts

    def _tokens(self, record: Tokens) -> Row:
        size = len(self._tokenizer)
        for name, values in (("input_ids", record.input_ids), ("labels", record.labels)):
            allowed = {IGNORED} if name == "labels" else set()
            wrong = next((v for v in values if not 0 <= v < size and v not in allowed), None)
            if wrong is not None:
                raise BadRecord(
                    f"{record.where}: {name} holds {wrong}, but the tokenizer of {self._name} has "
                    f"ids 0 to {size - 1}; tokenise with this model's tokenizer"
                )
        return _row(record.input_ids, record.labels)

    @cached_property
    def _template(self) -> ChatTemplate:
        if not self._tokenizer.is_fast:
            raise self._without_offsets()
        return ChatTemplate(cast(PreTrainedTokenizerFast, self._tokenizer))

    def _without_offsets(self) -> DataError:
        return DataError(
            f"the tokenizer of {self._name} gives no character offsets; "
            "convert it to a tokenizer.json (transformers' fast tokenizer)"
        )

    @cached_property
    def _special_ids(self) -> set[int]:
        added = self._tokenizer.added_tokens_decoder
        return {*self._tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}


def _row(ids: list[int], labels: list[int]) -> Row:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _pair(chosen: Row, rejected: Row) -> Row:
    sizes = [len(answer["input_ids"]) for answer in (chosen, rejected)]
    joined = {key: chosen[key] + rejected[key] for key in chosen}
    return {**joined, "documents": [0] * sizes[0] + [1] * sizes[1]}


def _with_name(message: Message, name: str) -> Message:
    calls = [
        {**call, "function": {**call["function"], "name": name}} for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
