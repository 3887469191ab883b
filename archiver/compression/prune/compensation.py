"""What reads a structure that is cut makes up for it: least squares over the inputs that stay.

The inputs of a layer are correlated: those that stay can give most of what those that go gave. So the columns that stay
take over what the calibration texts say they can, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from archiver.architecture import Cut
from archiver.compression.calibration import Moments
from archiver.compression.context import StageContext
from archiver.compression.walk.walk import walk

Tensor = torch.Tensor

DAMPING = 0.01  # λ as a share of the mean diagonal of XᵀX


def compensate(
    model: torch.nn.Module, cuts: Sequence[Cut], keep: Sequence[Tensor], context: StageContext, samples: int
) -> None:
    """Refit each cut's consumer to the structures that stay; the columns of the others become zero.

    Layers are refitted from the lowest to the highest, each to the inputs that those below give by then.

    Args:
        model: changed in place, before anything is cut out of it.
        cuts: with a consumer of their own each. keep: indices of the structures that stay, for each cut.
        samples: calibration texts.
    Raises: RecipeError when no calibration text reaches one of the consumers.
    """
    stays = {cut.consumer: torch.isin(cut.columns, kept) for cut, kept in zip(cuts, keep, strict=True)}

    def visit(group: Sequence[str], moments: Mapping[str, Moments]) -> dict[str, Tensor]:
        for name in group:
            weight = model.get_submodule(name).get_parameter("weight").detach()
            weight.copy_(refitted(weight, moments[name].gram, stays[name]))
        return {}

    mask = torch.cat(list(stays.values()))
    key = " ".join(map(str, mask.nonzero()[:, 0].tolist()))
    walk(model, list(stays), context, samples, visit, method="compensation", key=key)


def refitted(weight: Tensor, gram: Tensor, stays: Tensor, damping: float = DAMPING) -> Tensor:
    """The weight that gives most nearly what it gave, from some of its inputs.

    The minimum of ‖W·X − V·X‖² + λ‖W − V‖² over V whose other columns are zero: with kept inputs K and lost ones L
    V_K = W_K + W_L·G_LK·(G_KK + λI)⁻¹, G = X·Xᵀ.

    Args:
        weight: W [out, in].
        gram: G [in, in], summed over tokens.
        stays: [in] bool.
        damping: λ as a share of G's mean diagonal.
    Returns: V [out, in].
    Source: structures removed with the optimal update of what stays: Kurtić et al. 2023, ZipLM, arXiv:2302.04089; here
        all of a layer's at once.
    """
    gram = gram.double()
    inner = damped(gram, damping)[stays][:, stays]
    given = weight.double()
    found = torch.zeros_like(given)
    lost = given[:, ~stays] @ gram[~stays][:, stays]
    found[:, stays] = given[:, stays] + torch.cholesky_solve(lost.T, torch.linalg.cholesky(inner)).T
    return found.to(weight.dtype)


def damped(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """G + λI, λ as a share of G's mean diagonal; above zero also where all inputs were zero."""
    return gram + damping * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
