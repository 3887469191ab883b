"""A model's layers, each run by itself: the inputs of a layer are the outputs of the one below, kept for all batches.

So a walk through the layers costs as much as the model, whatever its depth; running the whole model anew for each layer
would cost the square of that. How each layer is called (masks, positions) is asked from the model itself, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from archiver.architecture import layer_list
from archiver.compression.calibration import removed
from archiver.compression.context import Batch, inputs_of
from archiver.compression.walk.hidden import Hidden
from archiver.errors import UnsupportedModelError

Tensor = torch.Tensor
_PLAIN = (bool, int, float, str, type(None))
_TOLERANCE = 1e-4  # of outputs of the layers by themselves against the model's, as a share of the largest


@dataclass(frozen=True)
class _Call:
    """How a layer is called, without its hidden states.

    Args:
        arguments: positional ones after the hidden states. named: the others.
        keyword: the hidden states' own name; None where they are the first positional argument.
    """

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    keyword: str | None

    def run(self, layer: torch.nn.Module, hidden: Tensor) -> Any:
        arguments, named = self.on(hidden)
        return layer(*arguments, **named)

    def on(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer's arguments, positional and by name, with these hidden states."""
        if self.keyword is None:
            return (hidden, *self.arguments), dict(self.named)
        return self.arguments, {self.keyword: hidden, **self.named}

    def tensors(self) -> Iterator[Tensor]:
        for value in _leaves([self.arguments, dict(self.named)]):
            if isinstance(value, Tensor):
                yield value


class _Enough(Exception):
    """The layers have been called: the rest of the model need not run."""


class LayerRuns:
    """The layers of one model on calibration batches, from the lowest to the highest, once.

    Memory is that of one layer's inputs over all batches, and of what the layers are called with beside them, of which
    equal tensors are kept once.

    Args:
        module: the model with its head. batches: the calibration batches. layers: the model's, the lowest first.
        calls: batch → layer → how it is called.
        hidden: the inputs of the layer that is reached. widths: length of the tuple that a layer gives; None: a tensor.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        batches: Sequence[Batch],
        layers: Sequence[torch.nn.Module],
        calls: Sequence[Sequence[_Call]],
        hidden: Hidden,
        widths: Sequence[int | None],
    ) -> None:
        self.module, self.batches, self.layers = module, batches, layers
        self._calls, self._hidden, self._widths = calls, hidden, widths
        self.reached = 0  # the layer whose inputs are held

    @classmethod
    def of(cls, model: torch.nn.Module, module: torch.nn.Module, batches: Sequence[Batch]) -> LayerRuns | None:
        """The runs, at the lowest layer; None for a model whose layers cannot be run by themselves.

        They cannot where something beside the hidden states goes from one layer to the next, or happens between them.
        That is tried on the first batch: the layers by themselves have to give what they give in the model.
        """
        try:
            layers = list(layer_list(model)[1])
        except UnsupportedModelError:
            return None
        if not batches or len({id(layer) for layer in layers}) != len(layers):
            return None
        with torch.no_grad():
            probe = {name: value[:1] for name, value in batches[0].items()}
            seen = _in_the_model(module, layers, probe)
            if seen is None:
                return None
            last, widths = seen
            called = _called(module, layers, widths, probe)
            if called is None or not _same(_alone(layers, *called), last):
                return None
            pool = _Pool()
            calls, first = [], list[Tensor]()
            for batch in batches:
                called = _called(module, layers, widths, batch)
                if called is None:
                    return None
                calls.append(pool.kept(called[0]))
                first.append(called[1])
        return cls(module, batches, layers, calls, Hidden.of(first), widths)

    def go_to(self, place: int) -> None:
        """Bring the hidden states up to the inputs of layer `place`, through the layers as they are by now."""
        with torch.no_grad():
            while self.reached < place:
                layer = self.layers[self.reached]
                for index, hidden in enumerate(self._hidden):
                    self._hidden.put(index, first_of(self._calls[index][self.reached].run(layer, hidden)))
                self.reached += 1

    def fork(self) -> LayerRuns:
        """Other runs of the same calls, from the same hidden states."""
        found = LayerRuns(
            self.module, self.batches, self.layers, self._calls, Hidden.of(list(self._hidden)), self._widths
        )
        found.reached = self.reached
        return found

    def hidden(self) -> list[Tensor]:
        """The inputs of the layer that is reached (behind the last: what it gives), one tensor for each batch."""
        return list(self._hidden)

    def calls(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """(positional arguments, named ones) of the layer that is reached, for each batch."""
        return [calls[self.reached].on(hidden) for calls, hidden in zip(self._calls, self._hidden, strict=True)]

    def run_layer(self, done: Callable[[], None]) -> None:
        """Run the layer that is reached, for what hooks see of it, and forget what it gives; `done()` after each batch."""
        with torch.no_grad():
            layer = self.layers[self.reached]
            for index, hidden in enumerate(self._hidden):
                self._calls[index][self.reached].run(layer, hidden)
                done()

    def run_rest(self, done: Callable[[], None]) -> None:
        """Run what lies before and behind the layers, with what they give in their places; `done()` after each batch."""
        self.go_to(len(self.layers))
        with torch.no_grad():
            for batch, hidden in zip(self.batches, self._hidden, strict=True):
                with _in_place(self.layers, [_gives(width, hidden) for width in self._widths]):
                    self.module(**inputs_of(batch, self.module))
                done()

    def close(self) -> None:
        """Give the hidden states' memory or file back."""
        self._hidden.close()


