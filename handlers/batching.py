"""Padding-aware sub-batches: what TorchServe hands over as one batch is run as several of like length.

A batch padded to its longest member computes for the padding too: with 23-token sentences that come as they come, as
much as half of the work. Sorted by length and cut where padding would cost more than another run, little of it is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SubBatch:
    """Positions of the inputs that run together, shortest first, and the length they are padded to (tokens)."""

    members: tuple[int, ...]
    length: int


def plan(
    lengths: Sequence[int], *, token_budget: int, max_rows: int, length_step: int = 1, run_cost: int = 0
) -> list[SubBatch]:
    """The cheapest split of inputs of these `lengths` (tokens, each ≥ 1) into sub-batches of neighbours by length.

    token_budget: most tokens, padding included, in one sub-batch; an input longer than that runs alone.
    length_step: lengths are padded up to a multiple of this (a runtime that prepares kernels per shape sees few shapes).
    run_cost: what starting one more sub-batch costs, in tokens. The cost of a split is the sum over its sub-batches of
    rows × padded length + run_cost; dynamic programming over the sorted lengths finds the least.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    padded = [-(-lengths[i] // length_step) * length_step for i in order]
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = padded[end - 1]
        for start in range(end - 1, max(-1, end - 1 - max_rows), -1):
            tokens = (end - start) * longest
            if tokens > token_budget and start < end - 1:
                break
            cost = best[start] + tokens + run_cost
            if cost < best[end]:
                best[end], cut[end] = cost, start
    batches = []
    end = len(order)
    while end:
        start = cut[end]
        batches.append(SubBatch(tuple(order[start:end]), padded[end - 1]))
        end = start
    return batches[::-1]


def padding_waste(lengths: Sequence[int], batches: Sequence[SubBatch]) -> float:
    """Share of the computed tokens that are padding, 0 … 1."""
    computed = sum(len(batch.members) * batch.length for batch in batches)
    return 1 - sum(lengths) / computed if computed else 0.0
