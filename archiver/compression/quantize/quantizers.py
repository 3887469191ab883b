"""Constraints that keep weights on a grid: while a stage trains, and through every later retraining.

A grid that follows its weights (scales, magnitudes, thresholds) is fitted anew to the latent weights at every training
step, and kept as it was last when the weights are baked: `freeze` makes that final.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from archiver.compression.quantize.grids import (
    binary_scale,
    group_scales,
    grouped,
    signs,
    ternary_grid,
    to_fixed_point,
    to_grid,
    to_ternary,
)
from archiver.compression.quantize.options import FixedPointFormat
from archiver.state.constraints import Constraint, straight_through

Tensor = torch.Tensor


class Quantizer(Constraint, ABC):
    """Rounds to a grid that `fit` takes from the weights, as long as it is not frozen."""

    frozen = False

    def fit(self, weight: Tensor) -> None:
        """Take the grid from the weights; nothing where the grid is given."""

    @abstractmethod
    def rounded(self, weight: Tensor) -> Tensor:
        """The weights on the grid as it is."""

    def freeze(self) -> None:
        """Keep the grid as it is from now on."""
        self.frozen = True

    def forward(self, weight: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and weight.requires_grad
        with torch.no_grad():
            # Outside of training steps, weights that are on the grid already are not fitted again: that would move them.
            if not self.frozen and (training or not torch.equal(self.rounded(weight), weight)):
                self.fit(weight)
            rounded = self.rounded(weight)
        return straight_through(weight, rounded)


class Grid(Quantizer):
    """(q − zero)·scale with q in 0 … 2^bits − 1, one scale and zero point for each group of a row's weights.

    Args:
        scale, zero: [rows, groups] float32.
        bits: of an integer.
        symmetric: the grid is fitted anew without a zero point of its own.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor, bits: int, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.symmetric = bits, symmetric
        self.register_buffer("scale", scale.detach().float().clone())
        self.register_buffer("zero", zero.detach().float().clone())

    @classmethod
    def of(cls, weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> Grid:
        """The grid that rounding to nearest gives a weight.

        Args:
            weight: [rows, columns].
            group_size: weights of a row with one scale; None: the row.
        Returns: a grid that is not frozen.
        """
        scale, zero = group_scales(grouped(weight.detach().float(), group_size), bits, symmetric)
        return cls(scale[..., 0], zero[..., 0], bits, symmetric)

    def fit(self, weight: Tensor) -> None:
        scale, zero = group_scales(self._groups(weight), self.bits, self.symmetric)
        self.scale, self.zero = scale[..., 0], zero[..., 0]

    def rounded(self, weight: Tensor) -> Tensor:
        values = to_grid(self._groups(weight), self.scale[..., None], self.zero[..., None], self.bits)
        return values.reshape(weight.shape)

    def grouping(self) -> tuple[Tensor, Tensor, int]:
        return self.scale, self.zero, self.bits

    def _groups(self, weight: Tensor) -> Tensor:
        return grouped(weight, weight.shape[1] // self.scale.shape[1])


class FixedPointGrid(Quantizer):
    """Multiples of one step; the storage codec for few distinct values finds them in the weight.

    Args:
        how: integer and fraction bits.
    """

    def __init__(self, how: FixedPointFormat) -> None:
        super().__init__()
        self.format = how
        self.frozen = True

    def rounded(self, weight: Tensor) -> Tensor:
        return to_fixed_point(weight, self.format)


class TernaryGrid(Quantizer):
    """−a, 0 and a, by a threshold that follows the weights.

    Args:
        weight: [rows, columns], what the grid is fitted to.
        granularity: one a for the "tensor" or for each "channel" (row).
    """

    threshold: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, granularity: str) -> None:
        super().__init__()
        self.granularity = granularity
        threshold, scale = ternary_grid(weight.detach().float(), granularity)
        self.register_buffer("threshold", threshold)
        self.register_buffer("scale", scale)

    def fit(self, weight: Tensor) -> None:
        self.threshold, self.scale = ternary_grid(weight, self.granularity)

    def rounded(self, weight: Tensor) -> Tensor:
        return to_ternary(weight, self.threshold, self.scale)


class Signs(Constraint):
    """sgn(w)·b: b follows the mean of |w| until it is frozen, is learned, or is a number.

    The gradient passes straight through to the latent weight, where |w| ≤ clip·b if a clip is given: a weight far from
    zero cannot change its sign soon, and its latent would only run away. A learned b gets, for each b, the mean over its
    weights of their gradient times their sign: the gradient of eq. 3 of the source, whose grid has the two points ±b here,
    scaled by the number of weights so that b and the weights learn at one pace.

    Args:
        weight: [rows, columns], what b is fitted to.
        scale: "mean", "learned" or a number above 0.
        granularity: one b for the "tensor" or for each "channel" (row).
        clip: no gradient where |w| is above this many b; None: everywhere.
    Source: Esser et al. 2020, LSQ, arXiv:1902.08153, eq. 3.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, scale: float | str, granularity: str, clip: float | None = None) -> None:
        super().__init__()
        self.granularity, self.clip = granularity, clip
        self.follows = scale == "mean"
        found = binary_scale(weight.detach().float(), granularity)
        if not isinstance(scale, str):
            found = torch.full_like(found, scale)
        if scale == "learned":
            self.scale = torch.nn.Parameter(found)
        else:
            self.register_buffer("scale", found)

    def freeze(self) -> None:
        """Keep b as it is, unless it is learned."""
        self.follows = False

    def forward(self, weight: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and weight.requires_grad
        with torch.no_grad():
            if self.follows and (training or not torch.equal(signs(weight) * self.scale, weight)):
                self.scale = binary_scale(weight, self.granularity)
        result: Tensor = _Signs.apply(weight, self.scale, self.clip)  # type: ignore[no-untyped-call]
        return result


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, clip: float | None) -> Tensor:
        ctx.clip = clip
        ctx.save_for_backward(weight, scale)
        return signs(weight) * scale.abs()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight, scale = ctx.saved_tensors
        to_scale = None
        if ctx.needs_input_grad[1]:
            share = gradient * signs(weight)
            share = share.mean(1, keepdim=True) if scale.shape[0] > 1 else share.mean().reshape(1, 1)
            to_scale = share * torch.where(scale < 0, -1.0, 1.0)
        if ctx.clip is not None:
            gradient = torch.where(weight.abs() <= ctx.clip * scale.abs(), gradient, torch.zeros_like(gradient))
        return gradient, to_scale, None
