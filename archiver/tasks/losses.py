"""Losses that several tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def softened_divergence(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(outputs/T)) along the last axis, one value a row; T² keeps the gradients' size.

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, § 2.
    """
    from torch.nn import functional

    student = functional.log_softmax(outputs / temperature, dim=-1)
    target = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student, target, log_target=True, reduction="none").sum(-1)
