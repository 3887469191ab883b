"""A model whose weights stay in its files: each module's are read when it runs, in fp32, and let go behind it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from archiver.models.stored import StoredTensor, stored_tensors

Module = torch.nn.Module

_KEPT = 1 << 23  # larger tensors have pages of their own, which go back to the host at once


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
