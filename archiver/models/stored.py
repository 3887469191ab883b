"""The tensors of safetensors files where they lie: read when they are wanted.

They are not mapped: a page of a mapped file that was looked at counts as this process's memory, until someone drops it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from archiver.models.files import read_directory

_PART = 1 << 20  # values that are read at once
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A float tensor in a safetensors file: where it begins, in bytes from the file's own beginning."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> torch.Tensor:
        """Its values in fp32."""
        return self.read_into(torch.empty(self.shape))

    def read_into(self, out: torch.Tensor) -> torch.Tensor:
        """The same, into a tensor [shape] float32: read, not mapped, so that what is not needed any more takes no memory.

        Other types than fp32 are read in parts, so that a large one needs no second buffer of its size.
        """
        flat = out.detach().view(-1)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            if self.dtype == torch.float32:
                self._fill(file, flat)
                return out
            part = torch.empty(min(_PART, flat.numel()), dtype=self.dtype)
            for start in range(0, flat.numel(), _PART):
                here = flat[start : start + _PART]
                self._fill(file, part[: here.numel()])
                here.copy_(part[: here.numel()])
        return out

    def holds(self, values: torch.Tensor) -> bool:
        """Whether these are its values in fp32, exactly; looked at in parts, so that no second copy is in memory."""
        flat = values.detach().view(-1)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            for start in range(0, flat.numel(), _PART):
                here = flat[start : start + _PART]
                part = torch.empty(here.numel(), dtype=self.dtype)
                self._fill(file, part)
                if not torch.equal(part.float(), here):
                    return False
        return True

    def seen_in(self, mapped: np.ndarray) -> torch.Tensor | None:
        """Its values in a mapping of its file [bytes] uint8; None where they do not lie there as fp32."""
        if self.dtype != torch.float32 or self.start % 4:
            return None
        size = 4 * math.prod(self.shape)
        return torch.from_numpy(mapped[self.start : self.start + size].view(np.float32).reshape(self.shape))

    def __getitem__(self, _: object) -> torch.Tensor:
        """Its values in their own type: transformers' loading takes a tensor of a file so, by [...]."""
        found = torch.empty(self.shape, dtype=self.dtype)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            self._fill(file, found.view(-1))
        return found

    def get_shape(self) -> list[int]:
        """As safetensors' slices tell it."""
        return list(self.shape)

    def get_dtype(self) -> str:
        """As safetensors' slices tell it: "BF16"."""
        return next(name for name, dtype in _TYPES.items() if dtype == self.dtype)

    def _fill(self, file: Any, tensor: torch.Tensor) -> None:
        view = memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]  # an array is a buffer
        done = 0
        while done < len(view) and (count := file.readinto(view[done:])):
            done += count
        if done < len(view):
            raise OSError(f"{self.file.name} ends within a tensor: it was changed while the build ran")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The float tensors of a model directory's weight files, by name; single values are left out."""
    found = {}
    for file in read_directory(folder).weights:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: Mapping[str, Any] = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _TYPES and entry["shape"]:
                start = 8 + length + int(entry["data_offsets"][0])
                found[name] = StoredTensor(file, _TYPES[entry["dtype"]], tuple(entry["shape"]), start)
    return found


def weights_of(folder: Path) -> dict[str, Any]:
    """Every tensor of a model directory's weight files, by name, as transformers' loading takes them by [...]."""
    floats = stored_tensors(folder)
    found: dict[str, Any] = {}
    for file in read_directory(folder).weights:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                found[name] = floats[name] if name in floats else opened.get_tensor(name)
    return found
