"""Where a torch module computes."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from handlers.errors import UnsoundArchive

Module = TypeVar("Module", bound=torch.nn.Module)


def placed(module: Module, spec: Mapping[str, Any]) -> Module:
    """A module on the device that the archive was built for.

    Args:
        spec: its `device`, "cpu" or "cuda"; without one it is the CPU.
    Raises: UnsoundArchive where torch sees no GPU.
    """
    device = spec.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsoundArchive(
            f"this archive computes on CUDA, and PyTorch {torch.__version__} here sees no GPU: run the worker "
            "where nvidia-smi lists one and torch is a CUDA build, or build the archive with `serve.device: cpu`"
        )
    return module.to(device)
