"""The GPU that a worker computes on, of those that its host has."""

import os
from typing import Any


def use_gpu(number: int) -> None:
    """Show this process one GPU and no other, so that it is the first of every runtime's.

    Has to stand before anything that starts CUDA.

    Args:
        number: from 0, among those that CUDA_VISIBLE_DEVICES lists, or among all where that is not set; TorchServe
            deals them out to its workers in turn.
    """
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if shown and not 0 <= number < len(shown):
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = shown[number] if shown else str(number)


def gpu_of(properties: dict[str, Any]) -> int | None:
    """What TorchServe's system properties say of the worker's GPU, None for a worker without."""
    number = properties.get("gpu_id")
    return None if number is None or int(number) < 0 else int(number)
