"""Sub-batches: the plan against hand-computed cases and against every possible split."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from handlers.batching import SubBatch, padding_waste, plan

ROOMY = {"token_budget": 10_000, "max_rows": 32}


def cost(batches: list[SubBatch], run_cost: int) -> int:
    return sum(batch.computed_tokens + run_cost for batch in batches)


def test_no_inputs_no_batches():
    assert plan([], **ROOMY) == []
    assert padding_waste([], []) == 0.0


def test_free_runs_group_equal_lengths_only():
    # Without a cost per run, padding is never worth it: 3, 3, 5 and 9 run as [3, 3], [5], [9] or finer.
    batches = plan([5, 3, 9, 3], **ROOMY)
    assert cost(batches, 0) == 20
    assert padding_waste([5, 3, 9, 3], batches) == 0.0


def test_run_cost_by_hand():
    # One batch: 4 × 9 + 4 = 40. [3, 3, 5] and [9]: 15 + 9 + 8 = 32. [3, 3], [5, 9]: 6 + 18 + 8 = 32;
    # [3, 3], [5], [9]: 6 + 5 + 9 + 12 = 32. With 5 a run the first two are 34 and the last 35.
    assert cost(plan([5, 3, 9, 3], **ROOMY, run_cost=4), 4) == 32
    assert cost(plan([5, 3, 9, 3], **ROOMY, run_cost=5), 5) == 34
    # When a run is dear, all go together, shortest first.
    assert plan([5, 3, 9, 3], **ROOMY, run_cost=100) == [SubBatch((1, 3, 0, 2), 4, 9)]


def test_budget_by_hand():
    # 3 × 4 = 12 tokens fit into 12, 4 × 4 do not.
    batches = plan([4, 4, 4, 4], token_budget=12, max_rows=32, run_cost=1)
    assert sorted(len(batch.members) for batch in batches) in ([1, 3], [2, 2])
    assert all(batch.computed_tokens <= 12 for batch in batches)


def test_an_input_beyond_the_budget_runs_alone():
    assert plan([2, 100, 2], token_budget=10, max_rows=32, run_cost=50) == [
        SubBatch((0, 2), 2, 2),
        SubBatch((1,), 1, 100),
    ]


def test_max_rows():
    batches = plan([7] * 10, token_budget=10_000, max_rows=4, run_cost=1)
    assert len(batches) == 3
    assert max(len(batch.members) for batch in batches) == 4


def test_sizes_are_filled_up():
    # Three inputs of 5, 6 and 7 tokens in shapes of 1, 2, 4 rows and 8, 16 tokens: [4, 8] costs 32 + 16,
    # [2, 8] and [1, 8] cost 16 + 8 + 32.
    sizes = {"row_sizes": (1, 2, 4), "length_sizes": (8, 16)}
    assert plan([5, 6, 7], **ROOMY, run_cost=16, **sizes) == [SubBatch((0, 1, 2), 4, 8)]
    batches = plan([5, 6, 7], **ROOMY, run_cost=0, **sizes)
    assert sorted((batch.rows, batch.length) for batch in batches) in ([(1, 8), (2, 8)], [(1, 8)] * 3)
    # Beyond the last size: as it is.
    assert plan([20], **ROOMY, **sizes) == [SubBatch((0,), 1, 20)]


def test_padding_waste_by_hand():
    assert padding_waste([2, 4], [SubBatch((0, 1), 2, 4)]) == pytest.approx(0.25)
    assert padding_waste([3], [SubBatch((0,), 2, 4)]) == pytest.approx(1 - 3 / 8)


def _fill(count: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if size >= count), count)


def brute_force(
    lengths: list[int], budget: int, max_rows: int, run_cost: int, rows: tuple[int, ...], steps: tuple[int, ...]
) -> int:
    """The least cost over every way to cut the sorted lengths."""
    order = sorted(lengths)
    best = None
    for mask in range(1 << (len(order) - 1)):
        cuts = [0, *(i + 1 for i in range(len(order) - 1) if mask >> i & 1), len(order)]
        total = 0
        for start, end in pairwise(cuts):
            tokens = _fill(end - start, rows) * _fill(order[end - 1], steps)
            if end - start > max_rows or (tokens > budget and end - start > 1):
                break
            total += tokens + run_cost
        else:
            best = total if best is None else min(best, total)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(60))
def test_no_split_is_cheaper(seed):
    random_ = random.Random(seed)
    lengths = [random_.randint(1, 40) for _ in range(random_.randint(1, 9))]
    rows = random_.choice([(), (1, 2, 4, 8)])
    steps = random_.choice([(), (8, 16, 24)])
    budget, most, run_cost = random_.choice([30, 64, 512]), random_.choice([2, 4, 16]), random_.choice([0, 5, 16, 60])
    batches = plan(lengths, token_budget=budget, max_rows=most, run_cost=run_cost, row_sizes=rows, length_sizes=steps)
    assert cost(batches, run_cost) == brute_force(lengths, budget, most, run_cost, rows, steps)


@pytest.mark.parametrize("seed", range(20))
def test_every_input_runs_once_and_fits(seed):
    random_ = random.Random(seed)
    lengths = [random_.randint(1, 128) for _ in range(100)]
    batches = plan(lengths, token_budget=512, max_rows=16, run_cost=16, row_sizes=(1, 2, 4, 8, 16))
    assert sorted(i for batch in batches for i in batch.members) == list(range(100))
    for batch in batches:
        assert max(lengths[i] for i in batch.members) == batch.length
        assert len(batch.members) <= batch.rows <= 16
        assert batch.computed_tokens <= 512 or len(batch.members) == 1
    assert [batch.length for batch in batches] == sorted(batch.length for batch in batches)
