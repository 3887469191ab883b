"""The report of a compression stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from archiver.storage.sizes import stored_bytes


@dataclass(frozen=True)
class StageReport:
    """A stage's entry in the archive's report.

    Args:
        method: `verb/method`.
        options: those that say something.
        parameters: how many there are after the stage.
        weight_bytes: of all weights after the stage, as they will be stored.
        notes: what it found and did, in sentences: thresholds, ranks, what makes nothing faster.
        metrics: {"before" | "after": validation metrics}, filled in by the build.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    weight_bytes: int = 0
    notes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def report_stage(method: str, model: torch.nn.Module, options: Any, notes: Sequence[str] = ()) -> StageReport:
    """The report of a stage that has changed `model`.

    Args:
        method: `verb/method`.
        model: as the stage has left it; each shared Parameter counts once.
        options: the stage's options dataclass; what was left at None or empty is left out.
        notes: sentences.
    Returns: the report, without metrics.
    """
    return StageReport(
        method=method,
        options={key: value for key, value in asdict(options).items() if value not in (None, (), [], {})},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=stored_bytes(model),
        notes=tuple(notes),
    )
