"""The quickstart's parts that need neither training nor serving."""

from __future__ import annotations

import quickstart


def test_the_conversation_comes_from_the_shipped_data() -> None:
    messages = quickstart.long_conversation(turns=40)
    assert len(messages) >= 40
    assert {message["role"] for message in messages} <= {"system", "user", "assistant"}
