"""A model whose weights stay in its files: each module's are read when it runs, in fp32, and let go behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archiver.models.files import read_directory

Module = torch.nn.Module

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A float tensor in a safetensors file: where it begins, in bytes from the file's own beginning."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> torch.Tensor:
        """Its values in fp32: read, not mapped, so that a page that is not needed any more takes no memory."""
        found = torch.empty(self.shape, dtype=self.dtype)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            view = memoryview(found.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]  # an array is a buffer
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        if done < len(view):
            raise OSError(f"{self.file.name} ends within a tensor: it was changed while the build ran")
        return found.float()


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


class Streamed:
    """A copy of a model that holds only those weights that its files do not hold under the same name.

    Args:
        model: transformers' own, as it was loaded from `folder`; it stays as it is.
        folder: the model directory.

    Attributes:
        model: the copy, to be called as the model is. A module's weights are there while it runs, and at no other time.
    """

    def __init__(self, model: Module, folder: Path) -> None:
        stored = stored_tensors(folder)
        self._resident = False
        places: dict[int, StoredTensor] = {}
        memo: dict[int, Any] = {}
        for name, weight in model.named_parameters():
            if (
                name in stored
                and stored[name].shape == tuple(weight.shape)
                and torch.equal(stored[name].read(), weight)
            ):
                memo[id(weight)] = torch.nn.Parameter(torch.empty(0), requires_grad=False)
                places[id(memo[id(weight)])] = stored[name]
        self.model: Module = copy.deepcopy(model, memo)
        self._slots: list[tuple[Module, str, torch.nn.Parameter, StoredTensor]] = []
        for module in self.model.modules():
            mine = [(slot, p) for slot, p in module._parameters.items() if p is not None and id(p) in places]
            for slot, empty in mine:
                self._slots.append((module, slot, empty, places[id(empty)]))
            if mine:
                module.register_forward_pre_hook(self._fill([(slot, p, places[id(p)]) for slot, p in mine]))
                module.register_forward_hook(self._empty(mine), always_call=True)

    def same(self, model: Module) -> bool:
        """Whether every weight of a model is still what the files hold."""
        stored = {id(empty): tensor for _, _, empty, tensor in self._slots}
        mine = dict(self.model.named_parameters())
        theirs = dict(model.named_parameters())
        return mine.keys() == theirs.keys() and all(
            torch.equal(stored[id(weight)].read() if id(weight) in stored else weight, theirs[name])
            for name, weight in mine.items()
        )

    @contextmanager
    def resident(self) -> Iterator[Module]:
        """Inside, all weights are in memory, as an ordinary model's are."""
        read: dict[int, torch.nn.Parameter] = {}
        try:
            for module, slot, empty, stored in self._slots:
                if id(empty) not in read:
                    read[id(empty)] = torch.nn.Parameter(stored.read(), requires_grad=False)
                module._parameters[slot] = read[id(empty)]
            self._resident = True
            yield self.model
        finally:
            self._resident = False
            for module, slot, empty, _ in self._slots:
                module._parameters[slot] = empty

    def _fill(self, mine: list[tuple[str, torch.nn.Parameter, StoredTensor]]) -> Callable[..., None]:
        def fill(module: Module, _: object) -> None:
            if not self._resident:
                for slot, empty, stored in mine:
                    module._parameters[slot] = torch.nn.Parameter(stored.read().to(empty.device), requires_grad=False)

        return fill

    def _empty(self, mine: list[tuple[str, torch.nn.Parameter]]) -> Callable[..., None]:
        def empty_again(module: Module, *_: object) -> None:
            if not self._resident:
                for slot, empty in mine:
                    module._parameters[slot] = empty

        return empty_again
