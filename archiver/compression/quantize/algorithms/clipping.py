"""Ranges clipped where that pays: a few large weights make all others of their group coarser.

Source: Lin et al. 2023, AWQ, arXiv:2306.00978, its code's search for clipping; here judged by the error of the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from archiver.compression.quantize.algorithms.search import search_scales
from archiver.compression.quantize.grids import group_scales

Tensor = torch.Tensor

STEPS = 20  # of the search for the clipped share of the range in 0 … 1/2


def clipped_scales(
    weight: Tensor, gram: Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Each group's range shrunk by 0, 1/40 … 19/40, whichever errs least on its inputs.

    AWQ's code judges each group by itself; here it is judged together with the errors of the row's other groups,
    ‖X_g·e_g + Σ X_h·e_h‖², group after group, three times.

    Args:
        weight: [rows, columns].
        gram: XᵀX [columns, columns] of the layer's inputs.
        bits, group_size, symmetric: the grid, as `group_scales` takes it; group_size None: one group a row.
    Returns: (scale, zero), each [rows, groups].
    """

    def shrunk(
        group: Tensor, own: Tensor, others: Tensor, scale: Tensor, zero: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(STEPS):
            yield group_scales(group, bits, symmetric, shrink=1 - step / (2 * STEPS))

    return search_scales(weight, gram, bits, group_size, symmetric, shrunk)
