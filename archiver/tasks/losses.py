"""The losses of each task, against the labels and against the original's outputs, and the metrics that decide.

All losses are means over rows (or tokens), as scalars.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from archiver.compression.objective import Objective
from archiver.compression.retrain.objectives import softened_divergence

Tensor = torch.Tensor


def classification_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, binary cross-entropy or squared error, by the form of the labels.

    Args:
        outputs: [rows, labels], logits; [rows, 1] for a number.
        labels: [rows] ids or numbers, or [rows, labels] of zeros and ones.
    Returns: a scalar.
    """
    if labels.dim() == 2:
        return functional.binary_cross_entropy_with_logits(outputs, labels)
    if outputs.shape[-1] == 1:
        return functional.mse_loss(outputs[:, 0], labels.to(outputs.dtype))
    return functional.cross_entropy(outputs, labels)


def classification_distance(outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Divergence of the softened outputs, squared difference of a single number.

    Args:
        outputs, teacher: [rows, labels].
        mask: [rows, length], not looked at.
        temperature: softens the outputs.
    Returns: a scalar.
    """
    if outputs.shape[-1] == 1:
        return functional.mse_loss(outputs, teacher)
    return softened_divergence(outputs, teacher, temperature).mean()


def embedding_distance(outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """1 − cosine of the pooled vectors, which is what the gate measures.

    Args:
        outputs, teacher: [rows, width].
        mask, temperature: not looked at.
    Returns: a scalar.
    """
    return (1 - functional.cosine_similarity(outputs, teacher, dim=-1)).mean()


def next_token_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token given those before it.

    Args:
        outputs: [rows, length, vocabulary], logits of the token behind each place.
        labels: [rows, length], the input ids.
    Returns: a scalar.
    """
    return functional.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def next_token_distance(outputs: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Divergence of the softened outputs over real tokens.

    Args:
        outputs, teacher: [rows, length, vocabulary].
        mask: [rows, length], 1 for real tokens.
        temperature: softens the outputs.
    Returns: a scalar.
    """
    return softened_divergence(outputs[mask.bool()], teacher[mask.bool()], temperature).mean()


OBJECTIVES: dict[str, Objective] = {
    "text-classification": Objective(
        classification_distance,
        classification_loss,
        headline={"accuracy": True, "agreement": True},
        finest={"cross_entropy": False, "agreement": True},
    ),
    "feature-extraction": Objective(
        embedding_distance,
        headline={"spearman": True, "cosine": True},
        finest={"cosine": True},
    ),
    "text-generation": Objective(
        next_token_distance,
        next_token_loss,
        predicts_tokens=True,
        headline={"perplexity": False, "agreement": True},
        finest={"cross_entropy": False, "perplexity": False, "agreement": True},
    ),
}