def _in_the_model(
    module: torch.nn.Module, layers: Sequence[torch.nn.Module], batch: Batch
) -> tuple[Tensor, list[int | None]] | None:
    """(what the last layer gives, how long each layer's tuple is), of a run of the whole model.

    None where the layers do not follow one another: each once, its first argument the first thing that the one below gave,
    and nothing else of what a layer gave among the arguments of another.
    """
    order: list[int] = []
    outputs: list[Any] = []
    given: dict[int, Tensor] = {}  # by id: what layers gave, kept alive
    apart = True

    def watch(index: int) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            nonlocal apart
            call, hidden = _split(arguments, named)
            follows = not outputs or hidden is first_of(outputs[-1])
            plain = all(isinstance(value, (Tensor, *_PLAIN)) for value in _leaves([call.arguments, dict(call.named)]))
            apart = apart and hidden is not None and follows and plain
            apart = apart and not any(id(one) in given for one in call.tensors())
            order.append(index)
            outputs.append(output)
            given.update({id(one): one for one in _leaves(output) if isinstance(one, Tensor)})

        return hook

    with removed([layer.register_forward_hook(watch(index), with_kwargs=True) for index, layer in enumerate(layers)]):
        module(**inputs_of(batch, module))
    if not apart or order != list(range(len(layers))) or not all(isinstance(first_of(one), Tensor) for one in outputs):
        return None
    return first_of(outputs[-1]), [len(one) if isinstance(one, tuple) else None for one in outputs]


def _called(
    module: torch.nn.Module, layers: Sequence[torch.nn.Module], widths: Sequence[int | None], batch: Batch
) -> tuple[list[_Call], Tensor] | None:
    """(how each layer is called, the lowest layer's hidden states), without computing any layer."""
    calls: list[_Call] = []
    first: list[Tensor] = []

    def note(width: int | None) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            call, hidden = _split(arguments, named)
            if hidden is None:
                raise _Enough
            calls.append(call)
            first.append(hidden)
            if len(calls) == len(layers):
                raise _Enough
            return _gives(width, hidden)(hidden)

        return forward

    with suppress(_Enough), _in_place(layers, [note(width) for width in widths]):
        module(**inputs_of(batch, module))
    return (calls, first[0]) if len(calls) == len(layers) else None


@contextmanager
def _in_place(layers: Sequence[torch.nn.Module], functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside, the layers compute these functions."""
    try:
        for layer, function in zip(layers, functions, strict=True):
            layer.__dict__["forward"] = function
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _gives(width: int | None, hidden: Tensor) -> Callable[..., Any]:
    """A layer's forward that gives `hidden`, in a tuple of `width` where the layer gives one."""

    def forward(*_: Any, **__: Any) -> Any:
        return hidden if width is None else (hidden, *itertools.repeat(None, width - 1))

    return forward


def _split(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[_Call, Tensor | None]:
    """(the call without hidden states, the hidden states); None where they are not to be found."""
    if arguments:
        hidden = arguments[0]
        return _Call(tuple(arguments[1:]), dict(named), None), hidden if isinstance(hidden, Tensor) else None
    hidden = named.get("hidden_states")
    others = {key: value for key, value in named.items() if key != "hidden_states"}
    return _Call((), others, "hidden_states"), hidden if isinstance(hidden, Tensor) else None


def _alone(layers: Sequence[torch.nn.Module], calls: Sequence[_Call], hidden: Tensor) -> Tensor:
    for layer, call in zip(layers, calls, strict=True):
        hidden = first_of(call.run(layer, hidden))
    return hidden


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max().clamp(min=1e-12))


def first_of(output: Any) -> Any:
    """The hidden states of what a layer gives."""
    return output[0] if isinstance(output, tuple) else output


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


class _Pool:
    """Equal tensors once: masks and positions are the same for every layer, and for every batch of one shape."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        # By id: a tensor of this batch's calls, and the one kept for it.
        self._met: dict[int, tuple[Tensor, Tensor]] = {}

    def kept(self, calls: Sequence[_Call]) -> list[_Call]:
        """The calls of one batch with tensors that are kept already in the place of equal ones."""
        found = [_Call(self._of(call.arguments), self._of(dict(call.named)), call.keyword) for call in calls]
        self._met.clear()
        return found

    def _of(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._of(item) for item in value)
        return self._tensor(value) if isinstance(value, Tensor) else value

    def _tensor(self, value: Tensor) -> Tensor:
        met = self._met.get(id(value))
        if met is not None and met[0] is value:
            return met[1]
        known = self._known.setdefault((value.shape, value.dtype), [])
        # The newest first: only few are looked at, so that inputs which all differ cost no more than that.
        equal = next((other for other in reversed(known[-4:]) if torch.equal(other, value)), None)
        if equal is None:
            equal = value
            known.append(value)
        self._met[id(value)] = (value, equal)
        return equal
