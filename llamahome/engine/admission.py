"""Admission: requests that cannot run as asked are refused; the others get slots set up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llamahome.attention import Policy, build_policy
from llamahome.cache import Slots
from llamahome.config import ConfigError, PolicyConfig
from llamahome.config.policy import entries
from llamahome.engine.request import Request
from llamahome.requests import RequestError, SamplingParams

MAX_POLICIES = 256  # kept; they are cheap to build again


class Admission:
    """Checks of requests against an engine's model and slots.

    Args:
        vocab_size: the model's; token ids are below it.
        adapters: names of the LoRA adapters there are.
    """

    def __init__(self, slots: Slots, *, vocab_size: int, adapters: list[str]) -> None:
        self._slots = slots
        self._vocab_size = vocab_size
        self._adapters = adapters
        self._built = lru_cache(MAX_POLICIES)(self._build)

    @property
    def kv_budgets(self) -> tuple[int, int]:
        """Return the least and the largest budget that a request may ask for."""
        policy, budgets = self._slots.policy.config, self._slots.budgets
        held = [budget for budget in budgets if budget is not None]
        largest = max(held) if len(held) == len(budgets) else self._slots.max_length
        return min(policy.sink + policy.interval, largest), largest

    def check(
        self, prompt: list[int], params: SamplingParams, answered: Sequence[int] = ()
    ) -> SamplingParams:
        """Return the params with `max_tokens` filled in.

        Args:
            answered: tokens that the answer begins with.

        Raises:
            RequestError: for what is wrong with the request.
        """
        if params.max_tokens is None:
            params = replace(params, max_tokens=max(1, self._slots.max_length - len(prompt)))
        max_tokens = params.max_tokens or 0
        if not prompt:
            raise RequestError("prompt", "", "it must hold at least one token")
        self._check_ids(prompt, params, answered)
        self._check_length(len(prompt), max_tokens)
        if params.adapter is not None and params.adapter not in self._adapters:
            known = ", ".join(self._adapters) or "none; name some in engine.adapters"
            raise RequestError("adapter", params.adapter, f"the adapters are: {known}")
        self._check_policy(len(prompt) + max_tokens, params)
        return params

    def reset(self, request: Request) -> None:
        """Empty the slot that an admitted request was given, and set it to the request's policy."""
        assert request.slot is not None
        params = request.params
        self._slots.reset(
            request.slot,
            sink=max(self._slots.policy.config.sink, params.protected),
            policy=self._policy(params),
            budget=self._budget(params),
        )

    def _policy(self, params: SamplingParams) -> Policy | None:
        """Return the policy that a request asks for; None is the engine's."""
        if params.kv_policy is None and params.kv_budget is None:
            return None
        name = params.kv_policy or self._slots.policy.config.name
        return self._built(name, self._budget(params))

    def _budget(self, params: SamplingParams) -> int | None:
        """Return the entries per KV head that a request asks for."""
        budget = params.kv_budget
        return None if budget is None else entries(budget, self._slots.max_length)

    def _build(self, name: str, budget: int | None) -> Policy:
        engine = self._slots.policy.config
        field, value = ("kv_policy", name) if budget is None else ("kv_budget", budget)
        try:
            if name == "full":
                if budget is not None:
                    raise RequestError(
                        field, budget, "full keeps everything; name another kv_policy"
                    )
                return build_policy(PolicyConfig.dense(interval=engine.interval))
            room = engine.budget if budget is None else budget
            if room is None:
                raise RequestError("kv_policy", name, "the engine's is full: name a kv_budget, too")
            least = engine.sink + engine.interval
            if budget is not None and budget < least:
                raise RequestError(
                    "kv_budget",
                    budget,
                    f"it must hold the {engine.sink} first tokens and a chunk of "
                    f"{engine.interval}; ask for at least {least}",
                )
            # A small budget keeps some heavy hitters; recent ones must still fill a chunk.
            recent = min(engine.recent, max(engine.interval, room // 2))
            config = replace(
                engine, name=name, budget=room, recent=recent, pattern={}, layers="flat"
            )
            if name == engine.name:
                return self._slots.policy.with_config(config)
            policy = build_policy(config)
            if policy.weights is not None:
                raise ConfigError("its weights come with a model that was trained under it")
            return policy
        except ConfigError as error:
            raise RequestError(field, value, str(error)) from error

    def _check_ids(
        self, prompt: list[int], params: SamplingParams, answered: Sequence[int]
    ) -> None:
        given: tuple[tuple[str, Iterable[Any]], ...] = (
            ("prompt", prompt),
            ("answered", answered),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        )
        for field, ids in given:
            for token in ids:
                if not isinstance(token, int) or not 0 <= token < self._vocab_size:
                    last = self._vocab_size - 1
                    raise RequestError(field, token, f"token ids are whole numbers in 0..{last}")

    def _check_length(self, prompt: int, max_tokens: int) -> None:
        context = self._slots.max_length
        if prompt > context or (prompt == context and max_tokens > 0):
            raise RequestError(
                "prompt",
                f"{prompt} tokens",
                f"the context holds {context}, answer included; send a shorter prompt",
            )
        if prompt + max_tokens > context:
            raise RequestError(
                "max_tokens",
                max_tokens,
                f"the prompt's {prompt} tokens and max_tokens={max_tokens} exceed the context of "
                f"{context}; ask for at most {context - prompt}",
            )

    def _check_policy(self, length: int, params: SamplingParams) -> None:
        policy = self._policy(params)
        slots = self._slots
        held = [budget for budget in slots.budgets if budget is not None]
        if policy is not None and policy.scorer is None and held:
            room = min(held) + slots.policy.interval
            if length > room:
                raise RequestError(
                    "kv_policy",
                    "full",
                    f"a slot holds {room} entries; prompt and max_tokens are {length}",
                )
        largest = max(held) if len(held) == len(slots.budgets) else None
        budget = self._budget(params)
        if budget is not None and largest is not None and budget > largest:
            raise RequestError(
                "kv_budget", budget, f"a slot keeps at most {largest} entries per KV head"
            )
        limit = slots.under(policy, budget).max_sink
        if limit is not None and params.protected > limit:
            raise RequestError(
                "protected",
                f"{params.protected} tokens",
                f"a system prompt that is never evicted must not exceed {limit} tokens, what the "
                "smallest head holds beside the recent ones; shorten it, raise policy.budget or "
                "set engine.protect_system=false",
            )
