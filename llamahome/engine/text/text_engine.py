"""The engine with its tokenizer: text in, text out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from llamahome.attention import Policy
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.engine.engine import Engine
from llamahome.engine.request import TokenDelta
from llamahome.engine.sampling.grammar import GrammarMask, Vocabulary
from llamahome.engine.text.answer import Answer
from llamahome.engine.text.chat import ChatEncoder
from llamahome.engine.text.defaults import sampling_defaults
from llamahome.engine.text.delta import TextDelta
from llamahome.engine.text.loading import eos_token_ids, load_parts
from llamahome.engine.text.text_stream import TextError
from llamahome.engine.text.tools import call_grammar
from llamahome.lens import CacheShape
from llamahome.models import ModelManager
from llamahome.requests import (
    CallFormat,
    EngineStats,
    Grammar,
    Progress,
    RequestError,
    SamplingParams,
    Token,
    Tools,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from llamahome.engine.text.loading import Weights


class TextEngine:
    """An `Engine` with text in place of tokens. Synchronous, one thread."""

    def __init__(
        self,
        model: Weights,
        tokenizer: PreTrainedTokenizerFast,
        policy: Policy,
        config: EngineConfig,
        *,
        model_name: str = "model",
    ) -> None:
        self.tokenizer = tokenizer
        self.policy = policy.config
        self.model_name = model_name
        self._protect_system = config.protect_system
        self._chat = ChatEncoder(
            tokenizer, model_name, split_special_tokens=config.split_special_tokens
        )
        eos = eos_token_ids(model, tokenizer)
        self._engine = Engine(model, policy, config, eos_token_ids=eos)
        self._vocabulary = Vocabulary(tokenizer, self._engine.vocab_size, eos)
        auto = config.generation_config == "auto"
        self._defaults = sampling_defaults(cast(Any, model).generation_config) if auto else {}
        self._answers: dict[str, Answer] = {}

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        policy: PolicyConfig,
        config: EngineConfig,
        *,
        manager: ModelManager | None = None,
    ) -> TextEngine:
        """Load a model and the policy it carries, unless `policy` names another."""
        parts = load_parts(model, policy, config, manager or ModelManager())
        return cls(**vars(parts), model_name=model.name)

    @property
    def max_length(self) -> int:
        return self._engine.max_length

    @property
    def cache_shape(self) -> CacheShape:
        """The cache that each request gets."""
        return self._engine.cache_shape

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of plain text; one that begins with the BOS text gets no second."""
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, verbose=False
        )
        bos = self.tokenizer.bos_token_id
        added = add_special_tokens and bos is not None and self.tokenizer.encode("")[:1] == [bos]
        return ids[1:] if added and ids[1:2] == [bos] else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the plain text of token ids, without special tokens."""
        text: str = self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the tokenizer's own names of token ids."""
        return cast("list[str]", self.tokenizer.convert_ids_to_tokens(list(ids)))

    def exact_text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens and spaces as they are.

        Raises:
            RequestError: for an id that the tokenizer does not have.
        """
        wrong = next((i for i in ids if not 0 <= i < len(self.tokenizer)), None)
        if wrong is not None:
            limit = f"token ids lie between 0 and {len(self.tokenizer) - 1}"
            raise RequestError("tokens", wrong, limit)
        text: str = self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def encode_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return a conversation's token ids by the model's chat template, ready for the answer.

        Args:
            add_generation_prompt: end with the header of an assistant's turn.
            continue_final_message: end inside the last message, without a header.
            tools: functions that the answer may call.
            options: values of variables that the template reads.

        Raises:
            RequestError: when the model has no chat template, or it refuses the messages.
        """
        return self._chat.encode(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            options=options,
        )

    @property
    def call_format(self) -> CallFormat:
        """How the model writes the functions that it calls."""
        return self._chat.call_format

    def with_calls(self, params: SamplingParams, tools: Tools) -> SamplingParams:
        """Return params whose grammar lets the answer call functions.

        Raises:
            RequestError: when calls and the grammar that is there exclude each other.
        """
        literal = self._vocabulary.literal
        grammar = call_grammar(self.call_format, tools, params.grammar, literal)
        return replace(params, grammar=grammar)

    def system_length(
        self,
        messages: Sequence[dict[str, Any]],
        ids: Sequence[int],
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> int:
        """Count the first of a conversation's ids that `engine.protect_system` keeps."""
        if not self._protect_system:
            return 0
        return self._chat.system_length(messages, ids, tools=tools, options=options)

    def with_defaults(
        self, params: SamplingParams, left_out: Collection[str], prompt_length: int
    ) -> SamplingParams:
        """Return params with the model's own values of those that a client left out.

        Raises:
            RequestError: when `min_tokens` exceeds the context.
        """
        own = {name: value for name, value in self._defaults.items() if name in left_out}
        if "max_tokens" in own:  # nobody asked for it, so it must not make a request too long
            room = max(1, self.max_length - prompt_length)
            own["max_tokens"] = min(room, max(own["max_tokens"], params.min_tokens))
        return replace(params, **own)

    def prepare(self) -> None:
        """Set up what grammars and log-probabilities need of the tokenizer, ahead of the first."""
        self._vocabulary.token_bytes(0)

    def compile(self, grammar: Grammar) -> GrammarMask:
        """Compile a grammar for one `submit`, in any thread.

        Raises:
            RequestError: when it cannot be compiled, or not within its limits.
        """
        return self._vocabulary.mask(grammar)

    def submit(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        grammar: GrammarMask | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Queue a request; raises as `Engine.submit` does.

        Args:
            grammar: `params.grammar`, compiled ahead; without it, it is compiled here.
            progress: what another engine gave of the answer; the deltas go on after it. The same
                seed gives the same text.
        """
        if grammar is None and params.grammar is not None:
            grammar = self.compile(params.grammar)
        params = self._with_stop_tokens(params)
        answer = self._answer(prompt, params)
        if progress is not None and progress.tokens:
            params = replace(params, prompt_logprobs=None)  # the first delta had them
            answer.replay(progress)
        answered = () if progress is None else progress.tokens
        self._engine.submit(request_id, prompt, params, grammar, answered=answered)
        self._answers[request_id] = answer

    def submit_embedding(
        self, request_id: str, prompt: list[int], *, adapter: str | None = None
    ) -> None:
        """Queue a text to be embedded; raises as `Engine.submit_embedding` does."""
        self._engine.submit_embedding(request_id, prompt, adapter=adapter)
        self._answers[request_id] = self._answer(prompt, SamplingParams())

    def _with_stop_tokens(self, params: SamplingParams) -> SamplingParams:
        """Add the ids of control tokens among the stop texts; an answer's text has none of them."""
        if not params.stop:
            return params
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        known = [(i, token) for i, token in added.items() if i < self._engine.vocab_size]
        ids = [i for i, token in known if token.special and token.content in params.stop]
        return replace(params, stop_token_ids=(*params.stop_token_ids, *ids))

    def _answer(self, prompt: list[int], params: SamplingParams) -> Answer:
        return Answer(self.tokenizer.backend_tokenizer, self._vocabulary, prompt, params)

    def step(self) -> list[TextDelta]:
        """Run one engine step and return its deltas as text, one for each request."""
        deltas = groupby(self._engine.step(), key=lambda delta: delta.request_id)
        return [self._to_text(request_id, list(own)) for request_id, own in deltas]

    def _to_text(self, request_id: str, deltas: list[TokenDelta]) -> TextDelta:
        answer = self._answers[request_id]
        text, used = "", 0
        tokens: tuple[Token, ...] = ()
        last = deltas[-1]
        reason, usage, error, lens = last.finish_reason, last.usage, last.error, last.lens
        try:
            while used < len(deltas) and not answer.stopped:
                text += answer.push(deltas[used])
                used += 1
            tokens = answer.take_tokens()
        except TextError as failure:
            usage = self._engine.fail(request_id) if usage is None else usage
            reason, error = "error", str(failure)
        if answer.stopped and reason != "error":
            lens = self._engine.frame(request_id) if usage is None else lens
            usage = self._engine.stop(request_id) if usage is None else usage
            reason = "stop"
        if usage is not None:
            beyond = sum(delta.token is not None for delta in deltas[used:])
            usage = replace(usage, completion_tokens=usage.completion_tokens - beyond)
        if reason is not None:
            del self._answers[request_id]
        ids = tuple(delta.token for delta in deltas[:used] if delta.token is not None)
        return TextDelta(
            request_id=request_id,
            text=text,
            token_count=len(ids),
            tokens=tokens,
            ids=ids,
            held=answer.held,
            embedding=None if last.embedding is None else last.embedding.tolist(),
            lens=None if lens is None else answer.shown(lens),
            finish_reason=reason,
            usage=usage,
            error=error,
            stop_text=answer.stop_text if reason == "stop" else None,
            error_field=last.error_field,
        )

    def cancel(self, request_id: str) -> None:
        """Drop a request and free its slot at once; unknown ids are ignored."""
        self._engine.cancel(request_id)
        self._answers.pop(request_id, None)

    def close(self) -> None:
        """Keep what the next start can use; the engine must not be used any more."""
        self._engine.close()

    def stats(self) -> EngineStats:
        return self._engine.stats()
