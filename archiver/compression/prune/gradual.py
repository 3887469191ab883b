"""Pruning in rounds with retraining in between, and regrowth of the pruned weights with the largest gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from archiver.compression.context import StageContext
from archiver.compression.prune.importance import labelled, loss_of
from archiver.compression.retrain.training import train
from archiver.state.constraints import Mask, constrain, state_of

if TYPE_CHECKING:
    from archiver.compression.prune.options import L1

Tensor = torch.Tensor
_GRADIENT_TEXTS = 512


def cubic_sparsity(step: int, steps: int, final: float) -> float:
    """s_t = s_f·(1 − (1 − t/T)³): most is pruned in the first rounds, when many weights matter little.

    Args:
        step: t, from 1 to `steps`.
        steps: T.
        final: s_f, the sparsity of the last round.
    Returns: the sparsity of this round.
    Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1 with s_0 = 0.
    """
    return final * (1 - (1 - step / steps) ** 3)


def gradually(
    model: torch.nn.Module,
    prune: Callable[[float | None], dict[str, Tensor]],
    sparsity: float,
    options: L1,
    context: StageContext,
) -> dict[str, Tensor]:
    """Prune in rounds, with retraining under the masks in between; the last round does not retrain.

    Weights that are zero already go first, so every mask lies within the one before.

    Args:
        prune: sparsity → the masks, put on the weights.
        sparsity: of the last round.
        options: how many rounds, and how to retrain.
        context: gives training batches.
    Returns: the last masks by module name.
    """
    masks: dict[str, Tensor] = {}
    for step in range(1, options.steps + 1):
        now = cubic_sparsity(step, options.steps, sparsity)
        masks = prune(now)
        if step == options.steps:
            break
        context.say(f"    round {step} of {options.steps}: sparsity {now:.3f}")
        with held(model, masks):
            train(model, options.tuning, context.part(f"round-{step}"))
    return masks


class held:
    """Inside, masks constrain the weights; afterwards they are gone again, the zeros stay."""

    def __init__(self, model: torch.nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.model, self.masks = model, masks

    def __enter__(self) -> None:
        constraints = state_of(self.model).constraints
        self.before = {name: list(chain) for name, chain in constraints.items()}
        for name, mask in self.masks.items():
            constrain(self.model, name, Mask(mask))

    def __exit__(self, *_: object) -> None:
        state_of(self.model).constraints = self.before


def regrow(
    model: torch.nn.Module, masks: Mapping[str, Tensor], options: L1, context: StageContext
) -> tuple[dict[str, Tensor], str]:
    """Let round(regrow·pruned) weights grow again from zero, those with the largest gradient; leave the masks, fine-tune.

    The gradient of the loss over training texts with respect to a weight that is zero says how much it would help. What
    an earlier stage has pruned does not come back, and does not count.

    Args:
        masks: module name → True where a weight stays.
        options: the share that comes back, and how to fine-tune.
        context: gives training batches.
    Returns: (the final masks, a sentence for the report).
    Source: Evci et al. 2020, RigL, arXiv:1911.11134, § 3 (grow step).
    """
    gradients = _gradients(model, masks, context)
    every = torch.cat([mask.flatten() for mask in masks.values()])
    gone = ~every & torch.cat([_free(model, name, mask).flatten() for name, mask in masks.items()])
    count = round(options.regrow * int(gone.sum()))
    size = torch.cat([gradients[name].abs().flatten() for name in masks])
    every[torch.where(gone, size, -1.0).topk(count).indices] = True
    parts = every.split([mask.numel() for mask in masks.values()])
    final = {name: part.view(mask.shape) for (name, mask), part in zip(masks.items(), parts, strict=True)}
    for name, mask in final.items():
        constrain(model, name, Mask(mask))
    train(model, options.tuning, context.part("regrow"))
    return final, f"{count} of {int(gone.sum())} pruned weights came back where the gradient is largest, and were tuned"


def _free(model: torch.nn.Module, name: str, mask: Tensor) -> Tensor:
    """True where no mask of an earlier stage forbids a weight."""
    free = torch.ones_like(mask)
    for constraint in state_of(model).constraints.get(name, []):
        if isinstance(constraint, Mask):
            free &= constraint.mask
    return free


def _gradients(model: torch.nn.Module, names: Mapping[str, Tensor], context: StageContext) -> dict[str, Tensor]:
    weights = {name: model.get_submodule(name).get_parameter("weight") for name in names}
    with torch.enable_grad():
        for batch in labelled(context, _GRADIENT_TEXTS):
            loss_of(context, batch).backward()
    found = {  # a weight that the loss does not reach asks for nothing
        name: weight.grad.clone() if weight.grad is not None else torch.zeros_like(weight)
        for name, weight in weights.items()
    }
    model.zero_grad(set_to_none=True)
    return found
