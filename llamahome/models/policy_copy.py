"""Folders of models that are made to carry a policy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from llamahome.attention import Policy
from llamahome.config import PolicyConfig
from llamahome.models.checksums import CHECKSUMS, write_checksums
from llamahome.models.folders import build_once
from llamahome.models.json_files import read_json
from llamahome.models.policy_io import (
    ADAPTER_POLICY,
    KEY,
    POLICY_WEIGHTS,
    encode_policy,
    read_adapter_policy,
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
        config = source / CONFIG
        if config.is_file():
            _write_config(read_json(config), policy.config, folder)
        else:
            write_adapter_policy(folder, policy.config)
        if policy.weights is not None:
            write_policy_weights(folder, policy.weights.state_dict())
        write_checksums(folder)

    build_once(target.absolute(), build)


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def add_policy(folder: Path, policy: Path) -> None:
    """Make the model in `folder` carry the policy in the folder `policy`, as adapters have one."""
    config = read_adapter_policy(policy)
    assert config is not None
    _write_config(read_json(folder / CONFIG), config, folder)
    shutil.copyfile(policy / POLICY_WEIGHTS, folder / POLICY_WEIGHTS)


def _write_config(content: dict[str, Any], policy: PolicyConfig, folder: Path) -> None:
    content = {**content, KEY: encode_policy(policy)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
