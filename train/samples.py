"""Answers of the model while it trains, under the run's policy, in the run's folder.

They take the decode path that serves the model (`llamahome.cache`), greedily, so that they are the
same whenever the weights are, and draw no random number. All workers generate the same ones
together, since under ZeRO-3 each holds a part of every layer; the first one's tokens count.

Axes: B prompts, T tokens of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llamahome.attention import Policy
from llamahome.cache import Slots, SlotStep
from llamahome.config import ConfigError, TrainerConfig
from llamahome.data import IGNORED, ChatError, ChatTemplate, Row
from train.model import bare_model
from train.records import Datasets


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is shown, and its token ids."""

    text: str
    ids: list[int]


def build_prompts(
    trainer: TrainerConfig, data: Datasets, tokenizer: PreTrainedTokenizerBase
) -> list[Prompt]:
    """Return the prompts of `trainer.sample_prompts`, and those of the first held-out records.

    A text of the config is a user's turn, for a tokenizer with a chat template. A record's prompt
    is what comes before the first token to learn; of a document, of which all is learned, its first
    half.

    Raises:
        ConfigError: for a prompt that the chat template refuses.
    """
    written = [Prompt(text, _user_turn(text, tokenizer)) for text in trainer.sample_prompts]
    records = (record for row in data.eval for record in _records(row))
    each = 2 if data.pairs else 1  # the answers of a pair share their prompt
    chosen = islice(records, 0, trainer.sample_held_out * each, each)
    held_out = [_before_answer(record) for record in chosen]
    return written + [Prompt(str(tokenizer.decode(ids)), ids) for ids in held_out]


def check_prompts(prompts: Sequence[Prompt], sample_tokens: int, context_length: int) -> None:
    """Compare prompts and their answers with the model's context.

    Raises:
        ConfigError: for a prompt that is empty, or too long for an answer of `sample_tokens`.
    """
    for prompt in prompts:
        if not prompt.ids:
            raise ConfigError(f"trainer.sample_prompts: {prompt.text!r} has no token; change it")
        if len(prompt.ids) + sample_tokens > context_length:
            raise ConfigError(
                f"trainer.sample_tokens={sample_tokens} after a prompt of {len(prompt.ids)} tokens "
                f"({prompt.text[:40]!r}...) exceeds the model's context of {context_length}; lower "
                "it, or change trainer.sample_prompts or trainer.sample_held_out"
            )


class Sampler:
    """Writes answers of a DeepSpeed engine's model, in step with all workers."""

    def __init__(
        self,
        engine: Any,
        policy: Policy,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
    ) -> None:
        self._engine, self._policy, self._tokenizer = engine, policy, tokenizer
        self._prompts, self._max_tokens = list(prompts), max_tokens
        self._bare = bare_model(engine.module)
        eos: Any = cast(Any, self._bare).generation_config.eos_token_id
        ids = eos if isinstance(eos, list) else [eos]
        self._ends = {token for token in (*ids, tokenizer.eos_token_id) if token is not None}

    def samples(self) -> list[dict[str, Any]]:
        """Return for each prompt the prompt, the answer, its tokens, and whether it has ended."""
        return [
            {
                "prompt": prompt.text,
                "answer": self._tokenizer.decode(ids, skip_special_tokens=True),
                "tokens": len(ids),
                "ended": bool(ids) and ids[-1] in self._ends,
            }
            for prompt, ids in zip(self._prompts, self.generate(), strict=True)
        ]

    @torch.no_grad()
    def generate(self) -> list[list[int]]:
        """Return the token ids of each answer, the one that ends it included."""
        self._engine.eval()
        longest = max(len(prompt.ids) for prompt in self._prompts)
        slots = Slots(
            self._bare,
            self._policy,
            num_slots=len(self._prompts),
            max_length=longest + self._max_tokens,
        )
        unread = [list(prompt.ids) for prompt in self._prompts]
        answers: list[list[int]] = [[] for _ in unread]
        while live := [i for i, tokens in enumerate(unread) if tokens]:
            taken = [unread[i][: slots.room(i)] for i in live]
            following = self._step(slots, live, taken)
            for i, tokens, token in zip(live, taken, following, strict=True):
                unread[i] = unread[i][len(tokens) :]
                if unread[i]:
                    continue  # in the middle of the prompt
                answers[i].append(token)
                if token not in self._ends and len(answers[i]) < self._max_tokens:
                    unread[i] = [token]
        return answers

    def _step(self, slots: Slots, live: list[int], taken: list[list[int]]) -> list[int]:
        """Read some tokens of each live slot, and return the likeliest token after them."""
        plan = slots.plan(live, [len(tokens) for tokens in taken])
        step = SlotStep(slots, plan)
        ids = torch.zeros(len(live), max(plan.tokens), dtype=torch.int64)
        for row, tokens in zip(ids, taken, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        last = torch.tensor(plan.tokens, device=slots.device) - 1
        needed, column = last.unique(return_inverse=True)
        logits = self._engine(
            input_ids=ids.to(slots.device),
            position_ids=step.position_ids,
            use_cache=False,
            logits_to_keep=needed,
            hybrid=_WithoutAutocast(step),
        ).logits
        slots.commit(plan)
        likeliest = logits[torch.arange(len(live), device=slots.device), column].argmax(dim=-1)
        dist.broadcast(likeliest, src=0)
        return [int(token) for token in likeliest]


class _WithoutAutocast:
    """Attention over slots in the precision of training, as `HybridAttention` has it."""

    def __init__(self, step: SlotStep) -> None:
        self.policy, self._step = step.policy, step

    def attend(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)
        with torch.autocast(value.device.type, enabled=False):
            return self._step.attend(layer_idx, query, key, value, scaling)


def _user_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a prompt, as the endpoint computes them."""
    if tokenizer.chat_template is None:
        return list(tokenizer(text)["input_ids"])
    template = ChatTemplate(cast(PreTrainedTokenizerFast, tokenizer))
    try:
        turn = [{"role": "user", "content": text}]
        return template.encode(template.render(turn, add_generation_prompt=True)).ids
    except ChatError as error:
        raise ConfigError(
            f"trainer.sample_prompts: the model's chat template refuses {text!r}: {error}"
        ) from error


def _records(row: Row) -> list[Row]:
    """Return the records of a row, which may be packed."""
    numbers = row.get("documents") or [0] * len(row["labels"])
    runs = [list(run) for _, run in groupby(range(len(numbers)), key=numbers.__getitem__)]
    return [{key: values[run[0] : run[-1] + 1] for key, values in row.items()} for run in runs]


def _before_answer(record: Row) -> list[int]:
    labels = record["labels"]
    first = next(i for i in range(1, len(labels)) if labels[i] != IGNORED)
    return record["input_ids"][: first if first > 1 else max(1, len(labels) // 2)]
