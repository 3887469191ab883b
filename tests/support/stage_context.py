"""A `StageContext` made by hand, for stages that are run without a build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from objectives import OBJECTIVES

from archiver.compression.context import StageContext


def calibrated_on(batches: Sequence[Any], module: torch.nn.Module | None = None) -> StageContext:
    """A StageContext whose calibration data and training data are these batches, whatever is asked for."""
    module = module or torch.nn.Identity()
    objective = OBJECTIVES["text-classification"]
    return StageContext(
        module, module, objective, lambda samples: batches, lambda size, seed: batches, dict
    )  # fmt: skip
