"""A conversation's token ids, with refusals that name the request's field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast

from llamahome.data import ChatError, ChatTemplate, ControlTokenError, NoTemplateError, OptionError
from llamahome.engine.text.tools import DEFAULT_FORMAT, find_format, in_default_format
from llamahome.requests import CallFormat, RequestError


class ChatEncoder:
    """A model's chat template for requests.

    Args:
        split_special_tokens: False takes control tokens of the messages as such.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, model_name: str, *, split_special_tokens: bool
    ) -> None:
        self.template = ChatTemplate(tokenizer, split_special_tokens=split_special_tokens)
        self._model_name = model_name
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        self._control_tokens = {token.content for token in added if token.special}

    @cached_property
    def _own_format(self) -> CallFormat | None:
        return find_format(self.template, self._control_tokens)

    @property
    def call_format(self) -> CallFormat:
        """How an answer's calls are written."""
        return self._own_format or DEFAULT_FORMAT

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation.

        Args:
            continue_final_message: end inside the last message; no generation prompt is added.
            tools: functions that the answer may call; a template that takes none gets them as text.
            options: values of variables that the template reads.

        Raises:
            RequestError: when the model has no chat template, or it refuses the messages.
        """
        if (tools or any(map(_calls_or_result, messages))) and self._own_format is None:
            messages, tools = in_default_format(messages, tools), ()
        try:
            rendered = self.template.render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                options=options,
            )
            return self.template.encode(rendered).ids
        except ChatError as error:
            raise self._refused(messages, error) from error

    def system_length(
        self,
        messages: Sequence[dict[str, Any]],
        ids: Sequence[int],
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> int:
        """Count the first of a conversation's ids that are its system prompt.

        It is the part that is shared with another conversation under the same system prompt. So a
        system prompt that the chat template adds by itself counts, too.
        """
        system = [m for m in messages[:1] if m["role"] == "system"]
        first = next((m["content"] for m in messages if m["role"] == "user"), "")
        other = "b" if first.startswith("a") else "a"
        chat = [*system, {"role": "user", "content": other}]
        others = self.encode(chat, tools=tools, options=options)
        pairs = zip(ids, others, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(others))

    def _refused(self, messages: Sequence[dict[str, Any]], error: ChatError) -> RequestError:
        name = self._model_name
        match error:
            case NoTemplateError():
                cure = "send plain text (/v1/completions, or generate --raw)"
                return RequestError("model", name, f"{error}; {cure}")
            case ControlTokenError():
                return RequestError(
                    "messages",
                    str(error),
                    f"the tokenizer of {name} cannot take a control token of a message as text; "
                    "leave it out, or set engine.split_special_tokens=false",
                )
            case OptionError():
                reason = f"the chat template of {name} does not read {error}; leave it out"
                return RequestError("chat_template_kwargs", str(error), reason)
        roles = ", ".join(str(message.get("role")) for message in messages)
        reason = f"the chat template of {name} refuses this conversation: {error}"
        return RequestError("messages", roles, reason)


def _calls_or_result(message: dict[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))
