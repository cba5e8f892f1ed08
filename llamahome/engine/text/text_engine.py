"""The engine with its tokenizer: text in, text out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch

from llamahome.attention import Policy
from llamahome.attention.shape import context_length, exact_length
from llamahome.config import EngineConfig, ModelConfig, PolicyConfig
from llamahome.config.policy import CARRIED
from llamahome.engine.engine import Engine
from llamahome.engine.request import TokenDelta
from llamahome.engine.runners.native_model import unsupported
from llamahome.engine.sampling.grammar import GrammarMask, Vocabulary
from llamahome.engine.sampling.logprobs import Logprob
from llamahome.engine.text.answer import Answer
from llamahome.engine.text.chat import ChatEncoder
from llamahome.engine.text.defaults import sampling_defaults
from llamahome.engine.text.text_stream import TextError
from llamahome.engine.text.tools import call_grammar
from llamahome.lens import CacheShape, LensFrame
from llamahome.models import FoundModel, ModelManager, choose_policy, find_model
from llamahome.models.decoder import Decoder
from llamahome.native import NativeUnavailableError, load_native
from llamahome.requests import (
    CallFormat,
    EngineStats,
    FinishReason,
    Grammar,
    Progress,
    RequestError,
    SamplingParams,
    Token,
    Tools,
    Usage,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """Text that one step added to one answer. `finish_reason` and `usage` are set on its last.

    `tokens` are the tokens of the text, where log-probabilities are asked for. Text that may begin
    a stop text is held back, and its tokens with it. `embedding` is the result of
    `submit_embedding`. `stop_text` is the stop text that ended the answer, where one did.
    `error_field` is the request's field that is to blame for an error. `ids` are the answer's new
    tokens, and `held` is what `Progress` says: with them another engine can go on. `lens` is there
    now and then, and on the last, where the request asked for it.
    """

    request_id: str
    text: str
    token_count: int
    tokens: tuple[Token, ...] = ()
    ids: tuple[int, ...] = ()
    held: tuple[Logprob, ...] = ()
    embedding: Sequence[float] | None = None
    lens: LensFrame | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None
    stop_text: str | None = None
    error_field: str | None = None


class TextEngine:
    """An `Engine` with text in place of tokens. Synchronous, one thread."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | Decoder,
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
        eos_token_ids = _eos_token_ids(model, tokenizer)
        self._engine = Engine(model, policy, config, eos_token_ids=eos_token_ids)
        self._vocabulary = Vocabulary(tokenizer, self._engine.vocab_size, eos_token_ids)
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
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        manager = manager or ModelManager()
        found = find_model(model, manager)
        tokenizer = found.tokenizer()
        wanted = found.policy_config or PolicyConfig() if policy.name == CARRIED else policy
        config = _within_context(config.for_model(model), found.config, wanted)
        weights = _load_weights(found, wanted, config, manager)
        carried = found.policy(weights)
        chosen = choose_policy(policy, carried, weights, found.folder)
        # A carried policy that is rescaled is still what the model was trained under.
        if carried is not None and policy.name != CARRIED and chosen.config != carried.config:
            trained = carried.config
            logger.warning("serving under %s; the model was trained under %s", policy, trained)
        return cls(weights, tokenizer, chosen, config, model_name=model.name)

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
        """Count the first of a conversation's ids that `engine.protect_system` keeps: the system
        prompt.

        It is the part that is shared with another conversation under the same system prompt. So a
        system prompt that the chat template adds by itself counts, too.
        """
        if not self._protect_system:
            return 0
        system = [m for m in messages[:1] if m["role"] == "system"]
        first = next((m["content"] for m in messages if m["role"] == "user"), "")
        other = "b" if first.startswith("a") else "a"
        chat = [*system, {"role": "user", "content": other}]
        others = self.encode_chat(chat, tools=tools, options=options)
        pairs = zip(ids, others, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(others))

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


def torch_device(name: str) -> str:
    """Return the device that `engine.device` names; `auto` is a GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_weights(
    found: FoundModel, policy: PolicyConfig, config: EngineConfig, manager: ModelManager
) -> PreTrainedModel | PeftModel | Decoder:
    """Load what the engine computes with: the weights alone where the C++ kernels need no more."""
    device = torch_device(config.device)
    if _runs_natively(found.config, policy, config) and (decoder := found.decoder()) is not None:
        return decoder
    model = found.pretrained(device)
    if not config.adapters:
        return model
    from llamahome.models.adapters import attach_adapters

    return attach_adapters(
        model, {name: manager.resolve(source) for name, source in config.adapters.items()}
    )


def _runs_natively(model: PreTrainedConfig, policy: PolicyConfig, config: EngineConfig) -> bool:
    on_cpu = torch_device(config.device) == "cpu"
    if config.runner == "torch" or config.adapters or not on_cpu:
        return False
    if unsupported(model, policy, config.max_length) is not None:
        return False
    try:
        load_native()
    except NativeUnavailableError:
        return False
    return True


def _within_context(
    config: EngineConfig, model: PreTrainedConfig, policy: PolicyConfig
) -> EngineConfig:
    """Return `config`, its context cut to the model's unless positions roll."""
    limit = context_length(model)
    endless = policy.positions == "rolling" and None not in policy.pattern.values()
    endless = endless and policy.budget is not None and exact_length(model) is None
    if config.max_length <= limit or endless:
        return config
    logger.info(
        "engine.max_length=%d is cut to the model's context of %d", config.max_length, limit
    )
    return replace(config, max_length=limit)


def _eos_token_ids(
    model: PreTrainedModel | PeftModel | Decoder, tokenizer: PreTrainedTokenizerFast
) -> Collection[int]:
    eos = cast(Any, model).generation_config.eos_token_id
    ids = eos if isinstance(eos, list) else [eos]
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}
