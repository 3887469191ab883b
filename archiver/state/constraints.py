"""What later stages must keep of earlier ones: masks, grids and codebooks as constraints on a weight.

A stage that prunes or quantizes projects the weight and leaves a Constraint behind (`constrain`). While a later stage
trains, `constrained(model)` computes each such weight through its constraints from a free latent weight, with
straight-through gradients where rounding has none, and bakes the result in at the end: a mask stays a mask, a codebook
a codebook. Factor pairs and cut shapes need no constraint, they are the module's own shape; layers that share weights
share the Parameter itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils import parametrize

Tensor = torch.Tensor


class Constraint(torch.nn.Module):
    """A set of allowed weights: forward(latent) is the allowed weight, of the same shape and differentiable.

    Idempotent: forward(forward(w)) == forward(w), bit for bit. What is learned (a scale, centroids) is a Parameter of the
    constraint, what is fixed a buffer.
    """

    def grouping(self) -> tuple[Tensor, Tensor, int] | None:
        """The grid per group that the allowed weights are on, for the storage codec `groups`.

        Other structure (zeros, few distinct values, signs) is found in the weight itself.

        Returns: (scale [rows, groups], zero_point [rows, groups], bits); None where there is no such grid.
        """
        return None

    def product(self) -> tuple[Tensor, Tensor] | None:
        """The codes that the allowed weights stand for, for the storage codec `product`.

        Returns: (codes [rows, splits], pieces [splits, clusters, width]); None where there are none.
        """
        return None


class Mask(Constraint):
    """w·m with a fixed mask m of zeros and ones.

    Args:
        mask: bool, the weight's shape; True where a weight stays.
        n_m: (n, m) when n of every m neighbours of a row stay.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, n_m: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.n_m = n_m

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(~self.mask, 0.0)  # a product would leave −0 where the latent weight is negative


def straight_through(weight: Tensor, rounded: Tensor) -> Tensor:
    """`rounded` in the forward pass, the gradient of `weight` in the backward one.

    Bit-exact, which the sum weight + (rounded − weight) is not.

    Args:
        weight, rounded: of one shape.
    Returns: a copy of `rounded`.
    Source: Bengio, Léonard & Courville 2013, arXiv:1308.3432.
    """
    result: Tensor = _StraightThrough.apply(weight, rounded)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@dataclass
class CompressionState:
    """What the stages leave on the model beside its weights.

    Args:
        constraints: module name → constraints on its `weight`, applied in this order; modules that share a Parameter have
            the same list under each of their names.
        layer_origin: for each layer now, the index of the original's layer it came from; None while no layer is gone.
        old_ids: [kept], for each token id now, the original's id; None while no token is gone.
        tokenizer_json: the tokenizer that goes with the model; None while it is the model directory's.
        factors: module name → (A [rows, rank], B [columns, rank]) whose product A·Bᵀ is its dense weight, as long as no
            later constraint follows the one that computes it from them; for storage.
    """

    constraints: dict[str, list[Constraint]] = field(default_factory=dict)
    layer_origin: list[int] | None = None
    old_ids: Tensor | None = None
    tokenizer_json: bytes | None = None
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def state_of(model: torch.nn.Module) -> CompressionState:
    """The model's compression state, made empty when there is none yet. `copy.deepcopy(model)` copies it too."""
    if not hasattr(model, "compression_state"):
        setattr(model, "compression_state", CompressionState())  # noqa: B010 - no tensor, so no Module attribute
    return model.compression_state  # type: ignore[return-value]


def constrain(model: torch.nn.Module, name: str, *constraints: Constraint, project: bool = True) -> None:
    """Add constraints to the weight of module `name` (and of those that share it), behind those it has.

    Args:
        name: of a module with a `weight`.
        constraints: in the order in which they are applied.
        project: put the weight onto them now; False where it is there already, or stays latent for the training that
            follows.
    """
    state = state_of(model)
    module = model.get_submodule(name)
    chain = [*state.constraints.get(name, []), *constraints]
    for twin in sharing(model, name):
        state.constraints[twin] = chain
    if project:
        with torch.no_grad():
            weight = latent = module.get_parameter("weight")
            for constraint in chain:
                weight = constraint(weight)
            latent.copy_(weight)


def sharing(model: torch.nn.Module, name: str) -> list[str]:
    """Names of all modules whose `weight` is the same Parameter as that of module `name`, itself among them."""
    weight = model.get_submodule(name).get_parameter("weight")
    return [
        other
        for other, module in model.named_modules(remove_duplicate=False)
        if getattr(module, "_parameters", {}).get("weight") is weight
    ]


@contextmanager
def constrained(model: torch.nn.Module) -> Iterator[None]:
    """Inside: every constrained weight is computed from a latent one. At the end it is baked in, exactly allowed.

    Optimisers are to be made inside, from `model.parameters()`: latents and the constraints' own parameters are there.
    """
    chains = {name: chain for name, chain in state_of(model).constraints.items() if chain}
    modules = [model.get_submodule(name) for name in chains]
    for module, chain in zip(modules, chains.values(), strict=True):
        device = module.get_parameter("weight").device
        for constraint in chain:
            constraint.to(device)  # masks, scales and centroids go where the weight is
            # unsafe: the constraint may have another dtype's internals, its output is always the weight's shape
            parametrize.register_parametrization(module, "weight", constraint, unsafe=True)
    try:
        yield
    finally:
        for module, chain in zip(modules, chains.values(), strict=True):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            for constraint in chain:
                constraint.to("cpu")  # where later stages and the storage codecs look for them


def free(model: torch.nn.Module, name: str) -> None:
    """Forget the constraints of a module that a stage replaces or whose shape it changes."""
    state = state_of(model)
    state.constraints.pop(name, None)
    state.factors.pop(name, None)
