"""SparseGPT: weights are removed column by column, and later columns are adjusted to compensate.

Source: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1. With H = 2·XᵀX + λI and H⁻¹ = UᵀU (U upper triangular, the
Cholesky factor of the inverse), row j of U carries what the paper calls the inverses of the trailing Hessians: the error
e_j = (w_j − ŵ_j)/U_jj of column j is repaid by w_k −= e_j·U_jk for all k > j.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """U, upper triangular with H⁻¹ = UᵀU, for H = 2·XᵀX + λI.

    Inputs that are always zero get a one on the diagonal: their weights change no output, and H stays invertible.

    Args:
        gram: XᵀX [in, in].
        damping: λ as a share of H's mean diagonal.
    Returns: [in, in] float64.
    """
    hessian = 2 * gram.double().clone()
    dead = hessian.diagonal() <= 0
    hessian[dead, dead] = 1.0
    mean = float(hessian.diagonal().mean())
    hessian.diagonal().add_(damping * mean)
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    return factor


def prune_compensated(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float | None = None,
    n_m: tuple[int, int] | None = None,
    kept: Tensor | None = None,
    by_row: bool = False,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Remove weights column by column; later columns compensate for earlier ones. One of sparsity, n_m and kept is given.

    Scores are w²/U_jj² at the moment the block (or group of m) is reached. What is zero from the start goes first,
    although compensation has moved it by then: a block that holds more zeros than its share keeps them all, and the other
    blocks give up fewer.

    Args:
        weight: [out, in], float.
        gram: XᵀX [in, in] of the layer's inputs.
        sparsity: round(sparsity·weights) go in each block of columns.
        n_m: (n, m): n of every m neighbours in a row stay.
        kept: [out, in] bool, the mask itself.
        by_row: sparsity is counted in each row, not over all rows.
        damping: λ as a share of H's mean diagonal.
        block: columns that are scored together.
    Returns: (pruned weight, mask of what stays), both [out, in].
    Source: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1.
    """
    factor = inverse_factor(gram, damping)
    diagonal = factor.diagonal()
    left = weight.detach().double().clone()
    mask = torch.ones_like(left, dtype=torch.bool) if kept is None else kept.clone()
    rows, columns = left.shape
    zero = left == 0
    units = rows if by_row else 1  # in each of which the count is exact
    gone = torch.zeros(units, dtype=torch.long)
    for start in range(0, columns, block):
        end = min(columns, start + block)
        if sparsity is not None:
            scores = (left[:, start:end].square() / diagonal[start:end].square()).masked_fill(zero[:, start:end], -1.0)
            share, most = (round(sparsity * width * rows / units) for width in (end, columns))
            later = zero[:, end:].reshape(units, -1).sum(1)  # go anyway, and must find room in the count
            scores = scores.reshape(units, -1)
            count = (share - gone).minimum(most - later - gone).maximum((scores < 0).sum(1)).clamp(max=scores.shape[1])
            mask[:, start:end] = without_lowest(scores, count).view(rows, -1)
            gone += count
        errors = torch.zeros_like(left[:, start:end])
        for column in range(start, end):
            if n_m is not None and column % n_m[1] == 0:
                group = slice(column, column + n_m[1])
                scores = (left[:, group].square() / diagonal[group].square()).masked_fill(zero[:, group], -1.0)
                mask[:, group] = n_of_m(scores, n_m)
            error = torch.where(mask[:, column], 0.0, left[:, column]) / diagonal[column]
            left[:, column] = torch.where(mask[:, column], left[:, column], 0.0)
            left[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            if n_m is not None and end < columns:  # a group of m may reach over the block's end
                reach = min(columns, end + n_m[1])
                left[:, end:reach] -= error[:, None] * factor[column, end:reach]
            errors[:, column - start] = error
        rest = min(columns, end + n_m[1]) if n_m is not None else end
        left[:, rest:] -= errors @ factor[start:end, rest:]
    return left.to(weight.dtype).masked_fill(~mask, 0.0), mask


def without_lowest(scores: Tensor, count: Tensor) -> Tensor:
    """A mask without the lowest scores of each row, exactly as many as asked for.

    Args:
        scores: [rows, columns].
        count: [rows], integers.
    Returns: bool [rows, columns], False at the count[row] lowest scores.
    """
    place = torch.arange(scores.shape[1]).expand_as(scores)
    order = scores.argsort(dim=1, stable=True)
    return torch.empty_like(scores, dtype=torch.bool).scatter_(1, order, place >= count[:, None])


def n_of_m(scores: Tensor, n_m: tuple[int, int]) -> Tensor:
    """A mask of the n highest scores of every m neighbours in a row.

    Args:
        scores: [rows, columns]; m divides the columns.
        n_m: (n, m).
    Returns: bool [rows, columns].
    """
    n, m = n_m
    groups = scores.reshape(scores.shape[0], -1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter(2, groups.topk(n, dim=2).indices, True).view(scores.shape)
