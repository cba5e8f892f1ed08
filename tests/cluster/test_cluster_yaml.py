"""The two `ray up` files, against Ray's own schema and the project's promises."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster-local.yaml")


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(params=FILES)
def written(request) -> dict:
    return read(request.param)


@pytest.fixture
def prepared(written) -> dict:
    """The config as `ray up` uses it: with defaults and node types filled in."""
    return prepare_config(copy.deepcopy(written))


def test_ray_accepts_the_file(prepared):
    validate_config(prepared)


@pytest.mark.parametrize("section", ["", "auth"])
def test_ray_refuses_a_typo(written, section):
    (written[section] if section else written)["idle_timeout_minuts"] = 1
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(written))


def test_ray_refuses_a_typo_in_a_node_type():
    config = read("cluster.yaml")
    config["available_node_types"]["gpu_worker"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_workers_have_a_range_that_adds_up(prepared):
    types = prepared["available_node_types"]
    workers = {n: t for n, t in types.items() if t["max_workers"] > 0}
    assert workers
    for node_type in workers.values():
        assert 0 <= node_type["min_workers"] <= node_type["max_workers"]
    assert sum(t["min_workers"] for t in types.values()) <= prepared["max_workers"]
    assert prepared["max_workers"] <= sum(t["max_workers"] for t in workers.values())
    assert prepared["idle_timeout_minutes"] > 0


def test_own_machines_are_all_started():
    config = prepare_config(read("cluster-local.yaml"))
    (node_type,) = config["available_node_types"].values()
    assert node_type["min_workers"] == len(config["provider"]["worker_ips"])
    assert config["provider"]["head_ip"] not in config["provider"]["worker_ips"]


def test_cloud_workers_are_spot_machines_with_a_gpu_and_the_head_is_not():
    types = read("cluster.yaml")["available_node_types"]
    spot = {"MarketType": "spot"}
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == spot
    assert re.match(r"g\d|p\d", types["gpu_worker"]["node_config"]["InstanceType"])
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_cloud_machines_take_a_security_group_of_the_users_own():
    # Ray's own group, with or without provider.security_group, opens ssh to 0.0.0.0/0.
    config = read("cluster.yaml")
    assert "security_group" not in config["provider"]
    for node_type in config["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"]
        assert node_type["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeType"] == "gp3"


def test_dashboard_stays_on_loopback(prepared):
    (start,) = (c for c in prepared["head_start_ray_commands"] if "ray start" in c)
    assert re.findall(r"--dashboard-host=(\S+)", start) == ["127.0.0.1"]


def test_every_node_asks_for_the_token(prepared):
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (c for c in prepared[commands] if "ray start" in c)
        assert "export RAY_AUTH_MODE=token; ray start" in start


def test_nodes_get_this_folder_and_install_it_as_a_laptop_does(prepared):
    assert prepared["file_mounts"]["~/llamahome"] == "."
    assert {".git", ".venv"} <= set(prepared["rsync_exclude"])
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert "make -C ~/llamahome install" in prepared[commands]
    installs_ray = [c for c in prepared["head_setup_commands"] if re.search(r"install.*\bray\b", c)]
    assert not installs_ray  # its version is in constraints.txt


def test_ray_is_pinned_to_the_version_that_these_files_were_tried_with():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (ray_pin,) = (pin for pin in pins if pin.startswith("ray=="))
    (tried,) = re.findall(r"Ray (\d+\.\d+)'s", (ROOT / "cluster-local.yaml").read_text())
    assert ray_pin.startswith(f"ray=={tried}.")
