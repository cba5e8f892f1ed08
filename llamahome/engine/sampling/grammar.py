"""Answers that keep to a JSON schema, a regular expression, a choice or calls, by llguidance."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from llamahome.requests import Grammar, GrammarKind, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Enough to indent JSON. Without a limit, small models write white space without end.
WHITESPACE = r"[ \n\t]{1,32}"
COMPILED = 64
# Limits of one grammar. Compiling takes at most about a second, and a mask a few hundredths.
MAX_CHARACTERS = 65_536
REASON_CHARACTERS = 200
LIMITS = LLParserLimits(
    max_grammar_size=20_000,
    initial_lexer_fuel=300_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
# llguidance recurses over a schema, with up to 8 kB for each level, and a stack that is full ends
# the process. The deepest schema of MAX_CHARACTERS has 6,500 levels.
STACK_BYTES = 256 * 2**20

Result = TypeVar("Result")


class GrammarMask:
    """A logits processor that allows only the tokens that may come next; one per answer."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """True once the answer is complete and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def apply(self, row: Tensor) -> None:
        if not self._matcher.is_error():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # computing the mask may have been what failed
            reason = _reason(self._matcher.get_error())
            raise RequestError("grammar", None, f"the grammar failed: {reason}")
        allowed = np.unpackbits(bits, count=len(row), bitorder="little").view(np.bool_)
        row.masked_fill_(~torch.from_numpy(allowed).to(row.device), float("-inf"))

    def advance(self, token: int) -> None:
        self._matcher.consume_token(token)


class Vocabulary:
    """A tokenizer's tokens as bytes, and grammars over them; built on first use."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocab_size: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._size = max(vocab_size, len(tokenizer))
        self._eos = sorted(eos_token_ids)
        self._compiled = lru_cache(COMPILED)(self._compile)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return from_tokenizer(self._tokenizer, n_vocab=self._size, eos_token=self._eos or None)

    def token_bytes(self, token: int) -> bytes:
        return self._tokens.decode_bytes([token])

    def literal(self, text: str) -> str:
        """Return a text as a Lark expression, in which tokens of the tokenizer's own are tokens."""
        added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder()
        own = {t.content: i for i, t in added.items() if self._tokens.is_special_token(i)}
        longest_first = "|".join(map(re.escape, sorted(own, key=len, reverse=True))) or "(?!)"
        parts = re.split(f"({longest_first})", text)
        written = (f"<[{own[p]}]>" if p in own else json.dumps(p) for p in parts if p)
        return " ".join(written) or '""'

    def mask(self, grammar: Grammar) -> GrammarMask:
        """Return a new mask; compiled grammars are cached.

        Raises:
            RequestError: when the grammar cannot be compiled, or not within its limits.
        """
        return GrammarMask(self._compiled(grammar.kind, grammar.text).deep_copy())

    def _compile(self, kind: GrammarKind, text: str) -> LLMatcher:
        if len(text) > MAX_CHARACTERS:
            reason = f"it has {len(text)} characters; at most {MAX_CHARACTERS} are allowed"
            raise RequestError("grammar", text, reason)
        tokens = self._tokens  # set up in this thread
        matcher = _on_deep_stack(lambda: _matcher(tokens, kind, text))
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            words = "their JSON schemas" if kind == "lark" else f"no valid {kind}"
            raise RequestError("grammar", text, f"{words}: {reason}")
        return matcher


def _matcher(tokens: LLTokenizer, kind: GrammarKind, text: str) -> LLMatcher:
    """Compile a grammar and its first mask, the most costly one; copies share both."""
    matcher = LLMatcher(tokens, _llguidance(kind, text), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def _on_deep_stack(call: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        usual = threading.stack_size(STACK_BYTES)
        try:
            future = pool.submit(call)  # starts the thread
        finally:
            threading.stack_size(usual)
        return future.result()


def _llguidance(kind: GrammarKind, text: str) -> str:
    """Convert a grammar to llguidance's own format."""
    if kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    try:
        if kind == "choice":
            return LLMatcher.grammar_from_regex(_alternatives(json.loads(text)))
        return LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": WHITESPACE}
        )
    except ValueError as error:
        raise RequestError("grammar", text, f"no valid {kind}: {error}") from error


def _alternatives(texts: object) -> str:
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError("it must be a list of texts")
    return "|".join(re.escape(text) for text in texts)


def _reason(error: str) -> str:
    """Return llguidance's message without its parser's state and the grammar's own text."""
    message = re.split(r"\n<(?:state|non-verbose)|\n +\d+ \| ", error)[0]
    if "regex parse error" in message:
        return f"regex parse error: {message.rpartition('error: ')[2].strip()}"
    message = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", message)
    said = " ".join(message.split())
    return said if len(said) <= REASON_CHARACTERS else f"{said[:REASON_CHARACTERS]}..."
