"""Padding-aware sub-batches: what TorchServe hands over as one batch is run as several of like length.

A batch padded to its longest member computes for the padding too: with 23-token sentences that come as they come, as
much as half of the work. Sorted by length and cut where padding would cost more than another run, little of it is left.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SubBatch:
    """Positions of the inputs that run together, shortest first; computed as [rows, length], rows ≥ len(members)."""

    members: tuple[int, ...]
    rows: int
    length: int

    @property
    def computed_tokens(self) -> int:
        """Tokens that one run computes, padding included."""
        return self.rows * self.length


def plan(
    lengths: Sequence[int],
    *,
    token_budget: int,
    max_rows: int,
    run_cost: int = 0,
    row_sizes: Sequence[int] = (),
    length_sizes: Sequence[int] = (),
) -> list[SubBatch]:
    """The cheapest split of inputs into sub-batches of neighbours by length.

    The cost of a split is the sum over its sub-batches of rows × length + run_cost; dynamic programming over the sorted
    lengths finds the least.

    Args:
        lengths: [n] of the inputs, in tokens (or what else their size is counted in), each ≥ 1.
        token_budget: most tokens, padding included, in one sub-batch; a single input may exceed it, alone.
        max_rows: most inputs in one sub-batch. run_cost: what starting one more sub-batch costs, in tokens.
        row_sizes, length_sizes: the sizes, ascending, that rows and lengths are filled up to. A runtime that prepares (and
            keeps) kernels for each shape then meets few shapes. Empty: every size; beyond the last: as it is.
    Returns: the sub-batches, shortest first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    padded = [_fill(lengths[i], length_sizes) for i in order]
    rows = [_fill(count, row_sizes) for count in range(min(max_rows, len(order)) + 1)]
    best = [0.0]
    cut = [0]
    for end, length in enumerate(padded, 1):
        cheapest, place = best[end - 1] + rows[1] * length + run_cost, end - 1
        for count in range(2, min(max_rows, end) + 1):
            tokens = rows[count] * length
            if tokens > token_budget:
                break
            cost = best[end - count] + tokens + run_cost
            if cost < cheapest:
                cheapest, place = cost, end - count
        best.append(cheapest)
        cut.append(place)
    batches = []
    end = len(order)
    while end:
        start = cut[end]
        batches.append(SubBatch(tuple(order[start:end]), _fill(end - start, row_sizes), padded[end - 1]))
        end = start
    return batches[::-1]


def padding_waste(lengths: Sequence[int], batches: Sequence[SubBatch]) -> float:
    """Share of the computed tokens that are padding, 0 … 1."""
    computed = sum(batch.computed_tokens for batch in batches)
    return 1 - sum(lengths) / computed if computed else 0.0


def _fill(count: int, sizes: Sequence[int]) -> int:
    """The first of `sizes` that is at least `count`; `count` itself beyond the last."""
    place = bisect_left(sizes, count)
    return sizes[place] if place < len(sizes) else count
