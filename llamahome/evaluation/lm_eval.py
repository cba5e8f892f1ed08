"""A model that is served from a cache of fixed size, as lm-evaluation-harness sees it.

Gao et al., "A framework for few-shot language model evaluation", github.com/EleutherAI/
lm-evaluation-harness, docs/model_guide.md.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.progress import track

from llamahome.attention.shape import context_length
from llamahome.config import ConfigError, EngineConfig, ModelConfig
from llamahome.config.policy import CARRIED, policy_config
from llamahome.engine import SamplingParams, TextEngine
from llamahome.engine.runners.contract import Runner
from llamahome.evaluation.reading import answers, continuation_score, open_runner, sized
from llamahome.models import load_model


class LlamaHomeLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model of LlamaHome under a policy.

    Args:
        pretrained: embedded name, run name, folder or hub id.
        policy, budget, sink, recent, interval: the options of `llamahome generate`.
        dtype, weights: `model.dtype` and `engine.weights`; `fp32` scores the model as it is.
        max_length: tokens of a request and its answer; None is the model's context.
        batch_size: answers generated at once; scoring takes one request at a time.

    Raises:
        ConfigError: for an argument that there is not, or a value that is not allowed.
    """

    def __init__(
        self,
        pretrained: str = ModelConfig().name,
        policy: str = CARRIED,
        budget: float | None = None,
        sink: int | None = None,
        recent: int | None = None,
        interval: int | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)  # lm_eval always gives it
        if unknown:
            raise ConfigError(f"--model_args: unknown {', '.join(sorted(unknown))}")
        slots = 1 if batch_size == "auto" else int(batch_size)
        named = ModelConfig(name=pretrained, dtype=dtype)
        engine = EngineConfig(slots=slots, weights=weights).for_model(named)
        # lm_eval asks for cuda even where there is none, unless --device says otherwise.
        place = (device or "cuda") if torch.cuda.is_available() else "cpu"
        loaded = load_model(named, device=place)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        context = context_length(self.model.config)
        self.max_length = min(max_length or context, context)
        wanted = policy_config(policy, budget, sink, recent, interval, self.max_length)
        self._name = pretrained
        self._policy = loaded.policy_for(wanted)
        self._config = sized(engine, self.max_length)

    # Both are made when a task first needs them, because each holds the weights once.
    @cached_property
    def _engine(self) -> TextEngine:
        return TextEngine(self.model, self.tokenizer, self._policy, self._config)

    @cached_property
    def _runner(self) -> Runner:
        return open_runner(self.model, self._policy, self._config, max_length=self.max_length)

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")  # it is part of a file's name

    @property
    def eot_token_id(self) -> int:
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else cast(int, bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        special = bool(add_special_tokens)
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=special, verbose=False)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return cast(str, text)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        scores = []
        for texts, context, continuation in track(
            requests, "scoring", disable=disable_tqdm, transient=True
        ):
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise ConfigError(
                    f"max_length={self.max_length}: a task scores {len(continuation)} tokens "
                    "at once; raise it"
                )
            score = continuation_score(self._runner, context[-room:], continuation)
            self.cache_hook.add_partial("loglikelihood", texts, score)
            scores.append(score)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        totals = []
        for (text,) in [request.args for request in requests]:
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(pairs, disable_tqdm)
            totals.append(sum(logprob for logprob, _ in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [self._prompt(*request.args) for request in requests]
        texts = [text for text, _ in answers(self._engine, prompts)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _prompt(self, context: str, asked: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        settings = normalize_gen_kwargs(asked)
        until = settings.get("until") or []
        limit: int = settings["max_gen_toks"]
        params = SamplingParams(
            max_tokens=limit,
            temperature=settings.get("temperature", 0.0),
            top_p=settings.get("top_p", 1.0),
            stop=(until,) if isinstance(until, str) else tuple(until),
        )
        room = self.max_length - limit
        if room < 1:
            raise ConfigError(
                f"max_length={self.max_length}: a task asks for up to {limit} "
                "tokens in addition to its prompt; raise it, or lower max_gen_toks"
            )
        return self.tok_encode(context)[-room:], params
