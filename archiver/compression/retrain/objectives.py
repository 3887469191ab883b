"""The losses of each task: against the labels, against the original's outputs, and between hidden states.

Distillation: Hinton, Vinyals & Dean 2015, arXiv:1503.02531 (softened outputs); Jiao et al. 2020, TinyBERT,
arXiv:1909.10351 (hidden states).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.nn import functional

Tensor = torch.Tensor


class Objective(ABC):
    """Losses are means over rows (or tokens), as scalars."""

    @abstractmethod
    def against_labels(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The task's own loss."""

    @abstractmethod
    def against_teacher(self, outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """How far outputs are from the original's. mask [rows, length]: 1 for real tokens."""


def softened_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(outputs/T)) along the last axis, one value a row; T² keeps the gradients' size.

    Source: Hinton, Vinyals & Dean 2015, § 2.
    """
    student = functional.log_softmax(outputs / temperature, dim=-1)
    target = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student, target, log_target=True, reduction="none").sum(-1)


class Classification(Objective):
    """One label of several (cross-entropy), several of several (labels [rows, width] float) or a number (width 1)."""

    def against_labels(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() == 2:
            return functional.binary_cross_entropy_with_logits(outputs, labels)
        if outputs.shape[-1] == 1:
            return functional.mse_loss(outputs[:, 0], labels.to(outputs.dtype))
        return functional.cross_entropy(outputs, labels)

    def against_teacher(self, outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        if outputs.shape[-1] == 1:
            return functional.mse_loss(outputs, teacher)
        return softened_divergence(outputs, teacher, temperature).mean()


class Embedding(Objective):
    """Pooled vectors: there are no labels to learn from, only the original's vectors."""

    def against_labels(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.new_zeros(())

    def against_teacher(self, outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """1 − cosine, which is what the gate measures."""
        return (1 - functional.cosine_similarity(outputs, teacher, dim=-1)).mean()


class NextToken(Objective):
    """outputs [rows, length, vocabulary] at each place are about the token behind it; labels are the input ids."""

    def against_labels(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def against_teacher(self, outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
        return softened_divergence(outputs[mask.bool()], teacher[mask.bool()], temperature).mean()


OBJECTIVES: dict[str, Objective] = {
    "text-classification": Classification(),
    "feature-extraction": Embedding(),
    "text-generation": NextToken(),
}


def hidden_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of hidden states [rows, length, width] over real tokens, as a share of the teacher's square.

    The share makes layers (and models) comparable: 0 is equal, 1 is as far as predicting zeros.
    """
    weight = mask.unsqueeze(-1).to(teacher.dtype)
    return ((student - teacher).square() * weight).sum() / ((teacher.square() * weight).sum() + 1e-12)
