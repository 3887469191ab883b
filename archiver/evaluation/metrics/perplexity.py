"""How well a language model predicts windows of text; logits are looked at batch by batch and never kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from archiver.errors import DataError

_LOGITS = 1 << 24  # most logits held at once: 64 MB as float32
MAX_ROWS = 8
DECIMALS = 6


@dataclass(frozen=True)
class Predictions:
    """nll: the mean negative log-likelihood of a predicted token, in nats. best: [windows, length − 1] likeliest tokens."""

    nll: float
    best: np.ndarray


def predict_windows(module: torch.nn.Module, windows: np.ndarray) -> Predictions:
    """Each window by itself: its first token is given, the others are predicted from those before them.

    module: input_ids [rows, length] → logits [rows, length, vocabulary]; windows: [windows, length] int64
    DataError when a likelihood is no number
    """
    device = next(module.parameters()).device
    total, best = 0.0, []
    rows = 1
    start = 0
    with torch.inference_mode():
        while start < len(windows):
            ids = torch.from_numpy(windows[start : start + rows].copy()).to(device)
            logits = module(input_ids=ids)[:, :-1].float()
            target = ids[:, 1:].unsqueeze(-1)
            nll = torch.logsumexp(logits, dim=-1) - logits.gather(-1, target).squeeze(-1)
            total += float(nll.double().sum())
            best.append(logits.argmax(dim=-1).cpu().numpy())
            start += rows
            rows = max(1, min(MAX_ROWS, _LOGITS // (windows.shape[1] * logits.shape[-1])))
    count = windows.shape[0] * (windows.shape[1] - 1)
    if not math.isfinite(total):
        raise DataError("the model gave logits that are not finite on the validation text: nothing can be measured")
    return Predictions(total / count, np.concatenate(best))


def language_metrics(found: Predictions, reference: np.ndarray) -> dict[str, float]:
    """perplexity, cross_entropy, and agreement with the original's likeliest tokens `reference`, shaped like found.best."""
    return {
        "perplexity": round(math.exp(min(found.nll, 700.0)), DECIMALS),
        "cross_entropy": round(found.nll, DECIMALS),
        "agreement": round(float((found.best == reference).mean()), DECIMALS),
    }
