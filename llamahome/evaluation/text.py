"""Texts to measure on, most of which ship."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from llamahome.data import DataError, read_text

SHIPPED = Path(__file__).parent / "texts"
PYDOC = "pydoc"


def load_text(name: str, *, field: str = "eval.texts") -> str:
    """Return a novel of `texts/`, Python's own language reference (`pydoc`), or a file's text.

    Args:
        field: the user's name for the choice, for error messages.

    Raises:
        FileNotFoundError: for a name that is neither; the message lists the texts that ship.
        DataError: for a file that is no text.
    """
    if name == PYDOC:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[topic] for topic in sorted(topics))
    shipped = SHIPPED / f"{name}.txt.gz"
    path = shipped if shipped.is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix(".txt.gz") for p in SHIPPED.glob("*.txt.gz")))
        raise FileNotFoundError(f"{field}={name!r}: no such file; or one of {known}, {PYDOC}")
    try:
        return read_text(path)
    except DataError as error:
        raise DataError(f"{field}={error}") from error


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the token ids of a piece of a prompt, without special tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
