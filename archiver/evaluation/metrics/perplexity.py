"""How well a language model predicts windows of text; logits are looked at batch by batch and never kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from archiver.errors import DataError
from archiver.host import give_back_memory
from archiver.progress import counted

_LOGITS = 1 << 26  # most logits held at once: 256 MB as float32
MAX_ROWS = 8
DECIMALS = 6


@dataclass(frozen=True)
class Predictions:
    """What a model predicts in windows of one length.

    Args:
        nll: [windows] float64, the mean negative log-likelihood of a predicted token of each, in nats.
        best: [windows, length − 1] likeliest tokens.
    """

    nll: np.ndarray
    best: np.ndarray

    def __len__(self) -> int:
        return len(self.nll)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several blocks of windows as those of all, in the same order."""
    return Predictions(np.concatenate([part.nll for part in parts]), np.concatenate([part.best for part in parts]))


def predict_windows(module: torch.nn.Module, windows: np.ndarray) -> Predictions:
    """Each window by itself: its first token is given, the others are predicted from those before them.

    Args:
        module: input_ids [rows, length] → logits [rows, length, vocabulary].
        windows: [windows, length] int64.
    Raises: DataError when a likelihood is no number.
    """
    device = next(module.parameters()).device
    nll, best = [], []
    rows = 1
    start = 0
    with torch.inference_mode(), counted(len(windows), "windows") as done:
        while start < len(windows):
            ids = torch.from_numpy(windows[start : start + rows].copy()).to(device)
            logits = module(input_ids=ids)[:, :-1].float()
            target = ids[:, 1:].unsqueeze(-1)
            for row, wanted in zip(
                logits, target, strict=True
            ):  # one by one: each step on all would hold all once more
                lost = torch.logsumexp(row, dim=-1) - row.gather(-1, wanted).squeeze(-1)
                nll.append(float(lost.double().mean()))
                best.append(row.argmax(dim=-1).cpu().numpy())
            start += rows
            done(min(start, len(windows)))
            rows = max(1, min(MAX_ROWS, _LOGITS // (windows.shape[1] * logits.shape[-1])))
            del logits, row  # before the next ones are made
    give_back_memory()
    found = np.array(nll)
    if not np.isfinite(found).all():
        raise DataError("the model gave logits that are not finite on the validation text: nothing can be measured")
    return Predictions(found, np.stack(best))


def language_metrics(found: Predictions, reference: np.ndarray) -> dict[str, float]:
    """perplexity, cross_entropy, and agreement with the original's likeliest tokens.

    Args:
        reference: shaped like found.best.
    """
    mean = float(found.nll.mean())
    return {
        "perplexity": round(math.exp(min(mean, 700.0)), DECIMALS),
        "cross_entropy": round(mean, DECIMALS),
        "agreement": round(float((found.best == reference).mean()), DECIMALS),
    }
