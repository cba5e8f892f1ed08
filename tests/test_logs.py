from __future__ import annotations

import json
import logging
import threading
from contextvars import Context, copy_context
from datetime import UTC, datetime

import pytest

from llamahome.logs import ABOUT, configure_logging

logger = logging.getLogger("serve.test")


def test_a_line_for_people_has_its_fields_after_the_message(capsys):
    configure_logging("INFO", replica="r1")
    logger.info("answered %d", 3, extra={"path": "/v1/a b", "seconds": 0.5})
    line = capsys.readouterr().err
    assert line.endswith('INFO serve.test: answered 3 path="/v1/a b" seconds=0.5 replica=r1\n')


def test_json_lines_hold_the_same_as_numbers_and_texts(capsys):
    configure_logging("INFO", "json", replica="r1")
    logger.info("answered %d", 3, extra={"path": "/v1/a\nb", "seconds": 0.5})
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    age = datetime.now(UTC) - datetime.fromisoformat(record.pop("time"))
    assert abs(age.total_seconds()) < 300
    assert record == {
        "level": "INFO",
        "logger": "serve.test",
        "message": "answered 3",
        "path": "/v1/a\nb",
        "seconds": 0.5,
        "replica": "r1",
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_begins_a_line_of_its_own(capsys, form):
    configure_logging("INFO", form)
    logger.info("answered", extra={"path": '/\n00:00:00 INFO serve.test: forged "x"'})
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_traceback_is_part_of_its_json_line(capsys):
    configure_logging("INFO", "json")
    try:
        raise ValueError("inside")
    except ValueError:
        logger.exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: inside" in json.loads(line)["exc_info"]


def test_lines_of_a_request_name_it_in_every_thread_that_works_for_it(capsys):
    configure_logging("INFO", "json")

    def work() -> None:
        logger.info("inside")

    def outside_and_inside(context: Context) -> None:
        work()
        context.run(work)

    def start() -> None:
        ABOUT.set(lambda: {"request_id": "a"})
        thread = threading.Thread(target=outside_and_inside, args=(copy_context(),))
        thread.start()
        thread.join()

    copy_context().run(start)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert "request_id" not in first
    assert second["request_id"] == "a"


def test_the_level_holds_for_ours_and_other_packages_warn(capsys):
    configure_logging("DEBUG")
    logger.debug("ours")
    logging.getLogger("urllib3").info("theirs")
    logging.getLogger("urllib3").warning("their warning")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["ours", "their warning"]
