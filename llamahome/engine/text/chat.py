"""A conversation's token ids, with refusals that name the request's field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from llamahome.data import ChatError, ChatTemplate, ControlTokenError, NoTemplateError
from llamahome.requests import RequestError


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
        try:
            rendered = self.template.render(
                messages,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
            )
            return self.template.encode(rendered).ids
        except ChatError as error:
            raise self._refused(messages, error) from error

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
        roles = ", ".join(str(message.get("role")) for message in messages)
        reason = f"the chat template of {name} refuses this conversation: {error}"
        return RequestError("messages", roles, reason)
