"""lm-evaluation-harness's view of a model that is served from a cache of fixed size.

Gao et al., "A framework for few-shot language model evaluation", github.com/EleutherAI/
lm-evaluation-harness, docs/model_guide.md.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.progress import track

from llamahome.attention import HybridAttention, build_policy
from llamahome.cache import Slots
from llamahome.config import ConfigError, EngineConfig, ModelConfig
from llamahome.config.policy import CARRIED, policy_config
from llamahome.engine import EngineError, SamplingParams, TextEngine
from llamahome.engine.text.text_engine import choose_policy
from llamahome.evaluation import continuation_score
from llamahome.models import load_model


class LlamaHomeLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model of LlamaHome under a policy.

    Args:
        pretrained: embedded name, run name, folder or hub id.
        policy, budget, sink, recent, interval: as those of `llamahome generate`.
        max_length: tokens of a request and its answer; None is the model's context.
        batch_size: answers generated at once; scoring takes one request at a time.
    """

    def __init__(
        self,
        pretrained: str = ModelConfig().name,
        policy: str = CARRIED,
        budget: int | None = None,
        sink: int = 4,
        recent: int | None = None,
        interval: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)  # lm_eval always gives it
        if unknown:
            raise ConfigError(f"--model_args: unknown {', '.join(sorted(unknown))}")
        # lm_eval asks for cuda whatever there is, unless --device says otherwise.
        place = (device or "cuda") if torch.cuda.is_available() else "cpu"
        wanted = policy_config(policy, budget, sink, recent, interval)
        loaded = load_model(ModelConfig(name=pretrained, dtype=dtype), device=place)
        chosen = choose_policy(wanted, loaded.policy)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        context: int = self.model.config.max_position_embeddings
        self.max_length = min(max_length or context, context)
        self._name = pretrained
        slots = 1 if batch_size == "auto" else int(batch_size)
        config = EngineConfig(
            slots=slots,
            max_length=self.max_length,
            max_queued=1_000_000,
            max_queued_tokens=1_000_000 * self.max_length,
            weights="fp32",  # scores are those of the model as it is
        )
        self._engine = TextEngine(self.model, self.tokenizer, chosen, config)
        HybridAttention.attach(self.model)
        self._slots = Slots.for_model(
            self.model, build_policy(chosen), num_slots=1, max_length=self.max_length
        )

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
            score = continuation_score(self.model, self._slots, context[-room:], continuation)
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
        answers = {}
        for number, request in enumerate(requests):
            context, asked = request.args
            settings = normalize_gen_kwargs(asked)
            until = settings.get("until") or []
            params = SamplingParams(
                max_tokens=settings["max_gen_toks"],
                temperature=settings.get("temperature", 0.0),
                top_p=settings.get("top_p", 1.0),
                stop=(until,) if isinstance(until, str) else tuple(until),
            )
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"max_length={self.max_length}: a task asks for up to {params.max_tokens} "
                    "tokens beside its prompt; raise it, or lower max_gen_toks"
                )
            answers[str(number)] = ""
            self._engine.submit(str(number), self.tok_encode(context)[-room:], params)
        while self._engine.has_work:
            for delta in self._engine.step():
                if delta.error is not None:
                    raise EngineError(delta.error)
                answers[delta.request_id] += delta.text
        for request, answer in zip(requests, answers.values(), strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return list(answers.values())
