"""What calibration texts say of the inputs of modules: hooks, second moments XᵀX, and the loop over layers.

Methods that compensate errors (GPTQ, AWQ, scale estimation, Wanda, SparseGPT) go through `each_layer`: the moments of a
layer's inputs are taken when the layers below it have been changed already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch

from archiver.architecture import layer_list
from archiver.compression.context import StageContext, calibration_forward
from archiver.errors import RecipeError, UnsupportedModelError
from archiver.state.constraints import sharing

Tensor = torch.Tensor


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


def input_moments(
    model: torch.nn.Module, names: Sequence[str], context: StageContext, samples: int
) -> dict[str, Moments]:
    """The moments of the inputs that the weight of each module meets, over `samples` calibration texts.

    Args:
        names: of linear layers, or of tables whose weight a linear layer shares.
        samples: calibration texts.
    Returns: name → moments, summed over all linear layers that share the weight.
    Raises: RecipeError when one of those layers is never reached.
    """
    readers = {name: readers_of(model, name) for name in names}
    every = list(dict.fromkeys(reader for twins in readers.values() for reader in twins))
    found: dict[str, Moments] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1])
        width = x.shape[1]
        moments = found.setdefault(name, Moments(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width)))
        moments.gram += (x.T @ x).double().cpu()
        moments.absolute += x.abs().sum(0).cpu()
        moments.tokens += x.shape[0]

    with watched_inputs(model, every, see):
        calibration_forward(context.module, context.calibrate(samples))
    require_seen([*every, *(name for name, twins in readers.items() if not twins)], found.__contains__)
    return {name: reduce(add, (found[twin] for twin in twins)) for name, twins in readers.items()}


def readers_of(model: torch.nn.Module, name: str) -> list[str]:
    """Names of the linear layers that multiply by the weight of module `name`: itself first, then those that share it."""
    twins = {id(model.get_submodule(name)): name}
    for twin in sharing(model, name):
        twins.setdefault(id(model.get_submodule(twin)), twin)
    return [twin for twin in twins.values() if isinstance(model.get_submodule(twin), torch.nn.Linear)]


def each_layer(
    model: torch.nn.Module,
    names: Sequence[str],
    context: StageContext,
    samples: int,
    *,
    method: str,
    together: bool = False,
) -> Iterator[tuple[list[str], dict[str, Moments]]]:
    """The layers one after another, each with moments that see what was changed below it; says how far it is.

    Args:
        names: of the modules to change; each group of `by_layer` is given once.
        samples: calibration texts, run anew for each group.
        method: what the progress is said of.
        together: all in one group, for methods that compare all layers.
    Yields: (names of the group, name → moments of its inputs).
    """
    done = 0
    for group in [list(names)] if together else by_layer(model, names):
        yield group, input_moments(model, group, context, samples)
        done += len(group)
        context.say(f"    {method}: {group[-1]} and what is beside it, {done} of {len(names)} modules")


def by_layer(model: torch.nn.Module, names: Sequence[str]) -> list[list[str]]:
    """`names` in groups that are computed one after another: each layer's, the rest last; one group without layers.

    Methods that compensate errors go through the groups in turn, with moments that already see the changed layers below.
    """
    try:
        prefix, layers = layer_list(model)
    except UnsupportedModelError:
        return [list(names)] if names else []
    groups: list[list[str]] = [[] for _ in range(len(layers) + 1)]
    for name in names:
        index = name.removeprefix(f"{prefix}.").partition(".")[0]
        inside = name.startswith(f"{prefix}.") and index.isdigit()
        groups[int(index) if inside else len(layers)].append(name)
    return [group for group in groups if group]
