"""One layer of a stand-in model, run to see what depends on what.

A gradient of what one linear layer takes ends at the outputs of those that feed it directly, since each linear layer gives
random outputs that are leaves of autograd's graph. Two runs with the same outputs differ only by what lies between the
linear layers: so a changed layer is compared with the original without either's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from archiver.architecture.stand_in import ROWS, SCALE, Capture, gives_products

Tensor = torch.Tensor
Module = torch.nn.Module
Key = tuple[str, int]  # a module's name below the layer, and the how manieth of its calls it is


@dataclass
class Run:
    """One run of a layer: what its linear layers and norms took and gave, call by call."""

    entry: list[Tensor] = field(default_factory=list)
    inputs: dict[Key, Tensor] = field(default_factory=dict)
    leaves: dict[Key, Tensor] = field(default_factory=dict)
    norms: dict[Key, Tensor] = field(default_factory=dict)  # outputs, leaves too
    norm_inputs: dict[Key, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass
class Reach:
    """What something depends on: rows of linear layers' outputs, rows of other Parameters, the layer's own input, norms."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    norms: set[Key] = field(default_factory=set)
    entry: bool = False


class LayerProbe:
    """One layer of a stand-in, with the arguments that it is called with."""

    def __init__(self, layer: Module, call: Capture) -> None:
        self.layer = layer
        self.args, self.kwargs = call.args, call.kwargs
        self.modules = dict(layer.named_modules())
        self.linears: dict[str, Any] = {}
        for name, module in self.modules.items():
            if gives_products(module) and not any(name.startswith(f"{other}.") for other in self.linears):
                self.linears[name] = module
        self.norms = {name: module for name, module in self.modules.items() if is_norm(module)}
        owned = [(name, module) for name, module in self.modules.items() if name not in self.norms]
        self.parameters = {
            f"{name}.{key}".lstrip("."): value
            for name, module in owned
            if not any(name == other or name.startswith(f"{other}.") for other in self.linears)
            and not isinstance(module, torch.nn.Embedding)
            for key, value in module.named_parameters(recurse=False)
            if value.dim() <= 2
        }
        self.values: dict[Key, Tensor] = {}
        self._generator = torch.Generator().manual_seed(2)
        self._run = Run()
        self._changed: Mapping[Key, Tensor] = {}
        self._kept: Mapping[str, Tensor] = {}
        hidden = next(
            (
                item
                for item in (self.kwargs.get("hidden_states"), *self.args, *self.kwargs.values())
                if _is_hidden(item)
            ),
            None,
        )
        if hidden is None:
            raise ValueError("no hidden states [rows, tokens, width] among its arguments")
        self.shape = hidden.shape
        self.tokens = hidden.shape[0] * hidden.shape[1]

    def run(
        self,
        changed: Mapping[Key, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        cut_norms: bool = False,
    ) -> Run:
        """Run the layer.

        Args:
            changed: outputs of linear layers that are to be others than in the first run.
            kept: linear layer → rows of its output that are left.
            cut_norms: let norms' outputs be leaves too.
        """
        self._run, self._changed, self._kept = Run(), changed or {}, kept or {}
        args = tuple(self._entry(item) for item in self.args)
        kwargs = {name: self._entry(item) for name, item in self.kwargs.items()}
        for name, linear in self.linears.items():
            vars(linear)["forward"] = partial(self._linear, name, linear)
        hooks = []
        if cut_norms:
            hooks = [
                norm.register_forward_hook(partial(self._norm, name)) for name, norm in self.norms.items()
            ]  # fmt: skip
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                output = self.layer(*args, **kwargs)
        finally:
            for linear in self.linears.values():
                vars(linear).pop("forward", None)
            for hook in hooks:
                hook.remove()
        self._run.outputs = [item for item in _tensors(output) if item.dim() == 3 and item.shape[:2] == self.shape[:2]]
        return self._run

    def _entry(self, item: Any) -> Any:
        if not isinstance(item, Tensor) or item.shape != self.shape or not item.is_floating_point():
            return item
        leaf = item.detach().clone().requires_grad_()
        self._run.entry.append(leaf)
        return leaf

    def _linear(self, name: str, module: Any, x: Tensor) -> Tensor:
        key = (name, sum(other == name for other, _ in self._run.inputs))
        self._run.inputs[key] = x
        if key not in self.values:
            self.values[key] = SCALE * torch.randn(*x.shape[:-1], module.out_features, generator=self._generator)
        value = self._changed.get(key, self.values[key])
        if name in self._kept:
            value = value.index_select(-1, self._kept[name])
        if value.shape[:-1] != x.shape[:-1]:
            raise ValueError(f"{name} takes {list(x.shape)}")
        leaf = value.detach().clone().requires_grad_()
        self._run.leaves[key] = leaf
        return leaf.clone()  # some layers go on in place

    def _norm(self, name: str, module: Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        key = (name, sum(other == name for other, _ in self._run.norms))
        self._run.norm_inputs[key] = args[0]
        leaf = output.detach().clone().requires_grad_()
        self._run.norms[key] = leaf
        return leaf.clone()

    def calls(self, run: Run, name: str) -> int:
        """How often a linear layer was called."""
        return sum(other == name for other, _ in run.inputs)

    def behind(self, run: Run, targets: list[Tensor], mask: Tensor | None = None) -> Reach:
        """What `targets` depend on; of each only the features that `mask` [features] marks."""
        grads = self._gradients(run, [(target, mask) for target in targets])
        found = Reach()
        if grads is None:
            return found
        leaves, norms, entry, parameters = grads
        for (name, _), gradient in zip(run.leaves, leaves, strict=True):
            if gradient is not None and bool((gradient != 0).any()):
                rows = (gradient != 0).reshape(-1, gradient.shape[-1]).any(0)
                found.rows[name] = found.rows[name] | rows if name in found.rows else rows
        for name, gradient in zip(self.parameters, parameters, strict=True):
            if gradient is not None and gradient.dim() and bool((gradient != 0).any()):
                found.parameters[name] = (gradient != 0).reshape(len(gradient), -1).any(1)
        found.norms = {
            key for key, item in zip(run.norms, norms, strict=True) if item is not None and bool((item != 0).any())
        }  # fmt: skip
        found.entry = any(item is not None and bool((item != 0).any()) for item in entry)
        return found

    def mixes(self, run: Run, x: Tensor) -> bool:
        """Whether x at the last token depends on linear layers' outputs at other tokens."""
        flat = x.reshape(-1, x.shape[-1])
        grads = self._gradients(run, [(flat[-1:], None)])
        for gradient in grads[0] if grads else ():
            if gradient is not None:
                rows = (gradient != 0).reshape(-1, gradient.shape[-1]).any(1)
                if len(rows) != self.tokens or bool(rows[:-1].any()):
                    return True
        return False

    def _gradients(self, run: Run, targets: list[tuple[Tensor, Tensor | None]]) -> Any:
        total: Any = 0
        for target, mask in targets:
            if target.requires_grad:
                weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(3)) + 0.5
                total = total + (target * (weight if mask is None else weight * mask)).sum()
        if not isinstance(total, Tensor):
            return None
        groups: list[list[Tensor]] = [
            list(run.leaves.values()), list(run.norms.values()), run.entry, list(self.parameters.values())
        ]  # fmt: skip
        flat = [item for group in groups for item in group]
        grads = iter(torch.autograd.grad(total, flat, retain_graph=True, allow_unused=True))
        return [[next(grads) for _ in group] for group in groups]

    @contextmanager
    def parameter(self, name: str, rows: Tensor) -> Iterator[None]:
        """Inside, a Parameter that is no linear layer's has only these rows."""
        owner, _, key = name.rpartition(".")
        module = self.modules[owner]
        before = module._parameters[key]
        assert before is not None
        module._parameters[key] = torch.nn.Parameter(before.detach()[rows], requires_grad=False)
        try:
            yield
        finally:
            module._parameters[key] = before


def is_norm(module: Module) -> bool:
    """A module of one vector `weight`, and at most a `bias` like it, that multiplies its input's features."""
    own = dict(module.named_parameters(recurse=False))
    weight = own.get("weight")
    return (
        weight is not None
        and weight.dim() == 1
        and own.keys() <= {"weight", "bias"}
        and not any(True for _ in module.children())
        and not isinstance(module, torch.nn.PReLU)
    )


def _is_hidden(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point() and item.dim() == 3 and len(item) == ROWS


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [item for value in output.values() for item in _tensors(value)]
    return [item for value in output for item in _tensors(value)] if isinstance(output, list | tuple) else []
