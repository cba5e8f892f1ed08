"""A conversation's token ids, by the model's chat template."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llamahome.requests import RequestError

PRIVATE = 0xE000  # the first code point of Unicode's private use


class ChatEncoder:
    """A tokenizer and its chat template, which alone may write control tokens.

    A message that holds `<|im_end|>` could otherwise forge a turn of another role. Control tokens
    of the messages are marked before the template sees them, so that those it writes itself are
    known. Only a conversation that has others is encoded by a copy of the tokenizer, in which
    control tokens have secret names and the old names are text.

    Args:
        split_special_tokens: False takes control tokens of the messages as such.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, model_name: str, *, split_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._model_name = model_name
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special = {i: t.content for i, t in added.items() if t.special and split_special_tokens}
        # An unknown character is no control token, though <unk> may be a special one.
        self._control_ids = special.keys() - {tokenizer.unk_token_id}
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        secret = _private_text()
        self._secret_names = {name: secret + name for name in longest_first}

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Return the token ids of a conversation.

        Args:
            continue_final_message: end inside the last message; no generation prompt is added.

        Raises:
            RequestError: when the model has no chat template, or it refuses the messages.
        """
        mark = _private_text()
        headed = add_generation_prompt and not continue_final_message
        marked = self._render(self._marked(list(messages), mark), headed, continue_final_message)
        text = marked.replace(mark, "")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        own = sum(name != self._tokenizer.unk_token for name in self._special.findall(marked))
        if mark not in marked and self._controls(ids) <= own:
            return ids
        named = self._special.sub(lambda found: self._secret_names[found[0]], marked)
        ids = self._copy.encode(named.replace(mark, ""), add_special_tokens=False).ids
        if self._controls(ids) != own:
            raise RequestError(
                "messages",
                ", ".join(self._special.findall(text)),
                f"the tokenizer of {self._model_name} cannot take a control token of a message as "
                "text; leave it out, or set engine.split_special_tokens=false",
            )
        return ids

    def _controls(self, ids: list[int]) -> int:
        return sum(token in self._control_ids for token in ids)

    def _marked(self, value: Any, mark: str) -> Any:
        """Return messages, or a part of them, with the mark inside each control token."""
        match value:
            case str():
                return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], value)
            case dict():
                return {key: self._marked(part, mark) for key, part in value.items()}
            case list():
                return [self._marked(part, mark) for part in value]
        return value

    def _render(self, messages: list[dict[str, Any]], headed: bool, continued: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise RequestError(
                "model",
                self._model_name,
                "it has no chat template; send plain text (/v1/completions, or generate --raw)",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=headed,
                continue_final_message=continued,
            )
        except TemplateError as error:  # templates refuse roles and orders that they do not know
            raise self._refused(messages, str(error)) from error
        except ValueError as error:
            if not continued:
                raise
            reason = "it changes the last message, so the answer cannot continue it"
            raise self._refused(messages, reason) from error
        return str(text)

    def _refused(self, messages: list[dict[str, Any]], reason: str) -> RequestError:
        roles = ", ".join(str(message.get("role")) for message in messages)
        text = f"the chat template of {self._model_name} refuses this conversation: {reason}"
        return RequestError("messages", roles, text)

    @cached_property
    def _copy(self) -> Tokenizer:
        return _renamed(self._tokenizer.backend_tokenizer, self._secret_names)


def _private_text() -> str:
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
