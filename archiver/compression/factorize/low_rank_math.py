"""Low-rank factorization of a matrix: pure functions on tensors.

    W ≈ W' = U·diag(d)·Vᵀ       W [out_features, in_features], U [out, rank], d [rank] ≥ 0 falling, V [in, rank]

Plain: the singular value decomposition; no matrix of that rank is nearer in ‖W − W'‖_F, whose square is the sum of the
dropped d² (Eckart & Young 1936).

On inputs X [tokens, in]: ‖X·(W − W')ᵀ‖_F counts. With S·Sᵀ = XᵀX it equals ‖(W − W')·S‖_F, so the decomposition of W·S is
cut and S taken out of V again: V = S⁻ᵀ·Q for W·S = U·diag(d)·Qᵀ. The square of the error on X is again the sum of the
dropped d². (Wang et al., SVD-LLM, arXiv:2403.07378, § 3.2.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensor = torch.Tensor

# Added to the diagonal of XᵀX, as a share of its mean: directions that calibration hardly saw are not given away for
# nothing, and S can be inverted.
RIDGE = 1e-3


@dataclass(frozen=True)
class Decomposition:
    """A whole matrix as W = U·diag(d)·Vᵀ, float64.

    Args:
        u: [out, n], n = min(out, in).
        d: [n] ≥ 0, falling; d² add up to ‖W‖_F², or to ‖X·Wᵀ‖_F² where inputs were given (with the ridge counted in).
        v: [in, n].
    """

    u: Tensor
    d: Tensor
    v: Tensor

    @property
    def full_rank(self) -> int:
        """n."""
        return self.d.numel()

    def kept(self, rank: int) -> float:
        """Share of Σd² that the first `rank` keep, 0 … 1."""
        total = self.d.square().sum()
        return float(self.d[:rank].square().sum() / total) if total > 0 else 1.0

    def error(self, rank: int) -> float:
        """‖dropped‖_F / ‖all‖_F, the relative error of W' (on X where inputs were given)."""
        share: float = max(0.0, 1.0 - self.kept(rank)) ** 0.5
        return share

    def pair(self, rank: int) -> tuple[Tensor, Tensor]:
        """Two factors with W' = A·Bᵀ; each d is split so that both columns are equally long.

        Equal lengths let one learning rate and one scale per row suit both factors.

        Args:
            rank: 1 ≤ rank ≤ n.
        Returns: (A [out, rank], B [in, rank]), float32.
        """
        a, b = self.u[:, :rank] * self.d[:rank], self.v[:, :rank]
        long, short = a.norm(dim=0), b.norm(dim=0)
        share = torch.where((long > 0) & (short > 0), (short / long.clamp(min=1e-300)).sqrt(), torch.ones_like(long))
        return (a * share).float().contiguous(), (b / share).float().contiguous()


def decompose(weight: Tensor) -> Decomposition:
    """The singular value decomposition of a matrix.

    Args:
        weight: [out, in].
    Returns: the decomposition whose first terms are nearest in ‖W − W'‖_F.
    Source: Eckart & Young 1936.
    """
    u, d, vt = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return Decomposition(u, d, vt.T)


def decompose_on(weight: Tensor, gram: Tensor, ridge: float = RIDGE) -> Decomposition:
    """The decomposition that is best on given inputs.

    Args:
        weight: [out, in].
        gram: XᵀX [in, in] of the inputs.
        ridge: share of gram's mean diagonal that is added to its diagonal.
    Returns: the decomposition whose first terms are nearest in ‖X·(W − W')ᵀ‖_F.
    Source: Wang et al., SVD-LLM, arXiv:2403.07378, § 3.2.
    """
    root = whitening(gram, ridge)
    u, d, qt = torch.linalg.svd(weight.detach().double() @ root, full_matrices=False)
    v = torch.linalg.solve_triangular(root.T, qt.T, upper=True)
    return Decomposition(u, d, v)


def decompose_rows(table: Tensor, counts: Tensor) -> Decomposition:
    """The decomposition of an embedding table that is best on the tokens that were seen.

    A table is a linear layer of one-hot inputs, its XᵀX is diag(counts): each row is weighed by √(count + 1). Adding one
    (Laplace) keeps rows that calibration did not see.

    Args:
        table: [rows, width].
        counts: [rows], how often each row was looked up.
    Returns: the decomposition.
    """
    root = (counts.double() + 1).sqrt().unsqueeze(1)
    u, d, vt = torch.linalg.svd(table.detach().double() * root, full_matrices=False)
    return Decomposition(u / root, d, vt.T)


def whitening(gram: Tensor, ridge: float = RIDGE) -> Tensor:
    """Lower triangular S with S·Sᵀ = gram + ridge·mean(diag(gram))·I; the identity for inputs of zeros.

    Where rounding has left gram not positive definite, the ridge grows tenfold until it is.

    Args:
        gram: XᵀX [in, in].
        ridge: share of gram's mean diagonal.
    Returns: S [in, in] float64.
    """
    gram = gram.double()
    mean = gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    if not mean > 0:
        return eye
    while True:
        root, failed = torch.linalg.cholesky_ex(gram + ridge * mean * eye)
        if not failed:
            factor: Tensor = root
            return factor
        ridge = max(ridge * 10, 1e-9)


def rank_for_energy(d: Tensor, energy: float) -> int:
    """The smallest rank whose first d² are at least a share of Σd².

    Args:
        d: [n], falling.
        energy: 0 < energy ≤ 1.
    Returns: 1 ≤ rank ≤ n.
    """
    squares = d.double().square()
    total = squares.sum()
    if not total > 0:
        return 1
    # With a tolerance: a share that is reached exactly must not need one more for a rounding error in the sum.
    reached = squares.cumsum(0) >= energy * total - 1e-12 * total
    return int(reached.nonzero()[0, 0]) + 1


def rank_for_ratio(out_features: int, in_features: int, ratio: float) -> int:
    """The largest rank whose factors have at most `ratio` of the dense parameters, at least 1."""
    return max(1, int(ratio * out_features * in_features / (out_features + in_features)))


def saves(out_features: int, in_features: int, rank: int) -> bool:
    """Whether two factors of this rank cost fewer multiplications (and parameters) than the dense layer."""
    return rank * (out_features + in_features) < out_features * in_features
