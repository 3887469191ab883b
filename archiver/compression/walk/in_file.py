"""A large model's weights in a file while it is walked through: only one layer's are looked at at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from archiver.architecture import layer_list
from archiver.errors import ArchiverError, UnsupportedModelError
from archiver.host import drop_mapped, give_back_memory, unnamed_file

LARGE = 1e9  # bytes of float32 weights from which on they leave memory


@contextmanager
def in_file(model: torch.nn.Module, folder: Path | None) -> Iterator[Callable[[], None]]:
    """Let a model's weights, where they are many, lie in a mapped file; they stay what they are for all who use them.

    Their pages are in memory from when they are used until the next `archiver.host.drop_mapped`, which inside comes behind
    each layer that ran. The file has no name, and its room is free again when the last of the weights is.

    Args:
        model: is changed in place. folder: where the file lies; None: the folder for temporary files.
    Yields: what to call when a layer is done: what its work has freed goes back to the host.
    Raises: ArchiverError where the folder has not that much room.
    """
    weights = [
        weight
        for weight in model.parameters()
        if weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and weight.untyped_storage().nbytes() == 4 * weight.numel()  # no view of what others see, too
    ]
    size = sum(weight.numel() for weight in weights) * 4
    if size < LARGE:
        yield lambda: None
        return
    _move(weights, size, folder or Path(tempfile.gettempdir()))
    try:
        layers = list(layer_list(model)[1])
    except UnsupportedModelError:
        layers = []
    behind = [layer.register_forward_hook(lambda *_: drop_mapped()) for layer in layers]
    try:
        yield _let_go
    finally:
        for hook in behind:
            hook.remove()


def _let_go() -> None:
    drop_mapped()
    give_back_memory()


def _move(weights: Sequence[torch.nn.Parameter], size: int, place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = torch.from_numpy(unnamed_file(size, place)).view(torch.float32)
    except OSError as error:
        raise ArchiverError(
            f"the model's weights need {size / 1e6:.0f} MB in {place} while they are calibrated: {error.strerror}; free "
            "some space there"
        ) from error
    start = 0
    for weight in weights:
        end = start + weight.numel()
        weight.data = file[start:end].view(weight.shape).copy_(weight.data)
        start = end
        drop_mapped()
    give_back_memory()
