"""Distances between a model and its teacher that the losses of several tasks are made of."""

from __future__ import annotations

import torch
from torch.nn import functional

Tensor = torch.Tensor


def softened_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(outputs/T)) along the last axis; T² keeps the size of the gradients.

    Args:
        outputs, teacher: [..., classes], logits.
        temperature: T > 0.
    Returns: [...], one value a row.
    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, § 2.
    """
    student = functional.log_softmax(outputs / temperature, dim=-1)
    target = functional.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(student, target, log_target=True, reduction="none").sum(-1)


def hidden_distance(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Squared difference of hidden states over real tokens, as a share of the teacher's square.

    The share makes layers (and models) comparable: 0 is equal, 1 is as far as predicting zeros.

    Args:
        student, teacher: [rows, …, width].
        mask: [rows, length], 1 for real tokens; None, or one of another length (convolutions shorten it): all count.
    Returns: a scalar.
    Source: hidden states as a target: Jiao et al. 2020, TinyBERT, arXiv:1909.10351.
    """
    if mask is None or mask.shape != teacher.shape[:-1]:
        weight = torch.ones_like(teacher[..., :1])
    else:
        weight = mask.unsqueeze(-1).to(teacher.dtype)
    return ((student - teacher).square() * weight).sum() / ((teacher.square() * weight).sum() + 1e-12)


def ctc_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Connectionist temporal classification: −log of the probability of a transcript over all its alignments.

    Args:
        outputs: [rows, frames, vocabulary], logits.
        labels: [rows, 2 + longest] int64: how many frames of the row are real, the id that stands for no token, then the
            transcript's token ids, −100 behind its end.
    Returns: the mean over rows of the loss for each token, a scalar; a row without tokens, or too short for them, counts 0.
    Source: Graves et al. 2006, Connectionist Temporal Classification, ICML.
    """
    tokens, counts = labels[:, 2:], (labels[:, 2:] >= 0).sum(dim=1)
    losses = functional.ctc_loss(
        functional.log_softmax(outputs.float(), dim=-1).transpose(0, 1),
        tokens.clamp(min=0),
        labels[:, 0],
        counts,
        blank=int(labels[0, 1]),
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(counts > 0, losses / counts.clamp(min=1), 0.0).mean()
