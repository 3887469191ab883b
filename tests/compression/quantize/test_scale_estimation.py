"""Scale estimation: one group by hand, and never worse than rounding to nearest."""

from __future__ import annotations

import pytest
import torch

from archiver.compression.quantize.algorithms.estimation import estimated_scales
from archiver.compression.quantize.algorithms.search import output_error
from archiver.compression.quantize.grids import group_scales, grouped, to_grid


def test_one_group_by_hand() -> None:
    """Only the first input is ever there: its weight 0.7 has code 7 (of −8 … 7), so the scale becomes 0.7 / 7."""
    weight = torch.tensor([[0.7, 0.33, -0.12]])
    gram = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    start, zero = group_scales(weight.view(1, 1, 3), 4, True)
    assert start.item() == pytest.approx(2 * 0.7 / 15, rel=1e-3) and zero.item() == 8
    assert to_grid(weight, start[0], zero[0], 4)[0, 0].item() == pytest.approx(7 * 2 * 0.7 / 15, rel=1e-3)
    scale, zero = estimated_scales(weight, gram, 4, None, True)
    assert scale.item() == torch.tensor(0.1, dtype=torch.float16).item() and zero.item() == 8
    assert to_grid(weight, scale, zero, 4)[0, 0].item() == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize(("bits", "size", "symmetric"), [(4, 8, True), (3, 16, False), (2, 8, False), (8, None, True)])
def test_outputs_err_less_than_rounded_to_nearest(bits, size, symmetric) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 32, generator=generator)
    inputs = torch.randn(200, 32, generator=generator) * torch.linspace(0.1, 3, 32)
    gram = inputs.T @ inputs

    def loss(scale: torch.Tensor, zero: torch.Tensor) -> float:
        rounded = to_grid(grouped(weight, size), scale[..., None], zero[..., None], bits).reshape(weight.shape)
        return float(output_error(rounded - weight, gram).sum())

    plain = loss(*(item[..., 0] for item in group_scales(grouped(weight, size), bits, symmetric)))
    assert loss(*estimated_scales(weight, gram, bits, size, symmetric)) < (0.9 if bits < 8 else 1.0) * plain


def test_zeros_stay() -> None:
    weight = torch.zeros(2, 4)
    scale, zero = estimated_scales(weight, torch.eye(4), 4, None, True)
    assert (to_grid(weight, scale, zero, 4) == 0).all() and (scale == 1).all()
