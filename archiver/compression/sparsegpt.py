"""SparseGPT: weights are removed column by column, and the columns not yet passed make up for each.

Source: Frantar & Alistarh 2023, arXiv:2301.00774, algorithm 1. With H = 2·XᵀX + λI and H⁻¹ = UᵀU (U upper triangular, the
Cholesky factor of the inverse), row j of U carries what the paper calls the inverses of the trailing Hessians: the error
e_j = (w_j − ŵ_j)/U_jj of column j is repaid by w_k −= e_j·U_jk for all k > j.
"""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """U, upper triangular with H⁻¹ = UᵀU. gram: XᵀX [in, in] float64; damping: λ as a share of H's mean diagonal.

    Inputs that are always zero get a one on the diagonal: their weights matter to nobody and stay out of the algebra.
    """
    hessian = 2 * gram.double().clone()
    dead = hessian.diagonal() <= 0
    hessian[dead, dead] = 1.0
    mean = float(hessian.diagonal().mean())
    hessian.diagonal().add_(damping * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


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
    """(pruned weight, mask of what stays), both [out, in], weight float.

    Either a sparsity (round(sparsity·weights) go in each block of columns, over all rows or in each), a pattern n of m, or
    the mask `kept` itself. Scores are w²/U_jj² at the moment the block (or group of m) is reached.
    """
    factor = inverse_factor(gram, damping)
    diagonal = factor.diagonal()
    left = weight.detach().double().clone()
    mask = torch.ones_like(left, dtype=torch.bool) if kept is None else kept.clone()
    columns = left.shape[1]
    gone = 0  # columns are cut into blocks: what rounding takes from one, the next one gives
    for start in range(0, columns, block):
        end = min(columns, start + block)
        if sparsity is not None:
            target = round(sparsity * end * (1 if by_row else left.shape[0])) - gone
            mask[:, start:end] = _kept(left[:, start:end].square() / diagonal[start:end].square(), target, by_row)
            gone += target
        errors = torch.zeros_like(left[:, start:end])
        for column in range(start, end):
            if n_m is not None and column % n_m[1] == 0:
                group = slice(column, column + n_m[1])
                mask[:, group] = n_of_m(left[:, group].square() / diagonal[group].square(), n_m)
            error = torch.where(mask[:, column], 0.0, left[:, column]) / diagonal[column]
            left[:, column] = torch.where(mask[:, column], left[:, column], 0.0)
            left[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            if n_m is not None and end < columns:  # a group of m may reach over the block's end
                reach = min(columns, end + n_m[1])
                left[:, end:reach] -= error[:, None] * factor[column, end:reach]
            errors[:, column - start] = error
        rest = min(columns, end + n_m[1]) if n_m is not None else end
        left[:, rest:] -= errors @ factor[start:end, rest:]
    return (left * mask).to(weight.dtype), mask


def _kept(scores: Tensor, count: int, by_row: bool) -> Tensor:
    """True but for the `count` lowest scores, of all or of each row."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return mask
    if by_row:
        return mask.scatter(1, scores.topk(min(count, scores.shape[1]), dim=1, largest=False).indices, False)
    lowest = scores.flatten().topk(min(count, scores.numel()), largest=False).indices
    mask.view(-1)[lowest] = False
    return mask


def n_of_m(scores: Tensor, n_m: tuple[int, int]) -> Tensor:
    """[rows, columns] bool: the n highest scores of every m neighbours in a row; m divides the columns."""
    n, m = n_m
    groups = scores.reshape(scores.shape[0], -1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter(2, groups.topk(n, dim=2).indices, True).view(scores.shape)
