"""The stage `retrain`: train the compressed model, to recover what earlier stages lost."""

from __future__ import annotations

import torch

from archiver.compression.context import StageContext
from archiver.compression.report import StageReport, report_stage
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train


def retrain(model: torch.nn.Module, options: Retrain, context: StageContext) -> StageReport:
    """Train on data.train with the original as teacher; masks, sharing and quantizers hold.

    Args:
        model: changed in place.
        options: losses and the optimiser.
        context: gives training batches and the teacher.
    Returns: the report.
    Raises: ArchiverError when the loss is not a finite number any more.
    """
    done = train(model, options, context)
    notes = [f"{done.steps} steps, loss {done.losses[0]:.4f} → {done.losses[-1]:.4f} (means of an epoch)"]
    if done.best is not None:
        notes.append(f"the weights of epoch {done.best + 1} were the best on validation and are kept")
    return report_stage("retrain", model, options, notes)
