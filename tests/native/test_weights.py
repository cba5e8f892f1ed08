"""Packed weights, unpacked again by loops written here. N outputs, K inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llamahome.native import load_native
from llamahome.native import weights as pack
from tests.native.int8 import dequantized

GROUP, LANES = 64, 16


def _random(n: int, k: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n * k))


def _packed(weight: Tensor, *, interleave: bool = False) -> tuple[Tensor, Tensor]:
    """Pack weights as `pack.linear` hands them to the kernels."""
    rows = pack._rows(len(weight), interleave, weight.device)
    load_native()
    return pack._quantized(weight, rows, pack.Arena())


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    """Unpack to (N, K), padding included, one number at a time as kernels.h describes."""
    panels, groups = scales.shape[:2]
    weight = torch.zeros(panels * LANES, groups * GROUP)
    for panel in range(panels):
        for group in range(groups):
            for quad in range(GROUP // 4):
                for lane in range(LANES):
                    scale = float(scales[panel, group, lane])
                    for i in range(4):
                        step = int(packed[panel, group, quad, lane, i]) - 128
                        weight[panel * LANES + lane, group * GROUP + 4 * quad + i] = step * scale
    return weight


@pytest.mark.parametrize(("n", "k"), [(32, 64), (40, 70), (1, 1), (33, 128), (16, 130)])
def test_int8_is_within_half_a_step_of_the_weight(n: int, k: int) -> None:
    weight = _random(n, k)
    packed, scales = _packed(weight)
    unpacked = _unpacked(packed, scales)
    assert packed.dtype == torch.uint8
    assert scales.dtype == torch.bfloat16
    assert unpacked.shape == (-(-n // 32) * 32, -(-k // GROUP) * GROUP)
    error = F.pad((unpacked[:n, :k] - weight).abs(), (0, -k % GROUP)).unflatten(1, (-1, GROUP))
    largest = F.pad(weight.abs(), (0, -k % GROUP)).unflatten(1, (-1, GROUP)).amax(-1)
    # Half a step; rounding a scale to bfloat16, by up to 2^-8, moves the largest weight with it.
    assert bool((error.amax(-1) <= largest / 127 * 0.5 + largest * 2**-8 + 1e-7).all())
    assert bool((packed >= 1).all())  # symmetric: -127 to 127
    assert unpacked[n:].abs().sum() == 0
    assert unpacked[:, k:].abs().sum() == 0
    torch.testing.assert_close(unpacked[:n, :k], dequantized(weight), rtol=0, atol=0)


def test_each_group_has_its_own_scale() -> None:
    weight = torch.ones(32, 192)
    weight[:, 64:128] *= 1e-6
    weight[:, 128:] = 0
    weight[3] = 0
    unpacked = _unpacked(*_packed(weight))
    torch.testing.assert_close(unpacked, weight, rtol=2**-8, atol=0)


def test_numbers_too_small_for_a_scale_become_zeros() -> None:
    weight = torch.full((32, 64), 1e-42)
    unpacked = _unpacked(*_packed(weight))
    assert bool((unpacked.abs() <= 2e-42).all())


@pytest.mark.parametrize("half", [16, 5, 20, 32, 50])
def test_panels_of_gate_and_up_alternate(half: int) -> None:
    """Each is padded by itself, so a gate and its up have the same lane."""
    rows = pack._rows(2 * half, True, torch.device("cpu")).view(-1, 2, LANES)
    gate, up = rows[:, 0].flatten(), rows[:, 1].flatten()
    assert gate[:half].tolist() == list(range(half))
    assert up[:half].tolist() == list(range(half, 2 * half))
    assert gate[half:].tolist() == up[half:].tolist() == [-1] * (-half % LANES)


@pytest.mark.parametrize("n", [1, 31, 32, 33])
def test_rows_are_padded_to_pairs_of_panels(n: int) -> None:
    rows = pack._rows(n, False, torch.device("cpu"))
    assert rows.tolist() == [*range(n), *[-1] * (-n % 32)]
    taken = pack._take_rows(torch.arange(1.0, n + 1), rows)  # for example a bias
    assert taken.tolist() == [*range(1, n + 1), *[0] * (-n % 32)]


def test_float32_weights_are_packed_in_panels() -> None:
    weight = _random(32, 10)
    panels = pack._arranged(weight)
    assert panels.shape == (2, 10, LANES)
    assert panels.is_contiguous()
    assert torch.equal(panels[1, 7], weight[16:, 7])


@pytest.mark.parametrize("interleave", [False, True])
def test_an_adapter_comes_in_the_order_of_its_layer(interleave: bool) -> None:
    down, up = _random(3, 10).half(), _random(40, 3).half()
    kept, panels = pack.adapter(down, up, interleave=interleave)
    assert torch.equal(kept, down.float())
    assert panels.shape == (4, 3, LANES)
    rows = pack._rows(40, interleave, up.device)
    for place, row in enumerate(rows.tolist()):
        expected = up[row].float() if row >= 0 else torch.zeros(3)
        assert torch.equal(panels[place // LANES, :, place % LANES], expected)


def test_a_layer_takes_only_an_adapter_that_fits() -> None:
    load_native()
    linear = pack.linear(_random(40, 70), torch.ones(40), int8=True)
    linear.set_adapter(0, *pack.adapter(_random(2, 70), _random(40, 2)))
    with pytest.raises(RuntimeError):
        linear.set_adapter(0, *pack.adapter(_random(2, 71), _random(40, 2)))
    with pytest.raises(RuntimeError):
        linear.set_adapter(0, *pack.adapter(_random(2, 70), _random(70, 2)))
