"""A stand-in for a model that can be run at almost no cost in memory and time.

It has the modules of the model as it is now: cut, shortened, on the meta device or not. Its weights are random views into
small pools of numbers, and no linear layer multiplies: each gives random outputs.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from archiver.architecture.layers import is_linear
from handlers.architecture.skeleton import skeleton

Tensor = torch.Tensor
Module = torch.nn.Module

ROWS, TOKENS = 5, 11  # few, so that any model has positions for them; no sizes that a model may have itself
SCALE = 0.7  # of random outputs: products of queries and keys stay small, so that softmax never saturates
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def stand_in(model: Module) -> Module:
    """A copy of the model's modules with random numbers in the place of its weights, in float32 on the CPU.

    Buffers are the model's own; where they are on the meta device, those that its config gives.
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = torch.nn.Parameter(_random(parameter.shape, generator), requires_grad=False)
    if (state := getattr(model, "compression_state", None)) is not None:
        memo[id(state)] = None
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in _HOOKS:
            getattr(module, name).clear()
        if holds_experts(module):
            vars(module)["forward"] = _in_place_of_experts
    if any(_on_meta(module) for module in made.modules()):
        _fill(made, skeleton(type(model), getattr(model, "config", None)))
    return made.to("cpu", torch.float32).eval()


def holds_experts(module: Module) -> bool:
    """Whether a module keeps the weights of several feed-forward blocks in one Parameter of three dimensions."""
    own = module.parameters(recurse=False)
    return any(item.dim() > 2 for item in own) and not isinstance(module, torch.nn.modules.conv._ConvNd)


def _in_place_of_experts(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Experts multiply as linear layers do, too much to do it here; what comes out depends on what goes in."""
    return 0.5 * x


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Random numbers, none zero: near 1 for vectors, of the usual size of weights else; memory for the sum of the sides."""
    if len(shape) < 2:
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    strides = [3**place for place in range(len(shape) - 1, -1, -1)]
    size = 1 + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    pool: Tensor = torch.randn(max(1, size), generator=generator) / max(1, shape[-1]) ** 0.5
    return pool.as_strided(tuple(shape), strides)


def _on_meta(module: Module) -> list[tuple[dict[str, Any], str]]:
    return [
        (place, name)
        for place in (module._buffers, vars(module))
        for name, value in place.items()
        if isinstance(value, Tensor) and value.device.type == "meta"
    ]


def _fill(made: Module, source: Module) -> None:
    """Real buffers in the place of those on the meta device."""
    known = dict(source.named_modules())
    for name, module in made.named_modules():
        for place, key in _on_meta(module):
            other = known[name]
            place[key] = other._buffers[key] if place is module._buffers else vars(other)[key]


@dataclass
class Capture:
    """One layer's arguments in a run of the whole model. times: how often it was called; order: its first place."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    times: int = 0
    order: int = -1


def run_base(made: Module, use_cache: bool) -> Any:
    """Run the base model of a stand-in on random tokens; its output."""
    base: Any = getattr(made, "base_model", made)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, base.get_input_embeddings().weight.shape[0], (ROWS, TOKENS), generator=generator)
    known = inspect.signature(base.forward).parameters
    more = {"use_cache": use_cache} if "use_cache" in known else {}
    plain = [module for module in made.modules() if gives_products(module)]
    for module in plain:
        vars(module)["forward"] = partial(_noise, int(module.out_features), generator)  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            name = getattr(base, "main_input_name", "input_ids")
            return base(**{name: ids}, attention_mask=torch.ones_like(ids), **more)
    finally:
        for module in plain:
            del vars(module)["forward"]


def _noise(width: int, generator: torch.Generator, x: Tensor) -> Tensor:
    return SCALE * torch.randn(*x.shape[:-1], width, generator=generator)


def capture(made: Module, layers: Any) -> list[Capture]:
    """What each layer is called with in a run of the whole model."""
    found = [Capture() for _ in layers]

    def watch(index: int, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        item = found[index]
        if not item.times:
            item.args, item.kwargs, item.order = args, kwargs, sum(other.order >= 0 for other in found)
        item.times += 1

    hooks = [
        layer.register_forward_pre_hook(partial(watch, index), with_kwargs=True) for index, layer in enumerate(layers)
    ]
    try:
        run_base(made, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gives_products(module: Module) -> bool:
    """Whether a module of the stand-in is a linear layer, factored or not, that does nothing but multiply and add."""
    if not isinstance(module, torch.nn.Linear) or type(module).forward is torch.nn.Linear.forward:
        return is_linear(module)
    x = torch.randn(1, 1, module.in_features, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            found = module(x)
    except Exception:  # a router among experts, say, may take other arguments
        return False
    expected = torch.nn.functional.linear(x, module.weight, module.bias)
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)
