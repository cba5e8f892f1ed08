"""JSON read line by line gives the records and places that a reader of the whole text gives."""

from __future__ import annotations

import io
import json
import random

from llamahome.data import BadRecord
from llamahome.data.json_records import json_records
from tests.data.plain_json import plain_json

RECORD = {"messages": [{"role": "user", "content": "a\nb } { ] é\u2028"}], "n": 3}
PIECES = (
    json.dumps(RECORD),
    json.dumps(RECORD, indent=2, ensure_ascii=False),
    json.dumps(RECORD, indent=1),
    "{}",
    '{"a": [1,\n\n2]}',
    "{\n",
    '{"a": "open',
    '{"a": }',
    "}",
    "]",
    "[1, 2]",
    "nonsense",
    "9" * 5000,
    '"text"',
    "\ufeff",
    " ",
    ",",
)


def test_any_text_is_read_like_as_a_whole() -> None:
    draw = random.Random(0)
    bad = good = 0
    for _ in range(3000):
        text = "".join(
            draw.choice(PIECES) + draw.choice(("\n", "\n", "\r\n", "\n\n  ", ""))
            for _ in range(draw.randint(1, 9))
        )
        if draw.random() < 0.3:
            cut = draw.randrange(len(text))
            text = text[:cut] + text[cut + draw.randint(0, 3) :]
        if text.lstrip("\ufeff \r\n").startswith("["):
            continue  # one list
        expected = list(plain_json(text.removeprefix("\ufeff")))
        found = []
        for where, value in json_records(io.BytesIO(text.encode()), "a"):
            assert not isinstance(value, BadRecord) or str(value).startswith(f"{where}: not JSON (")
            found.append((int(where[2:]), None if isinstance(value, BadRecord) else value))
        assert found == expected, text
        bad += sum(value is None for _, value in expected)
        good += sum(value is not None for _, value in expected)
    assert min(bad, good) > 3000
