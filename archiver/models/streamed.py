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

_PART = 1 << 20  # values that are read at once
_KEPT = 1 << 23  # larger tensors have pages of their own, which go back to the host at once
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
        self._spare: dict[tuple[int, ...], list[torch.Tensor]] = {}  # room for weights, used again and again
        places: dict[int, StoredTensor] = {}
        memo: dict[int, Any] = {}
        for name, weight in model.named_parameters():
            if name in stored and self._equal(stored[name], weight):
                memo[id(weight)] = torch.nn.Parameter(torch.empty(0), requires_grad=False)
                places[id(memo[id(weight)])] = stored[name]
        self.model: Module = copy.deepcopy(model, memo)
        self._slots: list[tuple[Module, str, torch.nn.Parameter, StoredTensor]] = []
        for module in self.model.modules():
            mine = [
                (slot, p, places[id(p)]) for slot, p in module._parameters.items() if p is not None and id(p) in places
            ]
            self._slots += [(module, *one) for one in mine]
            if mine:
                module.register_forward_pre_hook(self._fill(mine))
                module.register_forward_hook(self._empty(mine), always_call=True)

    def same(self, model: Module) -> bool:
        """Whether every weight of a model is still what the files hold."""
        stored = {id(empty): tensor for _, _, empty, tensor in self._slots}
        mine = dict(self.model.named_parameters())
        theirs = dict(model.named_parameters())
        return mine.keys() == theirs.keys() and all(
            self._equal(stored[id(weight)], theirs[name]) if id(weight) in stored else torch.equal(weight, theirs[name])
            for name, weight in mine.items()
        )

    @contextmanager
    def resident(self) -> Iterator[Module]:
        """Inside, all weights are in memory, as an ordinary model's are."""
        read: dict[int, torch.nn.Parameter] = {}
        try:
            for module, slot, empty, tensor in self._slots:
                if id(empty) not in read:
                    read[id(empty)] = torch.nn.Parameter(tensor.read(), requires_grad=False)
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
                    weight = stored.read_into(self._room(stored.shape)).to(empty.device)
                    module._parameters[slot] = torch.nn.Parameter(weight, requires_grad=False)

        return fill

    def _empty(self, mine: list[tuple[str, torch.nn.Parameter, StoredTensor]]) -> Callable[..., None]:
        def empty_again(module: Module, *arguments: object) -> None:
            if not self._resident:
                for slot, empty, _ in mine:
                    weight, module._parameters[slot] = module._parameters[slot], empty
                    if weight is not None and weight is not empty:
                        self._put_by(weight.detach())

        return empty_again

    def _room(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor to read into. Many that come and go would leave the C library a heap full of holes."""
        spare = self._spare.get(shape)
        if spare:
            return spare.pop()
        with torch.inference_mode(mode=False):  # such a tensor may be written to again outside of that mode
            return torch.empty(shape)

    def _put_by(self, room: torch.Tensor) -> None:
        """Keep a small tensor for the next weight of its shape."""
        if room.device.type == "cpu" and room.numel() < _KEPT:
            self._spare.setdefault(tuple(room.shape), []).append(room)

    def _equal(self, stored: StoredTensor, weight: torch.Tensor) -> bool:
        if stored.shape != tuple(weight.shape):
            return False
        found = stored.read_into(self._room(stored.shape))
        self._put_by(found)
        return torch.equal(found, weight)
