"""The kernels against their plain versions: on a GPU where there is one, or interpreted.

Triton decides whether to interpret when it is imported, so without a GPU these files run in a
process of their own, which `test_interpreted.py` starts, and nothing else in the suite is touched.
By hand: `TRITON_INTERPRET=1 pytest tests/attention/kernels`.
"""

from __future__ import annotations

import os

import pytest
import torch

GPU = torch.cuda.is_available()
HERE = GPU or os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore = ["test_interpreted.py"] if HERE else []
if not HERE:
    collect_ignore_glob = ["test_*_kernel.py"]


@pytest.fixture
def device() -> str:
    return "cuda" if GPU else "cpu"
