"""What a compression stage says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from archiver.compression.context import describe_options
from archiver.storage.sizes import stored_bytes


@dataclass(frozen=True)
class StageReport:
    """method: `verb/method`. parameters: a count. weight_bytes: of all weights after the stage, as they will be stored.

    notes: what it found and did, in sentences: thresholds, ranks, what makes nothing faster
    metrics: {"before" | "after": validation metrics}, filled in by the build
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    weight_bytes: int = 0
    notes: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_stage(method: str, model: torch.nn.Module, options: Any, notes: Sequence[str] = ()) -> StageReport:
    """The report of a stage that has changed `model`: each shared Parameter counts once."""
    return StageReport(
        method=method,
        options=describe_options(options),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=stored_bytes(model),
        notes=tuple(notes),
    )
