"""What a walk has done so far, on disk: an interruption, also by kill -9, loses one layer's work.

One safetensors file for each visited group, written under another name and moved into place. The files' names hold a digest
of the weights that the walk began with, so that a walk over other weights never meets them; they are removed then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from archiver.errors import ArchiverError
from archiver.host import drop_mapped

Tensor = torch.Tensor
_WEIGHT, _KEPT = "weight/", "kept/"


class SavedWalk:
    """The files of one walk.

    Args:
        model: whose weights the visits change.
        path: without the group's number and suffix; None: nothing is kept on disk.
    """

    def __init__(self, model: torch.nn.Module, path: Path | None) -> None:
        self.model, self.path = model, path

    @classmethod
    def of(cls, checkpoint: Path | None, model: torch.nn.Module, names: Sequence[str], key: str) -> SavedWalk:
        """The files of the walk that begins with the model as it is.

        Args:
            checkpoint: the stage's, without suffix; None: nowhere. names: of the modules that the walk changes.
            key: what else tells it apart from other walks of the stage.
        """
        if checkpoint is None:
            return cls(model, None)
        digest = hashlib.sha256(key.encode())
        for name in names:
            weight = getattr(model.get_submodule(name), "weight").detach()  # noqa: B009 - may be computed from a latent one
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.contiguous().view(torch.uint8).numpy().data)
            drop_mapped()
        path = checkpoint.with_name(f"{checkpoint.name}-walk-{digest.hexdigest()[:16]}")
        for file in path.parent.glob(f"{checkpoint.name}-walk-*"):
            if not file.name.startswith(path.name):
                file.unlink(missing_ok=True)
        return cls(model, path)

    def restored(self, place: int) -> dict[str, Tensor] | None:
        """Put back what the visit of group `place` has changed.

        Returns: what it gave to keep; None where it has not been done, or its file is no good.
        """
        file = self._file(place)
        if file is None or not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            weights = {name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)}
            targets = {name: self.model.get_parameter(name) for name in weights}
            if any(target.shape != weights[name].shape for name, target in targets.items()):
                return None
        except (SafetensorError, OSError, ValueError, AttributeError):
            file.unlink(missing_ok=True)  # half-written, or of another version: it is done again
            return None
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(weights[name])
        return {name.removeprefix(_KEPT): value for name, value in tensors.items() if name.startswith(_KEPT)}

    def keep(self, place: int, names: Sequence[str], kept: Mapping[str, Tensor]) -> None:
        """Write what the visit of group `place` has done.

        Args:
            names: of the modules whose weights it may have changed. kept: what it gave to keep.
        Raises: ArchiverError where the disk is full.
        """
        file = self._file(place)
        if file is None:
            return
        tensors = {
            f"{_WEIGHT}{name}.{key}": value.detach()
            for name in dict.fromkeys(names)
            for key, value in self.model.get_submodule(name).named_parameters(recurse=False)
        } | {f"{_KEPT}{name}": value for name, value in kept.items()}
        part = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Weights of experts may be views of one tensor: each is written by itself.
            save_file({name: value.cpu().clone().contiguous() for name, value in tensors.items()}, part)
            os.replace(part, file)
        except (SafetensorError, OSError) as error:
            part.unlink(missing_ok=True)
            raise ArchiverError(
                f"what the walk has done cannot be written to {file.parent}: {error}; free some space there, and build "
                "again: it goes on at this layer"
            ) from error

    def _file(self, place: int) -> Path | None:
        return self.path.with_name(f"{self.path.name}-{place:04}.safetensors") if self.path is not None else None
