"""Grids of allowed weights, as functions on tensors: integers in groups, fixed point, signs, three values.

A grid of integers says w ≈ (q − zero)·scale with q in 0 … 2^bits − 1, one scale and zero point for a group of
neighbours within a row (along the inputs). Zero is on every such grid: a pruned weight stays zero.
"""

from __future__ import annotations

import torch

from archiver.compression.quantize.options import FixedPointFormat

Tensor = torch.Tensor

TERNARY_THRESHOLD = 0.7
_LEAST_SCALE = 2.0**-24  # the smallest number above 0 in half precision


def group_scales(weight: Tensor, bits: int, symmetric: bool, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group, from its extremes.

    Symmetric: scale = 2·max|w| / (2^bits − 1), zero = 2^(bits − 1). Else the range [min(w, 0), max(w, 0)] is divided into
    2^bits − 1 steps and zero is rounded to one of them. The scale is a half-precision number, so that it is stored in two
    bytes and nothing is rounded afterwards.

    Args:
        weight: [..., group_size].
        bits: of an integer.
        symmetric: no zero point of the group's own.
        shrink: share of the range that is kept; what lies outside is clipped.
    Returns: (scale [..., 1], zero [..., 1]).
    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1; the symmetric form as in GPTQ's code, which uses all 2^bits steps.
    """
    steps = 2**bits - 1
    if symmetric:
        scale = half_scale(weight.abs().amax(-1, keepdim=True) * shrink * (2 / steps))
        return scale, torch.full_like(scale, 2.0 ** (bits - 1))
    low = weight.amin(-1, keepdim=True).clamp(max=0) * shrink
    high = weight.amax(-1, keepdim=True).clamp(min=0) * shrink
    scale = half_scale((high - low) / steps)
    return scale, (-low / scale).round().clamp(0, steps)


def half_scale(scale: Tensor) -> Tensor:
    """The nearest half-precision numbers above 0; 1 where the scale is 0 (a group of zeros).

    Args:
        scale: any shape, not negative.
    Returns: the same shape and type.
    """
    rounded = scale.clamp(_LEAST_SCALE, 65504.0).to(torch.float16).to(scale.dtype)
    return torch.where(scale > 0, rounded, torch.ones_like(scale))


def to_grid(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest (q − zero)·scale with q in 0 … 2^bits − 1; ties go to the even q − zero.

    Args:
        weight, scale, zero: float32, of shapes that broadcast.
        bits: of an integer.
    Returns: values of the broadcast shape, float32.
    """
    q = ((weight / scale).round() + zero).clamp(0, 2**bits - 1)
    return (q - zero) * scale


def grouped(weight: Tensor, group_size: int | None) -> Tensor:
    """A matrix with its rows divided into groups.

    Args:
        weight: [rows, columns].
        group_size: a divisor of columns; None: one group a row.
    Returns: [rows, groups, group_size], a view where that is possible.
    """
    rows, columns = weight.shape
    size = columns if group_size is None else group_size
    return weight.reshape(rows, columns // size, size)


def round_to_nearest(
    weight: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Each weight as the nearest value on its group's grid.

    Args:
        weight: [rows, columns].
        bits, group_size, symmetric: the grid, as `group_scales` and `grouped` take it.
    Returns: (values [rows, columns], scale [rows, groups], zero [rows, groups]).
    """
    groups = grouped(weight, group_size)
    scale, zero = group_scales(groups, bits, symmetric)
    return to_grid(groups, scale, zero, bits).reshape(weight.shape), scale[..., 0], zero[..., 0]


def to_fixed_point(weight: Tensor, how: FixedPointFormat) -> Tensor:
    """The nearest multiple of 2^−f, ties to the even multiple, saturating at −2^i and 2^i − 2^−f; exact in float32.

    Args:
        weight: any shape.
        how: i integer and f fraction bits.
    Returns: the same shape.
    """
    step, limit = 2.0**-how.fraction, 2.0**how.integer
    return (weight / step).round().mul(step).clamp(-limit, limit - step)


def binary_scale(weight: Tensor, granularity: str) -> Tensor:
    """b = mean|w|, which minimises ‖w − b·sgn(w)‖².

    Args:
        weight: [rows, columns].
        granularity: "tensor" or "channel".
    Returns: [1, 1] for a tensor, [rows, 1] for channels.
    Source: Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279, eq. 6.
    """
    magnitude = weight.abs()
    return magnitude.mean().reshape(1, 1) if granularity == "tensor" else magnitude.mean(1, keepdim=True)


def signs(weight: Tensor) -> Tensor:
    """−1 where the weight is below zero, else +1: sgn(0) = +1."""
    return torch.where(weight < 0, -torch.ones_like(weight), torch.ones_like(weight))


def ternary_grid(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """The threshold Δ = 0.7·mean|w|, and the mean of |w| above it.

    Args:
        weight: [rows, columns].
        granularity: "tensor" or "channel".
    Returns: (threshold, scale), each [1, 1] for a tensor, [rows, 1] for channels.
    Source: Li & Liu 2016, Ternary Weight Networks, arXiv:1605.04711, eq. 5 and 6.
    """
    magnitude = weight.abs().reshape(1, -1) if granularity == "tensor" else weight.abs()
    threshold = TERNARY_THRESHOLD * magnitude.mean(1, keepdim=True)
    above = magnitude > threshold
    return threshold, (magnitude * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp(min=1)


def to_ternary(weight: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """sgn(w)·scale where |w| is above the threshold, else 0.

    Args:
        weight: [rows, columns].
        threshold, scale: as `ternary_grid` gives them.
    Returns: [rows, columns].
    """
    return torch.where(weight.abs() > threshold, torch.sign(weight) * scale, torch.zeros_like(weight))
