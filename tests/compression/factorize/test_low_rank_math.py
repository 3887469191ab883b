"""Factorizing a matrix: by hand, and what holds of every one."""

from __future__ import annotations

import pytest
import torch

from archiver.compression.factorize.low_rank_math import (
    decompose,
    decompose_on,
    decompose_rows,
    rank_for_energy,
    rank_for_ratio,
    saves,
    whitening,
)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_svd_by_hand():
    # diag(3, 2) turned by a quarter: rank 1 keeps the 3, its error is the 2; energy 9 of 13.
    parts = decompose(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    assert parts.d.tolist() == pytest.approx([3.0, 2.0])
    a, b = parts.pair(1)
    assert torch.allclose(a @ b.T, torch.tensor([[0.0, 3.0], [0.0, 0.0]]), atol=1e-6)
    assert parts.kept(1) == pytest.approx(9 / 13)
    assert parts.error(1) == pytest.approx((4 / 13) ** 0.5)
    # Each d is split evenly: both columns are √3 long.
    assert a.norm().item() == pytest.approx(3**0.5)
    assert b.norm().item() == pytest.approx(3**0.5)


def test_svd_on_inputs_by_hand():
    # Inputs nine times as strong along the second direction turn the order: 1·√9 = 3 beats 2·√1 = 2.
    weight, gram = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    parts = decompose_on(weight, gram, ridge=0.0)
    assert parts.d.tolist() == pytest.approx([3.0, 2.0])
    a, b = parts.pair(1)
    assert torch.allclose(a @ b.T, torch.diag(torch.tensor([0.0, 1.0])), atol=1e-6)
    plain_a, plain_b = decompose(weight).pair(1)
    assert torch.allclose(plain_a @ plain_b.T, torch.diag(torch.tensor([2.0, 0.0])), atol=1e-6)


def test_table_by_hand():
    # Rows weighed by √(count + 1): the shorter one, looked up 8 times, counts 3·1 against 2·√1.
    table = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    parts = decompose_rows(table, torch.tensor([0.0, 8.0]))
    assert parts.d.tolist() == pytest.approx([3.0, 2.0])
    a, b = parts.pair(1)
    assert torch.allclose(a @ b.T, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (8, 12), (10, 10)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_error_on_inputs_is_what_is_dropped_and_at_most_plain_svds(rows, columns, rank):
    x = _random(60, columns, seed=1) * torch.logspace(0, 2, columns)
    weight = _random(rows, columns)
    parts = decompose_on(weight, x.T.double() @ x.double(), ridge=0.0)

    def error(found):
        a, b = found.pair(rank)
        return ((x @ (weight - a @ b.T).T).double().norm() ** 2).item()

    assert error(parts) == pytest.approx(float(parts.d[rank:].square().sum()), rel=1e-3)
    assert error(parts) < error(decompose(weight))


def test_full_rank_gives_the_weight_back():
    weight, x = _random(6, 4), _random(9, 4, seed=1)
    for parts in (decompose(weight), decompose_on(weight, x.T @ x), decompose_rows(weight, torch.arange(6))):
        a, b = parts.pair(4)
        assert torch.allclose(a @ b.T, weight, atol=1e-5)


def test_whitening_of_inputs_that_span_too_little():
    x = _random(3, 8)  # three tokens in eight dimensions: XᵀX has rank 3
    gram = (x.T @ x).double()
    root = whitening(gram)
    assert torch.allclose(root @ root.T, gram + 1e-3 * gram.diagonal().mean() * torch.eye(8), atol=1e-9)
    assert torch.equal(whitening(torch.zeros(2, 2)), torch.eye(2, dtype=torch.float64))


def test_whitening_raises_the_ridge_where_rounding_left_gram_negative():
    gram = torch.tensor([[1.0, 1.1], [1.1, 1.0]])  # eigenvalues 2.1 and −0.1
    root = whitening(gram, ridge=0.0)
    assert torch.isfinite(root).all()
    assert torch.allclose(root @ root.T - gram, torch.eye(2, dtype=torch.float64), atol=1e-6)  # 1e-9 grown to 1


def test_ranks_by_hand():
    d = torch.tensor([3.0, 2.0, 1.0, 1.0])  # d²: 9, 4, 1, 1 of 15
    assert [rank_for_energy(d, energy) for energy in (0.1, 0.6, 0.61, 13 / 15, 0.9, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert rank_for_energy(torch.zeros(3), 0.9) == 1
    assert rank_for_ratio(1536, 384, 0.5) == 153  # 0.5·1536·384 / 1920 = 153.6
    assert rank_for_ratio(4, 4, 0.01) == 1
    assert saves(1536, 384, 307)
    assert not saves(1536, 384, 308)  # 308·1920 > 1536·384
    assert not saves(4, 4, 2)  # as many
