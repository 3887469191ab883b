"""GPTQ: weights are rounded column by column, and later columns are adjusted to compensate for each error.

Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from archiver.compression.calibration import Moments
from archiver.compression.context import StageContext
from archiver.compression.quantize.algorithms.clipping import clipped_scales
from archiver.compression.quantize.grids import group_scales, grouped, to_grid
from archiver.compression.quantize.layer_grids import Grids, grids_by_layer
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
    scales: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix so that it keeps W·X where rounding each weight by itself would not.

    Column j is rounded to q_j; its error (w_j − q_j) / U_jj times U_j,k is taken off every later column k, with U the
    upper Cholesky factor of (H + λI)⁻¹, λ = damping · mean(diag H). A group's scale is taken when its first column comes,
    from its weights as they are by then; with act_order columns come by falling diag(H), and scales are those of the
    original weights. Weights that are zero stay zero: they are pruned, and their share of each error goes on to the
    columns behind. A column whose input is always zero is rounded as it is, since nothing depends on it.

    Args:
        weight: [rows, columns].
        hessian: H = XᵀX [columns, columns] of the layer's inputs, in any scale.
        bits, group_size, symmetric: the grid, as `group_scales` takes it; group_size None: one group a row.
        act_order: columns with the largest inputs first.
        damping: λ as a share of H's mean diagonal.
        scales: (scale, zero), each [rows, groups], that the groups are to have; None: as told above.
    Returns: (values [rows, columns] float32, scale [rows, groups], zero [rows, groups]).
    Raises: torch.linalg.LinAlgError when the damped H is not positive definite.
    Source: Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
    """
    rows, columns = weight.shape
    work = weight.detach().to(torch.float64).clone()
    alive = work != 0
    hessian = hessian.to(torch.float64).clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = hessian.diagonal().mean().clamp(min=1e-30)
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    if act_order:
        work, alive, hessian = work[:, order], alive[:, order], hessian[order][:, order]
    upper = _inverse_factor(hessian)
    del hessian

    size = columns if group_size is None else group_size
    first = _scales(weight.detach().float(), size, bits, symmetric) if scales is None else scales
    scale, zero = (item.clone() for item in first)
    result = torch.empty(rows, columns)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.zeros(rows, end - start, dtype=torch.float64)
        for j in range(start, end):
            group = int(order[j]) // size
            if scales is None and not act_order and j % size == 0:
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


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of a matrix's inverse. Of a wide layer each is hundreds of megabytes: two at a time."""
    lower = torch.linalg.cholesky(hessian, out=hessian)
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True, out=inverse)
    return upper


def _scales(weight: Tensor, size: int, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    scale, zero = group_scales(grouped(weight, size), bits, symmetric)
    return scale[..., 0], zero[..., 0]


def compensated(bits: Mapping[str, int], options: WeightOnly) -> Callable[[str, Tensor, Moments], Grid]:
    """The `grid_of` that clips each group's range and lets GPTQ round onto it.

    Clipped ranges are the larger gain: SmolLM2 in 4 bits loses 8.8 % with them where it loses 14.2 % with the extremes.

    Args:
        bits: module name → width. options: grouping, order of columns.
    """

    def grid_of(name: str, weight: Tensor, moments: Moments) -> Grid:
        symmetric = options.is_symmetric(bits[name])
        how = (bits[name], options.columns_per_group, symmetric)
        scales = clipped_scales(weight.detach(), moments.gram.float(), *how)
        values = gptq(weight, moments.gram, *how, act_order=options.act_order is not False, scales=scales)[0]
        with torch.no_grad():
            weight.copy_(values)
        return Grid(*scales, bits[name], symmetric)

    return grid_of


def gptq_model(model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext) -> Grids:
    """Round the weights of some modules by GPTQ, in place, layer after layer.

    Args:
        bits: module name → width. Embedding tables have no inputs to weigh errors by, and are rounded to nearest.
        options: grouping, order of columns, number of calibration texts.
    Returns: the grid of each module.
    Raises: RecipeError when no calibration text reaches a layer.
    """

    found = grids_by_layer(model, bits, options, context, "gptq", compensated(bits, options))
    line = f"gptq on {options.samples} training texts, damping {DAMPING:.0%}; ranges clipped"
    return dataclasses.replace(found, notes=[line, *found.notes])
