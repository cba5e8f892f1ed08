"""Name, size and digest of the data that a run was trained on."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llamahome.data import DataError, exists, is_hub_id, is_url, plain_texts, raw_records
from llamahome.data.sources import read_utf8, split_of
from llamahome.models.checksums import file_sha256
from train.runs.folder import SavedRun

GONE = "no longer there at export"
ON_THE_HUB = "on the hub"
AT_A_URL = "at a URL"


@dataclass(frozen=True)
class DataFacts:
    """A source of records.

    Attributes:
        name: its file's or folder's name, or its hub id.
        size: number of records, or of characters of a plain text.
        digest: SHA-256 of a file; of several, of their digests in the order of names.
    """

    name: str
    size: str
    digest: str | None
    hub_id: str | None = None


def data_facts(run: SavedRun) -> list[DataFacts]:
    """Return what a run was trained on and evaluated with, as it is found at export."""
    kind = run.value("data.format")
    evaluated = run.value("data.eval_file")
    sources = [run.value("data.train_file"), *run.value("data.mix")]
    facts = [_facts(source, kind) for source in sources]
    if evaluated is not None:
        held = _facts(evaluated, kind)
        facts.append(DataFacts(f"{held.name} (held out)", held.size, held.digest, held.hub_id))
    return facts


def _facts(source: str, kind: str) -> DataFacts:
    if is_url(source):
        name = urlsplit(source).path.rpartition("/")[2]  # no server, user or signature
        return DataFacts(name or source.partition(":")[0], AT_A_URL, None)
    place = split_of(source)[0]
    if kind != "custom" and not exists(Path(place)) and is_hub_id(place):
        return DataFacts(source, ON_THE_HUB, None, place)
    name = source.rstrip("/").rpartition("/")[2]
    files = _files(place)
    if not files:
        return DataFacts(name, GONE, None)
    digests = [file_sha256(file) for file in files]
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    return DataFacts(name, _size(source, kind), digests[0] if len(digests) == 1 else whole)


def _files(place: str) -> list[Path]:
    path = Path(place)
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(place, recursive=True))
    return sorted(file for file in ([path] if path.is_file() else found) if file.is_file())


def _size(source: str, kind: str) -> str:
    if kind == "custom":
        return "made by code"
    try:
        texts = plain_texts(source, kind)
        if texts:
            return f"{sum(len(read_utf8(text)) for text in texts):,} characters"
        return f"{sum(1 for _ in raw_records(source)):,}"
    except DataError:
        return GONE
