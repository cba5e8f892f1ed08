"""Token ids of chats by the model's chat template, the same in training and in serving."""

from __future__ import annotations

import inspect
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, meta
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

PRIVATE = 0xE000  # the first code point of Unicode's private use


class ChatError(ValueError):
    """A chat that the template refuses; the message is the reason."""


class NoTemplateError(ChatError):
    """A tokenizer without a chat template."""


class ControlTokenError(ChatError):
    """A control token of a message that the tokenizer cannot take as text; it names the tokens."""


class OptionError(ChatError):
    """Options that the template does not read; it names them."""


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of a chat, and at which character of its text each token begins."""

    ids: list[int]
    starts: list[int]


class ChatTemplate:
    """A tokenizer and its chat template, which alone may write control tokens.

    A message that holds `<|im_end|>` could otherwise forge a turn of another role. Control tokens
    of the messages are marked before the template sees them, so that those it writes itself are
    known. Only a chat that has others is encoded by a copy of the tokenizer, in which control
    tokens have secret names and the old names are text.

    Args:
        split_special_tokens: False takes control tokens of the messages as such.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, *, split_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special = {i: t.content for i, t in added.items() if t.special and split_special_tokens}
        # An unknown character is no control token, though <unk> may be a special one.
        self._control_ids = special.keys() - {tokenizer.unk_token_id}
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._mark = private_text()
        self._secret = private_text()
        self._secret_names = {name: self._secret + name for name in longest_first}

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a chat's text, in which control tokens of messages and tools are marked.

        Args:
            options: values of variables that the template reads, such as `enable_thinking`.

        Raises:
            NoTemplateError: when there is no template.
            OptionError: when the template does not read an option.
            ChatError: when the template refuses the chat.
        """
        if self._tokenizer.chat_template is None:
            raise NoTemplateError("it has no chat template")
        if options and (unread := options.keys() - self._options(bool(tools))):
            raise OptionError(", ".join(sorted(unread)))
        try:
            text = self._tokenizer.apply_chat_template(
                self._marked(list(messages)),
                tools=self._marked(list(tools)) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **self._marked(dict(options or {})),
            )
        except (TemplateError, TypeError) as error:  # roles and orders that it does not know
            raise ChatError(str(error)) from error
        except ValueError as error:
            reason = "it changes the last message, so the answer cannot continue it"
            raise ChatError(reason if continue_final_message else str(error)) from error
        return str(text)

    def _options(self, with_tools: bool) -> frozenset[str]:
        """Return the variables that a request may set: neither the chat nor its control tokens."""
        text = self._tokenizer.get_chat_template(None, [{}] if with_tools else None)
        template = _compile_jinja_template(text)
        read = meta.find_undeclared_variables(template.environment.parse(text))
        parameters = inspect.signature(self._tokenizer.apply_chat_template).parameters
        own = {"messages", *self._tokenizer.special_tokens_map, *parameters, *template.globals}
        return frozenset(read - own)

    def plain(self, rendered: str) -> str:
        """Return the text of a rendered chat, without marks."""
        return rendered.replace(self._mark, "")

    def encode(self, rendered: str) -> EncodedChat:
        """Return the tokens of a rendered chat; only what the template wrote is a control token.

        Raises:
            ControlTokenError: when the tokenizer cannot take a message's control token as text.
        """
        text = self.plain(rendered)
        encoding = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids: list[int] = encoding["input_ids"]
        own = sum(name != self._tokenizer.unk_token for name in self._special.findall(rendered))
        if self._mark not in rendered and self._controls(ids) <= own:
            return EncodedChat(ids, [start for start, _ in encoding["offset_mapping"]])
        named = self.plain(self._special.sub(lambda found: self._secret + found[0], rendered))
        copied = self._copy.encode(named, add_special_tokens=False)
        if self._controls(copied.ids) != own:
            raise ControlTokenError(", ".join(self._special.findall(text)))
        return EncodedChat(copied.ids, self._starts(named, copied))

    def _starts(self, named: str, encoding: Encoding) -> list[int]:
        """Return where tokens begin in the text before control tokens got their secret names."""
        starts, removed, at = [], 0, named.find(self._secret)
        for start, _ in encoding.offsets:
            while 0 <= at < start:
                removed += len(self._secret)
                at = named.find(self._secret, at + 1)
            starts.append(start - removed)
        return starts

    def _controls(self, ids: list[int]) -> int:
        return sum(token in self._control_ids for token in ids)

    def _marked(self, value: Any) -> Any:
        """Return messages, or a part of them, with the mark inside each control token."""
        match value:
            case str():
                return self._special.sub(
                    lambda found: found[0][0] + self._mark + found[0][1:], value
                )
            case dict():
                return {self._marked(key): self._marked(part) for key, part in value.items()}
            case list():
                return [self._marked(part) for part in value]
        return value

    @cached_property
    def _copy(self) -> Tokenizer:
        return _renamed(self._tokenizer.backend_tokenizer, self._secret_names)


def private_text() -> str:
    """Return characters of private use that nobody can guess, so no message holds them."""
    return "".join(chr(PRIVATE + byte) for byte in secrets.token_bytes(16))


def _renamed(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """Return a copy of a tokenizer, without post-processing, with other names for some tokens.

    They are renamed in the model's vocabulary, too: some models have `</s>` as a word there.
    """
    content = json.loads(tokenizer.to_str())
    content |= {"post_processor": None, "padding": None, "truncation": None}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    words = model["vocab"]
    if isinstance(words, dict):
        model["vocab"] = {names.get(word, word): index for word, index in words.items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in words]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint((*pair, "".join(pair)))
        ]
    return Tokenizer.from_str(json.dumps(content))
