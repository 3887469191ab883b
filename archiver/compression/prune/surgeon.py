"""What the loss rises by when a structure goes and those that stay make up for it: the importance `surgeon`.

The loss around the weights W of the layer that reads a structure is taken as a quadratic form whose curvature is a
Kronecker product: of the moments of the layer's inputs, G = Σ x·xᵀ, and of the gradients at its outputs, F = Σ g·gᵀ. The
best change of the columns that stay does not depend on F; what is lost then is in units of the loss, in every layer.
Source: van der Ouderaa et al. 2024, The LLM Surgeon, arXiv:2312.17244, costs and updates of structures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from archiver.architecture import Cut
from archiver.compression.calibration import Moments, removed
from archiver.compression.context import StageContext
from archiver.compression.prune.compensation import damped
from archiver.compression.prune.importance import labelled, loss_of
from archiver.compression.walk.walk import walk

Tensor = torch.Tensor

_ROUNDS = 96  # in which all neurons of a layer are taken away: single ones would take a product of matrices each


def surgeon_scores(model: torch.nn.Module, cuts: Sequence[Cut], context: StageContext, samples: int) -> list[Tensor]:
    """[blocks] scores for each cut, in units that are the same in all layers; see `removal_costs`.

    Args:
        cuts: what may be cut, each with a consumer of its own.
        samples: how many training texts are looked at.
    """
    by_name = {cut.consumer: cut for cut in cuts}
    gradients = output_gradients(model, list(by_name), context, samples)

    def visit(group: Sequence[str], moments: Mapping[str, Moments]) -> dict[str, Tensor]:
        weights = {name: model.get_submodule(name).get_parameter("weight").detach() for name in group}
        return {
            f"{name}.costs": removal_costs(weight, moments[name].gram, gradients[name], by_name[name].columns)
            for name, weight in weights.items()
        }

    costs = walk(model, list(by_name), context, samples, visit, method="surgeon")
    return [costs[f"{name}.costs"] for name in by_name]


def output_gradients(
    model: torch.nn.Module, names: Sequence[str], context: StageContext, samples: int
) -> dict[str, Tensor]:
    """Σ g·gᵀ [out, out] over tokens, of the gradients at the outputs of modules, of the loss of `loss_of`.

    Args:
        names: of linear layers.
        samples: training texts.
    """
    found: dict[str, Any] = dict.fromkeys(names, 0)
    seen: list[tuple[str, Tensor]] = []

    def see(name: str) -> Callable[[torch.nn.Module, object, Tensor], None]:
        def hook(module: torch.nn.Module, arguments: object, output: Tensor) -> None:
            output.retain_grad()
            seen.append((name, output))

        return hook

    with removed([model.get_submodule(name).register_forward_hook(see(name)) for name in names]), torch.enable_grad():
        for batch in labelled(context, samples):
            loss_of(context, batch).backward()
            for name, output in seen:
                assert output.grad is not None
                rows = output.grad.reshape(-1, output.shape[-1])
                found[name] = found[name] + rows.T @ rows
            seen.clear()
            model.zero_grad(set_to_none=True)
    return found


def removal_costs(weight: Tensor, gram: Tensor, gradients: Tensor, columns: Tensor) -> Tensor:
    """What the removal of each structure costs, at the time when it is the cheapest of those that are left.

    Structures are taken away from the cheapest on. One with the columns B of the weights as they are by then costs
    tr(W_Bᵀ·F·W_B·([G⁻¹]_BB)⁻¹), then W −= W_B·([G⁻¹]_BB)⁻¹·[G⁻¹]_B. Costs that fell while others were taken away count
    as the highest before them: what went later matters more.

    Args:
        weight: W [out, in]. gram: G [in, in]. gradients: F [out, out].
        columns: [in] int64, the structure of each input; all have as many.
    Returns: [structures], float32.
    Source: arXiv:2312.17244, structures taken one after another; in several rounds where there are many.
    """
    blocks = int(columns.max()) + 1
    order = columns.argsort(stable=True)
    width = len(order) // blocks
    inverse = torch.linalg.inv(damped(gram.double()[order][:, order]))
    root = torch.linalg.cholesky(damped(gradients.double(), 1e-6))
    left = weight.double()[:, order].T @ root  # [in, out]; its squares are those of W under F
    costs = torch.zeros(blocks, dtype=torch.float64)
    there = torch.arange(blocks)  # which structure each place in `inverse` and `left` is of
    alive = torch.ones(blocks, dtype=torch.bool)  # of these places
    at_once, highest = max(1, blocks // _ROUNDS), 0.0
    while bool(alive.any()):
        places = torch.arange(len(there))
        inner = inverse.view(len(there), width, len(there), width)[places, :, places]  # [G⁻¹]_BB of each
        inner[~alive] = torch.eye(width, dtype=torch.float64)
        if width == 1:
            now = torch.linalg.vector_norm(left, dim=1).square() / inner.flatten()
        else:
            parts = left.view(len(there), width, -1)
            now = (parts * torch.linalg.solve(inner, parts)).sum((1, 2))
        now[~alive] = torch.inf
        gone = now.topk(min(at_once, int(alive.sum())), largest=False).indices
        costs[there[gone]] = now[gone].clamp(min=highest)
        highest = float(costs[there[gone]].max())
        alive[gone] = False
        taken = _rows_of(gone, width)
        among = inverse[taken]
        repaid = torch.linalg.solve(among[:, taken], among)
        torch.addmm(left, repaid.T, left[taken], alpha=-1, out=left)
        torch.addmm(inverse, among.T, repaid, alpha=-1, out=inverse)
        if 4 * int(alive.sum()) < 3 * len(alive):  # what is gone is not worked on any longer
            kept = alive.nonzero().flatten()
            rows = _rows_of(kept, width)
            inverse, left = inverse[rows][:, rows], left[rows]
            there, alive = there[kept], alive[kept]
    return costs.float()


def _rows_of(blocks: Tensor, width: int) -> Tensor:
    return (blocks[:, None] * width + torch.arange(width)).flatten()
