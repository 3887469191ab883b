"""AWQ: input channels that carry large activations are scaled up before rounding, and ranges are clipped where that pays.

Source: Lin et al. 2023, arXiv:2306.00978, § 3.2 (scaling) and its code's search for clipping.

A channel's scale s lies neither in the grid (a scale for each group of a row) nor in the runtime: it is folded into what
comes before, W·x = (W·diag(s))·(x/s). That is exact where a norm feeds only these layers (pre-norm decoders: attention's
and feed-forward's inputs), where a value projection feeds the output projection, and where a gate's `up` feeds `down`.
Where it is not (behind a post-norm, whose output also goes on beside the layers; across GELU), only clipping is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from archiver.architecture import Fold
from archiver.compression.calibration import Moments
from archiver.compression.context import StageContext
from archiver.compression.quantize.algorithms.clipping import clipped_scales
from archiver.compression.quantize.algorithms.folding import folds_of
from archiver.compression.quantize.algorithms.gptq import compensated
from archiver.compression.quantize.algorithms.search import output_error
from archiver.compression.quantize.grids import group_scales, grouped, to_grid
from archiver.compression.quantize.layer_grids import Grids, grids_by_layer, rounded_with, split_tables
from archiver.compression.quantize.options import WeightOnly

Tensor = torch.Tensor

_ALPHA = ".alpha"  # ending of the names of what a walk keeps
STEPS = 20  # of the search for α in 0 … 1


def channel_scale(absolute: Tensor, alpha: float) -> Tensor:
    """s = mean|x|^α, divided by √(max s · min s); 1 for channels that are always zero.

    Args:
        absolute: [columns], mean|x| of each input channel, or its sum.
        alpha: 0 ≤ α ≤ 1.
    Returns: [columns].
    """
    alive = absolute > 0
    if not alive.any():
        return torch.ones_like(absolute)
    scale = torch.where(alive, absolute, torch.ones_like(absolute)).pow(alpha).clamp(1e-4, 1e4)
    scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, torch.ones_like(scale))


def search_alpha(
    weights: Sequence[Tensor], bits: Sequence[int], absolute: Tensor, gram: Tensor, options: WeightOnly
) -> tuple[float, float]:
    """The α of 0, 1/20 … 1 with the least error of the outputs, ‖Q(W·diag(s))·diag(s)⁻¹·X − W·X‖.

    Args:
        weights: of all layers that take these inputs, each [rows, columns].
        bits: the width of each.
        absolute: [columns], mean|x| of each input channel, or its sum.
        gram: XᵀX [columns, columns].
        options: grouping and symmetry of the grid.
    Returns: (α, its error as a share of that without scaling).
    Source: Lin et al. 2023, arXiv:2306.00978, eq. 5.
    """
    errors = []
    for step in range(STEPS + 1):
        scale = channel_scale(absolute, step / STEPS)
        total = 0.0
        for weight, width in zip(weights, bits, strict=True):
            groups = grouped(weight * scale, options.columns_per_group)
            rounded = to_grid(groups, *group_scales(groups, width, options.is_symmetric(width)), width)
            total += float(output_error(rounded.reshape(weight.shape) / scale - weight, gram).sum())
        errors.append(total)
    best = min(range(STEPS + 1), key=errors.__getitem__)
    return best / STEPS, errors[best] / errors[0] if errors[0] else 1.0


def awq_model(model: torch.nn.Module, bits: Mapping[str, int], options: WeightOnly, context: StageContext) -> Grids:
    """Scale, clip and round the weights of some modules by AWQ, in place, layer after layer.

    With the algorithm "awq-gptq" GPTQ rounds the scaled weights onto the clipped ranges.

    Args:
        bits: module name → width. Embedding tables are rounded to nearest.
        options: grouping, number of calibration texts.
    Returns: the grid of each module.
    Raises: RecipeError when no calibration text reaches a layer.
    """
    linears = split_tables(model, bits)[0]
    folds = folds_of(model, set(linears))

    def scale_group(names: Sequence[str], moments: dict[str, Moments]) -> dict[str, Tensor]:
        inside = [fold for fold in folds if set(fold.after) <= set(names)]
        return {
            f"{fold.after[0]}{_ALPHA}": torch.tensor(_scale(model, fold, moments, bits, options)) for fold in inside
        }  # fmt: skip

    both = options.algorithm == "awq-gptq"
    grid_of = compensated(bits, options) if both else rounded_with(clipped_scales, bits, options)
    name = "awq and gptq" if both else "awq"
    found = grids_by_layer(model, bits, options, context, name, grid_of, scale_group)
    alphas = [float(value) for name, value in found.kept.items() if name.endswith(_ALPHA)]
    scaled = sum(len(fold.after) for fold in folds)
    mean = f", α {sum(alphas) / len(alphas):.2f} on average" if alphas else ""
    first = (
        f"{name} on {options.samples} training texts: the inputs of {scaled} of {len(linears)} layers could be "
        f"scaled{mean}; ranges clipped in all"
    )
    return dataclasses.replace(found, notes=[first, *found.notes])


def _scale(
    model: torch.nn.Module, fold: Fold, moments: dict[str, Moments], bits: Mapping[str, int], options: WeightOnly
) -> float:  # fmt: skip
    """Find α for the layers behind a fold, and fold its scale; those of the scaled inputs are put among the moments."""
    first = moments[fold.after[0]]
    weights = [model.get_submodule(name).get_parameter("weight").detach() for name in fold.after]
    absolute = fold.tied(first.absolute)
    widths = [bits[name] for name in fold.after]
    alpha, _ = search_alpha(weights, widths, absolute, first.gram.float(), options)
    scale = channel_scale(absolute, alpha)
    if alpha:
        fold.apply(model, scale)
        scaled = Moments(first.gram / (scale[:, None] * scale).double(), first.absolute / scale, first.tokens)
        moments.update(dict.fromkeys(fold.after, scaled))
    return alpha
