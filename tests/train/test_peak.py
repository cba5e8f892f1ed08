"""Peak speed of devices."""

from __future__ import annotations

import pytest
import torch

from train.peak import data_sheet, device_peak


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_gpus_are_found_by_name(name: str, bf16: float) -> None:
    sheet = data_sheet(name)
    assert sheet is not None
    assert sheet[0] == bf16
    assert sheet[1] < bf16


@pytest.mark.parametrize("name", ["NVIDIA A10G", "Tesla T4", "CPU"])
def test_others_are_not_guessed(name: str) -> None:
    assert data_sheet(name) is None


def test_a_cpu_is_measured_once() -> None:
    peak = device_peak(torch.device("cpu"), "fp32")
    assert 1e8 < peak.flops < 1e15
    assert peak.source.startswith("CPU, fp32, ")
    assert "measured" in peak.source
    assert device_peak(torch.device("cpu"), "fp32") == peak
