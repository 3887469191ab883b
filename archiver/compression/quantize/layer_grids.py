"""What GPTQ, AWQ and scale estimation share: layers one after another, tables to nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from archiver.compression.calibration import Moments
from archiver.compression.context import StageContext
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.quantizers import Grid
from archiver.compression.walk.walk import walk

Tensor = torch.Tensor
_SCALE, _ZERO, _MOVED = ".grid.scale", ".grid.zero", ".moved"  # endings of the names of what a walk keeps


@dataclass(frozen=True)
class Grids:
    """What an algorithm has found.

    Args:
        grids: module → its grid. notes: sentences for the report. kept: what the visits of a walk gave to keep.
        moved: [2] float64, Σ‖w‖² of the weights before and Σ‖w' − w‖² of how far they were moved.
    """

    grids: dict[str, Grid]
    notes: list[str]
    kept: Mapping[str, Tensor]
    moved: Tensor


def moved_by(before: Tensor, after: Tensor) -> Tensor:
    """[2] float64, ‖w‖² and ‖w' − w‖²."""
    return torch.stack([before.double().square().sum(), (after - before).double().square().sum()])


def grids_by_layer(
    model: torch.nn.Module,
    bits: Mapping[str, int],
    options: WeightOnly,
    context: StageContext,
    method: str,
    grid_of: Callable[[str, Tensor, Moments], Grid],
    prepare: Callable[[Sequence[str], dict[str, Moments]], Mapping[str, Tensor]] | None = None,
) -> Grids:
    """A grid for each module, layer after layer, with inputs that the already rounded layers below give.

    Args:
        bits: module name → width.
        options: grouping and number of calibration texts.
        method: what progress is said of.
        grid_of: (name, weight [rows, columns], moments of its inputs) → its grid; it moves the weight onto it, in place.
            Rows are rounded independently of each other: those of modules with the same inputs come together.
        prepare: (names of a group, moments of each) is called before the group is rounded; it may put other moments in
            place, and gives tensors to keep.
    Returns: the grids, with notes on tables, which have no inputs and are rounded to nearest.
    Raises: RecipeError when no calibration text reaches a layer.
    """
    linears, tables = split_tables(model, bits)

    def visit(group: Sequence[str], moments: dict[str, Moments]) -> dict[str, Tensor]:
        kept = dict(prepare(group, moments)) if prepare is not None else {}
        for names in _alike(group, moments, bits):
            weights = [model.get_submodule(name).get_parameter("weight") for name in names]
            rows = [len(weight) for weight in weights]
            together = torch.cat([weight.detach() for weight in weights])
            grid = grid_of(names[0], together, moments[names[0]])
            parts = zip(*(item.split(rows) for item in (together, grid.scale, grid.zero)), strict=True)
            for name, weight, (values, scale, zero) in zip(names, weights, parts, strict=True):
                kept |= what_is_kept(name, scale, zero, moved_by(weight.detach(), values))
                with torch.no_grad():
                    weight.copy_(values)
        return kept

    kept = walk(model, linears, context, options.samples, visit, method=method)
    nearest = nearest_grids(model, {name: bits[name] for name in tables}, options)
    notes = [f"rounded to nearest, for want of inputs: {', '.join(tables)}"] if tables else []
    return replace(grids_of(linears, kept, bits, options, nearest), notes=notes)


def _alike(
    names: Sequence[str], moments: Mapping[str, Moments], bits: Mapping[str, int]
) -> list[list[str]]:  # fmt: skip
    """Modules with the same inputs and width: their rows are rounded as those of one matrix, in fewer and larger steps."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in names:
        found.setdefault((id(moments[name]), bits[name]), []).append(name)
    return list(found.values())


def what_is_kept(name: str, scale: Tensor, zero: Tensor, moved: Tensor) -> dict[str, Tensor]:
    """What a walk keeps of a module's grid: scale and zero [rows, groups], moved [2]."""
    return {f"{name}{_SCALE}": scale, f"{name}{_ZERO}": zero, f"{name}{_MOVED}": moved}


def grids_of(
    names: Sequence[str], kept: Mapping[str, Tensor], bits: Mapping[str, int], options: WeightOnly, others: Grids
) -> Grids:
    """The grids of the modules that a walk has visited, from what it kept, and those of others beside them."""
    grids, moved = dict(others.grids), others.moved
    for name in names:
        how = (bits[name], options.is_symmetric(bits[name]))
        grids[name] = Grid(kept[f"{name}{_SCALE}"], kept[f"{name}{_ZERO}"], *how)
        moved = moved + kept[f"{name}{_MOVED}"]
    return Grids(grids, list(others.notes), kept, moved)


def rounded_with(
    scales: Callable[[Tensor, Tensor, int, int | None, bool], tuple[Tensor, Tensor]],
    bits: Mapping[str, int],
    options: WeightOnly,
) -> Callable[[str, Tensor, Moments], Grid]:
    """The `grid_of` of methods that choose scales and then round to nearest.

    Args:
        scales: (weight, XᵀX of its inputs, bits, group size, symmetric) → (scale, zero), each [rows, groups].
        bits: module name → width. options: grouping.
    """

    def grid_of(name: str, weight: Tensor, moments: Moments) -> Grid:
        symmetric = options.is_symmetric(bits[name])
        found = scales(weight.detach(), moments.gram.float(), bits[name], options.columns_per_group, symmetric)
        grid = Grid(*found, bits[name], symmetric)
        with torch.no_grad():
            weight.copy_(grid.rounded(weight))
        return grid

    return grid_of


def split_tables(model: torch.nn.Module, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(names of linear layers, names of embedding tables)."""
    linears: list[str] = []
    tables: list[str] = []
    for name in names:
        (tables if isinstance(model.get_submodule(name), torch.nn.Embedding) else linears).append(name)
    return linears, tables


def nearest_grids(model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly) -> Grids:
    """The grids that rounding to nearest takes; the weights stay as they are.

    Args:
        bits: module name → width. options: grouping.
    """
    grids, moved = {}, torch.zeros(2, dtype=torch.float64)
    for name, width in bits.items():
        weight = model.get_submodule(name).get_parameter("weight").detach()
        grids[name] = Grid.of(weight, width, options.columns_per_group, options.is_symmetric(width))
        moved += moved_by(weight, grids[name].rounded(weight))
    return Grids(grids, [], {}, moved)
