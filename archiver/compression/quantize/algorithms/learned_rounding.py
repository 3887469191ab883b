"""Learned rounding: whether a weight is rounded up or down, and how far its group's range is clipped, by signed gradients.

A weight becomes s·(clamp(round(w/s + v) + z, 0, 2^b − 1) − z) with v in −½ … ½ of its own and a scale from the group's
extremes times α and β in 0 … 1. All are moved by rate·sign(gradient) of how far the layer's outputs are from the
original's, with a rate that falls to zero; rounding passes gradients on as if it were not there.
Source: Cheng et al. 2023, AutoRound (SignRound), arXiv:2309.05516, eq. 3 to 5 and algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch

from archiver.compression.context import StageContext
from archiver.compression.quantize.grids import grouped, half_scale
from archiver.compression.quantize.layer_grids import (
    Grids,
    grids_of,
    moved_by,
    nearest_grids,
    split_tables,
    what_is_kept,
)
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.walk.blocks import Block, walk_blocks
from archiver.compression.walk.walk import by_layer
from archiver.errors import RecipeError
from archiver.state.constraints import straight_through

Tensor = torch.Tensor


class LearnedRounding:
    """The rounding of one weight, while it is learned.

    Args:
        weight: [rows, columns]. bits, group_size, symmetric: the grid, as `group_scales` takes it.
    """

    def __init__(self, weight: Tensor, bits: int, group_size: int | None, symmetric: bool) -> None:
        self.groups = grouped(weight.detach().float(), group_size)
        self.shape, self.bits, self.symmetric = weight.shape, bits, symmetric
        self.alive = self.groups != 0  # pruned weights stay zero
        self.offset = torch.zeros_like(self.groups, requires_grad=True)
        one = torch.ones(*self.groups.shape[:-1], 1)
        self.high = one.clone().requires_grad_()
        self.low = one.clone().requires_grad_()

    @property
    def learned(self) -> list[Tensor]:
        """What is moved: offsets, and the kept shares of the ranges."""
        return [self.offset, self.high] if self.symmetric else [self.offset, self.high, self.low]

    def values(self) -> Tensor:
        """[rows, columns] the rounded weight, through which gradients pass."""
        scale, zero = self.grid()
        steps = 2**self.bits - 1
        exact = self.groups / scale + self.offset * self.alive
        codes = straight_through(exact, exact.round())
        inside = (codes + zero).clamp(0, steps)
        return ((inside - zero) * scale).reshape(self.shape)

    def grid(self) -> tuple[Tensor, Tensor]:
        """(scale, zero), each [rows, groups, 1]; the scale in half precision, as it is stored."""
        steps = 2**self.bits - 1
        if self.symmetric:
            wide = self.groups.abs().amax(-1, keepdim=True) * self.high * (2 / steps)
            return straight_through(wide, half_scale(wide)), torch.full_like(wide, 2.0 ** (self.bits - 1))
        low = self.groups.amin(-1, keepdim=True).clamp(max=0) * self.low
        high = self.groups.amax(-1, keepdim=True).clamp(min=0) * self.high
        wide = (high - low) / steps
        scale = straight_through(wide, half_scale(wide))
        return scale, straight_through(-low / scale, (-low / scale).round().clamp(0, steps))

    @torch.no_grad()
    def move(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One step against the signs of the gradients of `learned`."""
        for value, gradient in zip(self.learned, gradients, strict=True):
            value -= rate * gradient.sign()
        self.offset.clamp_(-0.5, 0.5)
        for share in (self.high, self.low):
            share.clamp_(0.1, 1.0)


def fit(block: Block, bits: Mapping[str, int], options: WeightOnly) -> dict[str, LearnedRounding]:
    """Learn the rounding of a layer's weights, so that it gives what the original layer gave.

    Batches come in turns. What is kept is the end of the learning, or rounding to nearest where that is nearer over all
    batches.

    Args:
        block: the layer. bits: module name → width. options: grouping, and how many steps.
    Returns: module name → its rounding.
    """

    def new() -> dict[str, LearnedRounding]:
        return {
            name: LearnedRounding(
                block.layer.get_submodule(name.removeprefix(block.prefix)).get_parameter("weight"),
                bits[name], options.columns_per_group, options.is_symmetric(bits[name]),
            )
            for name in block.names
        }  # fmt: skip

    def error(index: int, found: Mapping[str, LearnedRounding]) -> Tensor:
        given = block.gives(index, {name: one.values() for name, one in found.items()})
        return (given - block.targets[index]).square().mean()

    roundings, steps = new(), options.learning_steps
    for step in range(steps):
        with torch.enable_grad():
            loss = error(step % len(block.calls), roundings)
            moved = [value for one in roundings.values() for value in one.learned]
            gradients = torch.autograd.grad(loss, moved, allow_unused=True)
        of = iter(_whole(gradients, moved))
        for one in roundings.values():
            one.move([next(of) for _ in one.learned], (1 - step / steps) / steps)
    with torch.no_grad():
        nearest = new()
        learned, before = (sum(float(error(i, one)) for i in range(len(block.calls))) for one in (roundings, nearest))
    return roundings if learned < before else nearest


def _whole(gradients: Sequence[Tensor | None], values: Sequence[Tensor]) -> Iterator[Tensor]:
    """The gradients, zeros where a module was not reached (an expert that no token went to)."""
    for gradient, value in zip(gradients, values, strict=True):
        yield torch.zeros_like(value) if gradient is None else gradient


def autoround_model(
    model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext
) -> Grids:  # fmt: skip
    """Round the weights of some modules by learned rounding, in place, layer after layer.

    Args:
        bits: module name → width. Tables, and what lies outside of the layers, are rounded to nearest.
        options: grouping, number of calibration texts and of steps.
    Returns: the grid of each module.
    Raises: RecipeError for a model whose layers cannot be run by themselves.
    """
    linears, _ = split_tables(model, bits)
    inside = [name for layer, group in by_layer(model, linears) if layer is not None for name in group]
    outside = [name for name in bits if name not in set(inside)]
    if not inside:
        raise RecipeError("autoround fits transformer layers, and none of the targets lies in one: use gptq or rtn")

    def visit(block: Block) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        for name, found in fit(block, bits, options).items():
            weight = model.get_submodule(name).get_parameter("weight")
            with torch.no_grad():
                scale, zero = found.grid()
                values = found.values()
                kept |= what_is_kept(name, scale[..., 0], zero[..., 0], moved_by(weight, values))
                weight.copy_(values)
        return kept

    kept = walk_blocks(model, inside, context, options.samples, visit, method="autoround")
    nearest = nearest_grids(model, {name: bits[name] for name in outside}, options)
    notes = [f"autoround: {options.learning_steps} steps a layer on {options.samples} training texts"]
    notes += [f"rounded to nearest, outside of the layers: {', '.join(outside)}"] if outside else []
    return dataclasses.replace(grids_of(inside, kept, bits, options, nearest), notes=notes)
