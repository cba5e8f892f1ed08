"""Texts by name."""

from __future__ import annotations

import pytest

from llamahome.evaluation.text import load_text


def test_texts_that_ship_are_long() -> None:
    for name in ("persuasion", "northanger_abbey", "pydoc"):
        assert len(load_text(name)) > 400_000
    with pytest.raises(FileNotFoundError, match="one of northanger_abbey, persuasion, pydoc"):
        load_text("emma_")
