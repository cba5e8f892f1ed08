"""A model's folder once more, carrying another policy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from llamahome.attention import Policy
from llamahome.models.checksums import CHECKSUMS, write_checksums
from llamahome.models.folders import build_once
from llamahome.models.json_files import read_json
from llamahome.models.policy_io import (
    ADAPTER_POLICY,
    KEY,
    POLICY_WEIGHTS,
    encode_policy,
    write_adapter_policy,
    write_policy_weights,
)

CONFIG = "config.json"
WRITTEN = (CONFIG, ADAPTER_POLICY, POLICY_WEIGHTS, CHECKSUMS)


def copy_with_policy(source: Path, target: Path, policy: Policy) -> None:
    """Make the folder `target`: the files of a model or adapter in `source`, carrying `policy`.

    Files are linked where the file system can, so weights take no more room.
    """

    def build(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in sorted(source.rglob("*")):
            if file.is_file() and file.name not in WRITTEN:
                _link(file, folder / file.relative_to(source))
        _write(source, folder, policy)
        write_checksums(folder)

    build_once(target.absolute(), build)


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def _write(source: Path, folder: Path, policy: Policy) -> None:
    config = source / CONFIG
    if config.is_file():
        content = {**read_json(config), KEY: encode_policy(policy.config)}
        (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    else:
        write_adapter_policy(folder, policy.config)
    if policy.weights is not None:
        write_policy_weights(folder, policy.weights.state_dict())
