from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serve.security.audit import AuditLog

WRITE = """
import sys
from pathlib import Path
from serve.security.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), max_bytes=20_000, kept=100)
for number in range(400):
    log.write({"process": sys.argv[2], "number": number, "padding": "x" * 300})
"""


def lines(folder: Path) -> list[dict]:
    files = [file for file in folder.iterdir() if not file.name.endswith(".lock")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_processes_that_write_and_rotate_at_once_lose_and_mix_no_line(tmp_path):
    path = tmp_path / "audit.log"

    def write(name: str) -> None:
        subprocess.run([sys.executable, "-c", WRITE, str(path), name], check=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    found = {(line["process"], line["number"]) for line in lines(tmp_path)}
    assert len(lines(tmp_path)) == 1200
    assert found == {(name, number) for name in "abc" for number in range(400)}
    assert len(list(tmp_path.glob("audit.log.*"))) > 5
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_the_newest_files_are_kept(tmp_path):
    path = tmp_path / "audit.log"
    log = AuditLog(path, max_bytes=10, kept=2)
    for number in range(6):
        log.write({"number": number})
    log.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.lock"]
    assert [line["number"] for line in lines(tmp_path)].count(5) == 1
    assert json.loads((tmp_path / "audit.log.2").read_text())["number"] == 3


def test_a_log_that_cannot_be_written_stops_no_request(tmp_path, caplog):
    folder = tmp_path / "gone"
    folder.mkdir()
    log = AuditLog(folder / "audit.log")
    (folder / "audit.log").unlink()
    folder.rmdir()
    with caplog.at_level(logging.ERROR):
        log.write({"number": 1})
    assert "audit.log cannot be written" in caplog.text
