"""Rules for docstrings and comments, as CONTRIBUTING.md states them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("llamahome", "cluster", "train", "serve", "datasets", "benchmarks", "tests")
FILES = [
    ROOT / "quickstart.py",
    *(f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))),
]

# Fragments: they leave the reader to find the subject.
FRAGMENTS = "of|what|who|whom|whose|where|wherever|whoever|whatever"
# A function's docstring opens with an imperative verb, so with none of these.
NO_VERBS = (
    f"{FRAGMENTS}|a|an|the|this|that|these|those|it|its|one|two|three|some|every|each|all|any|both"
    "|no|none|how|when|whether|which|why|in|on|at|by|to|from|with|without|as|for|after|before"
    "|under|over|up|down|here|there|if|so|and|or|but|not|only|also|than|then"
)
# Words that have gone out of use, with today's.
OLD_WORDS = {
    "alike": "the same",
    "beside": "next to, with",
    "lest": "so that ... not",
    "strewn": "inserted",
    "told": "said, given",
    "therein": "in it",
    "thereof": "of it",
    "upon": "on",
    "wherein": "in which",
}
_WORD = re.compile(r"[A-Za-z']+")

Place = tuple[str, str]


def _docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


def _is_attribute(node: ast.AST) -> bool:
    """Tell whether a function is read like an attribute, so that a noun describes it."""
    decorators = getattr(node, "decorator_list", ())
    return any("property" in ast.unparse(d) or "fixture" in ast.unparse(d) for d in decorators)


def _is_test(node: ast.AST) -> bool:
    """Tell whether a docstring states what a test claims."""
    return getattr(node, "name", "").startswith("test_")


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield each block of comment lines as one text, with the line it begins on."""
    block: list[str] = []
    first = last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#!: ")
        alone = token.line.lstrip().startswith("#")
        if block and not (alone and line == last + 1):
            yield first, " ".join(block)
            block = []
        if not block:
            first = line
        block.append(text)
        last = line if alone else -1
    if block:
        yield first, " ".join(block)


def faults(source: str) -> Iterator[str]:
    """Yield one line for each docstring or comment that breaks a rule."""
    for node, text in _docstrings(ast.parse(source)):
        line = getattr(node, "lineno", 1)
        opening = _WORD.search(text)
        first = opening[0].lower() if opening and opening.start() < 3 else ""
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        imperative = function and not _is_attribute(node) and not _is_test(node)
        forbidden = NO_VERBS if imperative else FRAGMENTS
        if re.fullmatch(forbidden, first):
            yield f"{line}: a docstring opens with {first!r}: {text.splitlines()[0]}"
        yield from (f"{line}: {fault}" for fault in _old_words(text))
    for line, text in _comments(source):
        opening = _WORD.match(text)
        if opening and re.fullmatch(FRAGMENTS, opening[0], re.IGNORECASE):
            yield f"{line}: a comment opens with {opening[0]!r}: {text}"
        yield from (f"{line}: {fault}" for fault in _old_words(text))


def _old_words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text):
        if word.lower() in OLD_WORDS:
            yield f"{word!r} is an old word; write {OLD_WORDS[word.lower()]!r}: {text[:80]}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_docstrings_and_comments_open_plainly(file: Path) -> None:
    assert list(faults(file.read_text())) == []


def test_each_rule_refuses_what_it_forbids() -> None:
    source = '''
def f():
    """The sum."""
class C:
    """What it is."""
# Of each row.
x = 1  # told
'''
    assert [fault.partition(":")[0] for fault in faults(source)] == ["2", "4", "6", "7"]
