"""`python -m train.publish`: export a trained model for others."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer

from llamahome.logs import configure_logging
from llamahome.models import ModelError, ModelManager
from llamahome.models.checksums import write_checksums
from train.errors import FINAL, ExportError
from train.progress import plain_console
from train.publish.card import LIBRARIES, Format, write_card
from train.publish.gguf_file import QUANTIZATIONS, check_gguf, write_gguf
from train.publish.hub import check_push, push
from train.publish.news import say
from train.publish.source import Source, adapter_base_id, find_source
from train.publish.weights import DTYPES, write_adapter, write_merged
from train.runs.folder import RunsError

REFUSED = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
