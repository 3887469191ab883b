"""What a post-training int8 stage leaves for the exporters: which modules become integers, and in which ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

Batch = Mapping[str, torch.Tensor]


@dataclass
class QuantizationPlan:
    """The integers that the exporter of the chosen runtime writes.

    Args:
        kind: dynamic-int8, static-int8 or weight-only.
        linears, embeddings: names of the modules whose weights become int8.
        convolutions: the same, for static-int8 in the runtimes that can.
        ranges: for static-int8, the activation range (low ≤ 0 ≤ high) at each linear layer's input.
        calibration: the batches behind the ranges, for runtimes that calibrate themselves.
    """

    kind: str
    linears: tuple[str, ...]
    embeddings: tuple[str, ...]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    calibration: Sequence[Batch] = ()
    convolutions: tuple[str, ...] = ()


def plan_of(model: torch.nn.Module) -> QuantizationPlan | None:
    """What a quantize stage has planned on the model; None where there was none."""
    return getattr(model, "quantization", None)
