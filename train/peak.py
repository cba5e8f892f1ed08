"""Peak speed of a worker's device: from its data sheet, or measured once."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache

import torch

# Dense matrix products, 1e12 operations a second: in bf16 with tensor cores, and in fp32 without.
# From NVIDIA's data sheets and architecture papers. A device is the first whose words are all in
# its name, as CUDA has it; one that is not here is measured.
DATA_SHEETS: dict[str, tuple[float, float]] = {
    "H200 NVL": (835.5, 60.0),
    "H200": (989.4, 66.9),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "A30": (165.0, 10.3),
    "A40": (149.7, 37.4),
    "A10": (125.0, 31.2),
    "A6000": (154.8, 38.7),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "4090": (165.2, 82.6),
    "3090": (71.0, 35.6),
}
SIZES = {"cpu": 1024, "cuda": 8192}  # rows and columns of the product that is measured
TRIES = 4


@dataclass(frozen=True)
class Peak:
    """Peak speed of one device.

    Attributes:
        flops: operations a second.
        source: the device, the precision, and where the number is from.
    """

    flops: float
    source: str


def device_peak(device: torch.device, precision: str) -> Peak:
    """Return the peak of a worker's device in `trainer.precision`.

    `mixed` and `bf16` multiply in bf16.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    spelled = "fp32" if dtype == torch.float32 else "bf16"
    sheet = data_sheet(name)
    if sheet is not None:
        flops = sheet[dtype == torch.float32] * 1e12
        return Peak(flops, f"{name}, {spelled}, data sheet")
    count = torch.get_num_threads()
    plural = "" if count == 1 else "s"
    threads = f", {count} thread{plural}" if device.type == "cpu" else ""
    flops = _measured(device, dtype, count)
    return Peak(flops, f"{name}, {spelled}{threads}, measured by a matrix product")


def data_sheet(name: str) -> tuple[float, float] | None:
    """Return the peaks of a GPU in bf16 and fp32 by its name, 1e12 a second; None if unknown."""
    words = set(re.split(r"[ -]", name))
    return next((peaks for key, peaks in DATA_SHEETS.items() if set(key.split()) <= words), None)


@cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Return the speed of the fastest of some square matrix products, operations a second."""
    size = SIZES[device.type]
    left = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
