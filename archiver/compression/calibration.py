"""What calibration texts say of the inputs of linear layers: second moments XᵀX, and which layers to look at together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from archiver.architecture import layer_list
from archiver.compression.context import Examples, calibration_forward
from archiver.errors import RecipeError, UnsupportedModelError

Tensor = torch.Tensor


@dataclass
class Moments:
    """gram: XᵀX [in_features, in_features] float64, summed over tokens. absolute: Σ|x| [in_features]. tokens: how many."""

    gram: Tensor
    absolute: Tensor
    tokens: int = 0

    @property
    def norms(self) -> Tensor:
        """‖X_j‖₂ of each input feature over all calibration tokens, [in_features]."""
        return self.gram.diagonal().clamp(min=0).sqrt()


def input_moments(model: torch.nn.Module, names: Sequence[str], examples: Examples, samples: int) -> dict[str, Moments]:
    """The moments of the inputs of the linear layers `names`, over `samples` calibration texts.

    RecipeError when a layer is never reached: it cannot be judged by its inputs.
    """
    found: dict[str, Moments] = {}

    def watch(name: str):
        def hook(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
            if name not in found:
                width = x.shape[1]
                found[name] = Moments(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width))
            moments = found[name]
            moments.gram += (x.T @ x).double().cpu()
            moments.absolute += x.abs().sum(0).cpu()
            moments.tokens += x.shape[0]

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    with removed(hooks):
        calibration_forward(examples.module, examples.calibrate(samples))
    silent = [name for name in names if name not in found]
    if silent:
        raise RecipeError(f"no calibration example reached {', '.join(silent)}: add them to `ignore`")
    return found


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


@contextmanager
def removed(hooks: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Hooks that go away at the end, also when the model fails."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
