"""GPTQ: weights are rounded column by column, and the columns not yet rounded make up for each error.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from archiver.compression.calibration import Moments, by_layer, input_moments
from archiver.compression.context import StageContext
from archiver.compression.modules import weighted_names
from archiver.compression.quantize.grids import group_scales, grouped, to_grid
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.quantizers import Grid

Tensor = torch.Tensor

DAMPING = 0.01  # λ, as a share of the Hessian's mean diagonal
_BLOCK = 128  # columns whose errors reach the columns behind the block in one product


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    *,
    act_order: bool = False,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor, Tensor]:
    """(values [rows, columns] float32, scale [rows, groups], zero [rows, groups]) that keep W·X where rounding would not.

    weight: [rows, columns]; hessian: XᵀX [columns, columns] of the layer's inputs, in any scale. Column j is rounded to
    q_j; its error (w_j − q_j) / U_jj times U_j,k is taken off every later column k, with U the upper Cholesky factor of
    (H + λI)⁻¹, λ = damping · mean(diag H). A group's scale is taken when its first column comes, from its weights as
    they are by then; with act_order columns come by falling diag(H), and scales are those of the original weights.
    Weights that are zero stay zero: they are pruned, and their share of each error goes on to the columns behind.
    A column whose input is always zero has no say: it is rounded as it is.
    raises torch.linalg.LinAlgError when the damped Hessian is not positive definite
    """
    rows, columns = weight.shape
    work = weight.detach().to(torch.float64).clone()
    alive = work != 0
    hessian = hessian.to(torch.float64).clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = hessian.diagonal().mean().clamp(min=1e-30)
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    work, alive, hessian = work[:, order], alive[:, order], hessian[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)

    size = columns if group_size is None else group_size
    scale, zero = (item.clone() for item in _scales(weight.detach().float(), size, bits, symmetric))
    result = torch.empty(rows, columns)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.zeros(rows, end - start, dtype=torch.float64)
        for j in range(start, end):
            group = int(order[j]) // size
            if not act_order and j % size == 0:
                # Columns behind the block have not had this block's errors yet: a group may reach there.
                behind = work[:, end : j + size] - errors[:, : j - start] @ upper[start:j, end : j + size]
                whole = torch.cat([work[:, j : min(end, j + size)], behind], dim=1) * alive[:, j : j + size]
                found, offset = group_scales(whole.float(), bits, symmetric)
                scale[:, group], zero[:, group] = found[:, 0], offset[:, 0]
            column = work[:, j]
            rounded = to_grid(column.float(), scale[:, group], zero[:, group], bits) * alive[:, j]
            error = (column - rounded.double()) / upper[j, j]
            work[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - start] = error
            result[:, j] = rounded
        work[:, end:] -= errors @ upper[start:end, end:]
    values = torch.empty_like(result)
    values[:, order] = result
    return values, scale, zero


def _scales(weight: Tensor, size: int, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    scale, zero = group_scales(grouped(weight, size), bits, symmetric)
    return scale[..., 0], zero[..., 0]


def gptq_model(
    model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext
) -> tuple[dict[str, Grid], list[str]]:
    """Round the weights of `bits` (name → width) in place, layer after layer; the grid of each, and notes.

    Each layer's inputs are those that the already rounded layers below it give. Embedding tables have no inputs to
    weigh their errors by, and are rounded to nearest.
    """
    linears, tables = split_tables(model, bits)
    grids = {name: nearest_grid(model, name, bits[name], options) for name in tables}
    for group in by_layer(model, linears):
        moments = moments_of_twins(model, group, context, options.samples)
        for name in group:
            weight = model.get_submodule(name).get_parameter("weight")
            symmetric = options.is_symmetric(bits[name])
            how = (bits[name], options.columns_per_group, symmetric)
            values, scale, zero = gptq(weight, moments[name].gram, *how, act_order=options.act_order is not False)
            with torch.no_grad():
                weight.copy_(values)
            grids[name] = Grid(scale, zero, bits[name], symmetric)
        context.say(f"    gptq: {group[-1]} and what is beside it, {len(grids)} of {len(bits)} modules")
    notes = [f"gptq on {options.samples} training texts, damping {DAMPING:.0%}"]
    if tables:
        notes.append(f"rounded to nearest, for want of inputs: {', '.join(tables)}")
    return grids, notes


def split_tables(model: torch.nn.Module, names: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """(linear layers, embedding tables)."""
    tables = [name for name in names if isinstance(model.get_submodule(name), torch.nn.Embedding)]
    return [name for name in names if name not in tables], tables


def nearest_grid(model: torch.nn.Module, name: str, bits: int, options: WeightOnly) -> Grid:
    """The grid that rounding to nearest takes."""
    weight = model.get_submodule(name).get_parameter("weight")
    return Grid.of(weight, bits, options.columns_per_group, options.is_symmetric(bits))


def moments_of_twins(
    model: torch.nn.Module, names: list[str], context: StageContext, samples: int
) -> dict[str, Moments]:  # fmt: skip
    """The moments of each layer's inputs, those of all layers added up that share its weight."""
    shared = {
        name: [n for n in _twins(model, name) if isinstance(model.get_submodule(n), torch.nn.Linear)] for name in names
    }
    found = input_moments(model, [twin for twins in shared.values() for twin in twins], context, samples)
    for name, twins in shared.items():
        for twin in twins:
            if twin != name:
                found[name].gram += found[twin].gram
                found[name].absolute += found[twin].absolute
                found[name].tokens += found[twin].tokens
    return {name: found[name] for name in names}


def _twins(model: torch.nn.Module, name: str) -> list[str]:
    weight = model.get_submodule(name).weight
    return [other for other in weighted_names(model) if model.get_submodule(other).weight is weight]
