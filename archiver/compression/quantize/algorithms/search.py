"""Scales of a row's groups, one group after another, each judged together with the errors of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from archiver.compression.quantize.grids import group_scales, grouped, to_grid

Tensor = torch.Tensor
# (group [rows, size], XᵀX of its inputs [size, size], what the others err by there [rows, size], scale and zero [rows, 1])
# → scales and zeros [rows, 1] to try.
Candidates = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Iterator[tuple[Tensor, Tensor]]]

ROUNDS = 3


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """‖X·ΔWᵀ‖² of a change ΔW of the weights, for each row.

    Args:
        change: ΔW [..., rows, columns].
        gram: XᵀX [..., columns, columns].
    Returns: [..., rows].
    """
    return ((change @ gram) * change).sum(-1)


def search_scales(
    weight: Tensor, gram: Tensor, bits: int, group_size: int | None, symmetric: bool, candidates: Candidates
) -> tuple[Tensor, Tensor]:
    """The best candidates of each group's scale, all groups three times, never worse than their own extremes give.

    A candidate's loss is ‖X_g·e_g + Σ X_h·e_h‖² over the other groups h, for each row.

    Args:
        weight: [rows, columns].
        gram: XᵀX [columns, columns] of the layer's inputs.
        bits, group_size, symmetric: the grid, as `group_scales` takes it; group_size None: one group a row.
        candidates: gives scales and zero points to try for one group.
    Returns: (scale, zero), each [rows, groups].
    """
    groups = grouped(weight, group_size)
    rows, count, size = groups.shape
    scale, zero = (item.clone() for item in group_scales(groups, bits, symmetric))
    errors = to_grid(groups, scale, zero, bits) - groups
    seen = errors.reshape(rows, -1) @ gram  # what the columns' inputs have in common with all errors
    for _ in range(ROUNDS):
        for index in range(count):
            place = slice(index * size, (index + 1) * size)
            group, old, own = groups[:, index], errors[:, index].clone(), gram[place, place]
            others = seen[:, place] - old @ own
            least = (output_error(old, own) + 2 * (old * others).sum(-1))[:, None]
            for found, offset in candidates(group, own, others, scale[:, index].clone(), zero[:, index].clone()):
                error = to_grid(group, found, offset, bits) - group
                loss = (output_error(error, own) + 2 * (error * others).sum(-1))[:, None]
                better = loss < least
                least = torch.minimum(least, loss)
                errors[:, index] = torch.where(better, error, errors[:, index])
                scale[:, index] = torch.where(better, found, scale[:, index])
                zero[:, index] = torch.where(better, offset, zero[:, index])
            seen += (errors[:, index] - old) @ gram[place]
    return scale[..., 0], zero[..., 0]
