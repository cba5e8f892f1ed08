from __future__ import annotations

import json
import logging

import pytest
from ray._private.ray_logging import global_worker_stdstream_dispatcher as streams

from cluster.relay import relayed_output

LINES = [
    '{"message": "ours"}',
    "INFO 2026-11-28 07:57:07,065 controller 1 -- a step",
    "foreign",
    "",
]


def output(lines: list[str], *, is_err: bool = True) -> dict[str, object]:
    return {"is_err": is_err, "lines": lines, "actor_name": "Engine", "pid": 7}


def test_lines_of_workers_are_shown_as_they_are(capsys):
    with relayed_output("text"):
        streams.emit(output(LINES))
        streams.emit(output(["printed"], is_err=False))
    streams.emit(output(["afterwards"]))
    assert capsys.readouterr().err.splitlines() == ['{"message": "ours"}', "foreign"]


def test_where_json_is_wanted_foreign_lines_become_records(capsys, caplog):
    with relayed_output("json"), caplog.at_level(logging.WARNING):
        streams.emit(output(LINES))
    assert [json.loads(line) for line in capsys.readouterr().err.splitlines()] == [
        {"message": "ours"}
    ]
    (record,) = caplog.records
    assert (record.getMessage(), record.worker, record.pid) == ("foreign", "Engine", 7)


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_ray_serves_own_steps_are_left_out(capsys, level):
    with relayed_output("text"):
        streams.emit(output([f"{level} 2026-11-28 07:57:07,065 controller 1 -- Adding 1 replica"]))
        streams.emit(output(["WARNING 2026-11-28 07:57:07,065 controller 1 -- it is slow"]))
    assert capsys.readouterr().err.endswith("it is slow\n")
