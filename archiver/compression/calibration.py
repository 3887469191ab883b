"""What calibration texts say of the inputs of modules: hooks, and second moments XᵀX.

Methods that compensate errors (GPTQ, AWQ, scale estimation, Wanda, SparseGPT) take them layer by layer, see `walk`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch

from archiver.compression.context import Batch, StageContext, calibration_forward, stacked
from archiver.errors import RecipeError
from archiver.state.constraints import sharing

Tensor = torch.Tensor

_TOKENS = 512  # of one product in float32


@dataclass
class Moments:
    """Moments of a layer's inputs X, summed over tokens.

    Args:
        gram: XᵀX [in_features, in_features], float64.
        absolute: Σ|x| [in_features].
        tokens: how many.
    """

    gram: Tensor
    absolute: Tensor
    tokens: int = 0

    @property
    def norms(self) -> Tensor:
        """‖X_j‖₂ of each input feature over all calibration tokens, [in_features]."""
        return self.gram.diagonal().clamp(min=0).sqrt()

    def add(self, other: Moments) -> Moments:
        """Add those of more inputs to these, in place; returns these."""
        self.gram += other.gram
        self.absolute += other.absolute
        self.tokens += other.tokens
        return self

    def __add__(self, other: Moments) -> Moments:
        """Those of the inputs of both."""
        return Moments(self.gram + other.gram, self.absolute + other.absolute, self.tokens + other.tokens)


@contextmanager
def watched_inputs(model: torch.nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `see(name, input)` is called before each forward pass of the modules `names`, with their first input."""

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            see(name, arguments[0])

        return hook

    with removed([model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]):
        yield


@contextmanager
def removed(hooks: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Hooks that go away at the end, also when the model fails."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_seen(names: Sequence[str], seen: Callable[[str], bool], method: str = "") -> None:
    """Refuse modules that no calibration text has reached: they cannot be judged by their inputs.

    Args:
        names: of the modules that were watched.
        seen: whether one has been reached.
        method: what the message begins with.
    Raises: RecipeError that names every module which has not been reached.
    """
    if silent := [name for name in names if not seen(name)]:
        what = f"{method}: no" if method else "no"
        raise RecipeError(f"{what} calibration example reached {', '.join(silent)}; add them to `ignore`")


class MomentsSeen:
    """Gathers the moments of the inputs of some modules, as hooks see them.

    Modules that are given the very same tensor one after another (queries, keys and values; gate and up) share one
    object: its product is made once.

    Args:
        names: of linear layers, or of tables whose weight a linear layer shares.
    """

    def __init__(self, model: torch.nn.Module, names: Sequence[str]) -> None:
        self._readers = {name: readers_of(model, name) for name in names}
        self.watched = list(dict.fromkeys(reader for twins in self._readers.values() for reader in twins))
        self._found: dict[tuple[str, ...], Moments] = {}
        self._last: tuple[Tensor, int] | None = None  # the newest input, and its version
        self._new: Moments | None = None
        self._names: list[str] = []

    def see(self, name: str, x: Tensor) -> None:
        """A module's input [..., in_features]."""
        same = self._last is not None and x is self._last[0] and x._version == self._last[1]
        if not same or name in self._names:
            self.flush()
            self._last, self._new = (x, x._version), moments_of(x)
        self._names.append(name)

    def flush(self) -> None:
        """Add up what was seen last; to be called after each batch."""
        if self._new is not None:
            key = tuple(self._names)
            self._found[key] = self._found[key].add(self._new) if key in self._found else self._new
        self._last, self._new, self._names = None, None, []

    def moments(self) -> dict[str, Moments]:
        """Name → moments, summed over all linear layers that share the weight.

        Raises: RecipeError when one of those layers was never reached.
        """
        self.flush()
        seen = {name for key in self._found for name in key}
        missing = [*self.watched, *(name for name, twins in self._readers.items() if not twins)]
        require_seen(missing, seen.__contains__)
        parts = {name: [one for key, one in self._found.items() if name in key] for name in seen}
        return {
            name: reduce(add, (one for twin in twins for one in parts[twin])) for name, twins in self._readers.items()
        }  # fmt: skip


def moments_of(x: Tensor) -> Moments:
    """The moments of one input [..., in_features]: products of float32 of some hundred tokens, summed up in float64."""
    x = x.detach().reshape(-1, x.shape[-1])
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(_TOKENS):
        gram += (part.T @ part).double().cpu()
    return Moments(gram, x.abs().sum(0).cpu(), x.shape[0])


def input_moments(
    model: torch.nn.Module, names: Sequence[str], context: StageContext, samples: int
) -> dict[str, Moments]:
    """The moments of the inputs that the weight of each module meets, over `samples` calibration texts, in one run.

    Args:
        names: of linear layers, or of tables whose weight a linear layer shares.
        samples: calibration texts.
    Returns: name → moments, summed over all linear layers that share the weight. Layers with the same inputs share one
        object.
    Raises: RecipeError when one of those layers is never reached.
    """
    return moments_on(model, names, context.module, stacked(context.calibrate(samples)))


def moments_on(
    model: torch.nn.Module, names: Sequence[str], module: torch.nn.Module, batches: Sequence[Batch]
) -> dict[str, Moments]:
    """`input_moments` over batches of calibration texts."""
    seen = MomentsSeen(model, names)
    with watched_inputs(model, seen.watched, seen.see):
        calibration_forward(module, batches, seen.flush)
    return seen.moments()


def readers_of(model: torch.nn.Module, name: str) -> list[str]:
    """Names of the linear layers that multiply by the weight of module `name`: itself first, then those that share it."""
    twins = {id(model.get_submodule(name)): name}
    for twin in sharing(model, name):
        twins.setdefault(id(model.get_submodule(twin)), twin)
    return [twin for twin in twins.values() if isinstance(model.get_submodule(twin), torch.nn.Linear)]
