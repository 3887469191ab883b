"""A model whose weights stay in its files: each module's are read when it runs, in fp32, and let go behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.host import drop_mapped, map_file
from archiver.models.stored import StoredTensor, stored_tensors

Module = torch.nn.Module

_KEPT = 1 << 23  # larger tensors have pages of their own, which go back to the host at once


class Streamed:
    """A model, some of whose weights lie in files: each is in memory while its module runs, and at no other time.

    Args:
        model: is changed in place; see `streamed_copy` and `parked` for models to begin with.
        places: id of an empty Parameter of the model → the tensor that it stands for.

    Attributes:
        model: to be called as any model is.
    """

    def __init__(self, model: Module, places: Mapping[int, StoredTensor]) -> None:
        self.model = model
        self._resident = False
        self._spare: dict[tuple[int, ...], list[torch.Tensor]] = {}  # room for weights, used again and again
        self._slots: list[tuple[Module, str, torch.nn.Parameter, StoredTensor]] = []
        for module in model.modules():
            mine = [
                (slot, p, places[id(p)]) for slot, p in module._parameters.items() if p is not None and id(p) in places
            ]
            self._slots += [(module, *one) for one in mine]
            if mine:
                module.register_forward_pre_hook(self._fill(mine))
                module.register_forward_hook(self._empty(mine), always_call=True)

    def same(self, model: Module) -> bool:
        """Whether every weight of another model is what this one's is."""
        stored = {id(empty): tensor for _, _, empty, tensor in self._slots}
        mine = dict(self.model.named_parameters())
        theirs = dict(model.named_parameters())
        return mine.keys() == theirs.keys() and all(
            equal(stored[id(weight)], theirs[name]) if id(weight) in stored else torch.equal(weight, theirs[name])
            for name, weight in mine.items()
        )

    @contextmanager
    def resident(self) -> Iterator[Module]:
        """Inside, all weights are in memory, as an ordinary model's are."""
        with self._with_weights(StoredTensor.read):
            yield self.model

    @contextmanager
    def mapped(self) -> Iterator[Module]:
        """The same, but those that lie in their files as fp32 are only mapped: see `archiver.host.drop_mapped`.

        Their pages are dropped behind each module that ran. Nobody may write into them.
        """
        files: dict[Path, np.ndarray] = {}

        def of(tensor: StoredTensor) -> torch.Tensor:
            if tensor.file not in files:
                files[tensor.file] = map_file(tensor.file)
            seen = tensor.seen_in(files[tensor.file])
            return tensor.read() if seen is None else seen

        behind = [module.register_forward_hook(lambda *_: drop_mapped()) for module, *_ in self._slots]
        try:
            with self._with_weights(of):
                yield self.model
        finally:
            for hook in behind:
                hook.remove()

    @contextmanager
    def _with_weights(self, of: Callable[[StoredTensor], torch.Tensor]) -> Iterator[None]:
        found: dict[int, torch.nn.Parameter] = {}
        self.let_go()
        try:
            for module, slot, empty, tensor in self._slots:
                if id(empty) not in found:
                    found[id(empty)] = torch.nn.Parameter(of(tensor), requires_grad=False)
                module._parameters[slot] = found[id(empty)]
            self._resident = True
            yield
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

    def let_go(self) -> None:
        """Hand back the room that is kept for weights to come."""
        self._spare.clear()

    def _put_by(self, room: torch.Tensor) -> None:
        """Keep a small tensor for the next weight of its shape."""
        if room.device.type == "cpu" and room.numel() < _KEPT:
            self._spare.setdefault(tuple(room.shape), []).append(room)


def streamed_copy(model: Module, folder: Path) -> Streamed:
    """A copy of a model that holds only those weights that its directory's files do not hold under the same name.

    Args:
        model: transformers' own, as it was loaded from `folder`; it stays as it is.
    """
    places: dict[int, StoredTensor] = {}
    memo: dict[int, Any] = {}
    for weight, stored in _matched(model, stored_tensors(folder)):
        if stored is not None:
            memo[id(weight)] = _nothing()
            places[id(memo[id(weight)])] = stored
    return Streamed(copy.deepcopy(model, memo), places)


def parked(model: Module, folder: Path, file: Path) -> Streamed:
    """A model whose weights leave memory, in place: those that its directory holds as fp32 are read from there again.

    Args:
        folder: the directory that it was loaded from. file: where its other weights are written, as fp32.
    """
    places: dict[int, StoredTensor] = {}
    empties: dict[int, torch.nn.Parameter] = {}
    with file.open("wb") as out:
        for weight, stored in _matched(model, stored_tensors(folder)):
            if weight.dtype != torch.float32:
                continue
            if stored is None or stored.dtype != torch.float32:
                stored = StoredTensor(file, weight.dtype, tuple(weight.shape), out.tell())
                weight.detach().cpu().contiguous().numpy().tofile(out)
            drop_mapped()
            empties[id(weight)] = _nothing()
            places[id(empties[id(weight)])] = stored
    for module in model.modules():
        for slot, found in module._parameters.items():
            if found is not None and id(found) in empties:
                module._parameters[slot] = empties[id(found)]
    return Streamed(model, places)


def equal(stored: StoredTensor, weight: torch.Tensor) -> bool:
    """Whether a weight is what a file holds."""
    same = stored.shape == tuple(weight.shape) and weight.dtype == torch.float32 and weight.is_contiguous()
    return same and stored.holds(weight.cpu())


def _matched(model: Module, stored: Mapping[str, StoredTensor]) -> list[tuple[torch.nn.Parameter, StoredTensor | None]]:
    """Each Parameter, and the tensor of its name that holds its values; None where there is none."""
    return [
        (weight, stored[name] if name in stored and equal(stored[name], weight) else None)
        for name, weight in model.named_parameters()
    ]


def _nothing() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(0), requires_grad=False)
