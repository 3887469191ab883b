"""Scale estimation: integers as rounding to nearest gives them, each group's scale the one with the least output error.

With codes c = q − zero held, the error of a row's outputs ‖X·(s·c − w)‖² is a parabola in the group's scale s, whose lowest
point is s = (cᵀG·w − cᵀr) / (cᵀG·c): G = XᵀX of the group's inputs, r what the row's other groups err by there. Then the
codes are rounded anew with that scale, and so on, as long as it helps.
Source: the idea and the name are NNCF's (its ScaleEstimation weighs each weight by its input's magnitude); here the error
is that of the outputs, with the inputs' second moments as in GPTQ (Frantar et al. 2022, arXiv:2210.17323, eq. 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from archiver.compression.context import StageContext
from archiver.compression.quantize.algorithms.search import search_scales
from archiver.compression.quantize.grids import half_scale, to_grid
from archiver.compression.quantize.layer_grids import Grids, grids_by_layer, rounded_with
from archiver.compression.quantize.options import WeightOnly

Tensor = torch.Tensor

STEPS = 8  # of codes and scale in turns


def estimated_scales(
    weight: Tensor, gram: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scales with the least error of the outputs, codes and scales in turns; never worse than the groups' extremes give.

    Args:
        weight: [rows, columns].
        gram: XᵀX [columns, columns] of the layer's inputs.
        bits, group_size, symmetric: the grid, as `group_scales` takes it; group_size None: one group a row.
    Returns: (scale, zero), each [rows, groups].
    """

    def lowest(
        group: Tensor, own: Tensor, others: Tensor, scale: Tensor, zero: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(STEPS):
            codes = to_grid(group, scale, zero, bits) / scale
            weighed = codes @ own
            top = (weighed * group).sum(-1, keepdim=True) - (codes * others).sum(-1, keepdim=True)
            bottom = (weighed * codes).sum(-1, keepdim=True)
            scale = torch.where((bottom > 0) & (top > 0), half_scale(top / bottom), scale)
            yield scale, zero

    return search_scales(weight, gram, bits, group_size, symmetric, lowest)


def scale_estimation_model(
    model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext
) -> Grids:
    """Round the weights of some modules with estimated scales, in place, layer after layer.

    Args:
        bits: module name → width. Embedding tables are rounded to nearest.
        options: grouping, number of calibration texts.
    Returns: the grid of each module.
    Raises: RecipeError when no calibration text reaches a layer.
    """
    grid_of = rounded_with(estimated_scales, bits, options)
    found = grids_by_layer(model, bits, options, context, "scale estimation", grid_of)
    return dataclasses.replace(found, notes=[f"scales estimated on {options.samples} training texts", *found.notes])
