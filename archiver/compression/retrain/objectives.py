"""Losses, and distances between a model and its teacher, that the tasks' objectives are made of.

Those over a vocabulary are computed some rows at a time and find their gradient on the way: of logits of 512 × 49 152
one copy is kept, in their own precision, where the chain of softmax, logarithm and products keeps six in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

Tensor = torch.Tensor

_AT_ONCE = 2**18  # numbers of which a block of rows is made: what is computed of them stays in a core's cache …
_AT_ONCE_ELSEWHERE = 2**26  # … and on a GPU few large blocks are quicker than many small ones
IGNORED = -100  # as a label: nothing is asked of this place


def softened_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(outputs/T)) along the last axis; T² keeps the size of the gradients.

    Args:
        outputs, teacher: [..., classes], logits, of any precision: what is computed of them is float32 (or float64).
        temperature: T > 0.
    Returns: [...], one value a row, float32 (or float64).
    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, § 2.
    """
    found: Tensor = _Divergence.apply(outputs, teacher, temperature)  # type: ignore[no-untyped-call]
    return found


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """−log of the probability of the labels, the mean over all places that have one; 0 where none has.

    Args:
        outputs: [..., classes], logits, of any precision.
        labels: [...] int64, IGNORED where there is none.
    Returns: a scalar, float32 (or float64).
    """
    each: Tensor = _Surprise.apply(outputs, labels)  # type: ignore[no-untyped-call]
    return each.sum() / (labels != IGNORED).sum().clamp(min=1)


class _Divergence(torch.autograd.Function):
    """Its gradient is T·(softmax(outputs/T) − softmax(teacher/T))."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        rows, theirs = (logits.reshape(-1, logits.shape[-1]) for logits in (outputs, teacher))
        found = torch.empty(len(rows), dtype=_wide(outputs), device=outputs.device)
        slopes = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for part in _parts(rows):
            ours = functional.log_softmax(rows[part].to(found.dtype) / temperature, dim=-1)
            target = functional.log_softmax(theirs[part].to(found.dtype) / temperature, dim=-1)
            wanted = target.exp()
            found[part] = temperature**2 * (wanted * target.sub_(ours)).sum(-1)
            if slopes is not None:
                slopes[part] = ours.exp_().sub_(wanted).mul_(temperature)
        ctx.save_for_backward(slopes)
        return found.view(outputs.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _scaled(ctx, gradient), None, None


class _Surprise(torch.autograd.Function):
    """[...], −log of each label's probability, 0 where there is none; its gradient is softmax(outputs) − 1 at the label."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, labels: Tensor) -> Tensor:
        rows, wanted = outputs.reshape(-1, outputs.shape[-1]), labels.reshape(-1, 1)
        found = torch.empty(len(rows), dtype=_wide(outputs), device=outputs.device)
        slopes = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for part in _parts(rows):
            ours = functional.log_softmax(rows[part].to(found.dtype), dim=-1)
            there = wanted[part] != IGNORED
            places = wanted[part].clamp(min=0)
            found[part] = -(ours.gather(-1, places) * there).squeeze(-1)
            if slopes is not None:
                ours.exp_().scatter_add_(-1, places, torch.full_like(places, -1, dtype=ours.dtype))
                slopes[part] = ours.mul_(there)
        ctx.save_for_backward(slopes)
        return found.view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scaled(ctx, gradient), None


def _scaled(ctx: Any, gradient: Tensor) -> Tensor:
    """The slopes that forward kept, each row times the gradient of its value."""
    (slopes,) = ctx.saved_tensors
    result: Tensor = (slopes * gradient.reshape(-1, 1).to(slopes.dtype)).view(*gradient.shape, slopes.shape[-1])
    return result


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _parts(rows: Tensor) -> Iterator[slice]:
    """Blocks of rows, some _AT_ONCE numbers each."""
    numbers = _AT_ONCE if rows.device.type == "cpu" else _AT_ONCE_ELSEWHERE
    step = max(1, numbers // max(1, rows.shape[-1]))
    return (slice(start, start + step) for start in range(0, len(rows), step))


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
