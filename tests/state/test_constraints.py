"""Constraints hold through training: masks stay, shared weights stay one Parameter, what is baked is exactly allowed."""

from __future__ import annotations

import copy

import pytest
import torch

from archiver.state.constraints import (
    Constraint,
    Mask,
    constrain,
    constrained,
    free,
    sharing,
    state_of,
    straight_through,
)


class Halves(Constraint):
    """Multiples of ½, straight-through."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return straight_through(weight, (weight * 2).round() / 2)


class Chain(torch.nn.Module):
    """Two layers; tied: they share one weight."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).tanh())


def step(model: torch.nn.Module, times: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.arange(8.0).reshape(2, 4) / 8
    for _ in range(times):
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()


def test_straight_through_is_exact_forward_and_identity_backward():
    weight = torch.tensor([0.1, -0.4], requires_grad=True)
    rounded = torch.tensor([0.3, -0.3])
    out = straight_through(weight, rounded)
    assert torch.equal(out, rounded)
    (out * torch.tensor([2.0, 3.0])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 3.0]


def test_a_mask_holds_while_the_rest_is_trained():
    model = Chain()
    mask = torch.tensor([[True, False, True, False]] * 4)
    constrain(model, "a", Mask(mask))
    before = model.a.weight.detach().clone()
    assert (before[~mask] == 0).all()
    with constrained(model):
        step(model)
    assert (model.a.weight[~mask] == 0).all()
    assert not torch.equal(model.a.weight, before)
    assert [name for name, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.weight", "b.bias"] or {
        name for name, _ in model.named_parameters()
    } == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_chains_apply_in_order_and_bake_exactly():
    model = Chain()
    mask = torch.eye(4, dtype=torch.bool)
    constrain(model, "a", Mask(mask))
    constrain(model, "a", Halves())
    with constrained(model):
        step(model)
    weight = model.a.weight.detach()
    assert (weight[~mask] == 0).all()
    assert torch.equal(weight, (weight * 2).round() / 2)


def test_without_projection_the_latent_weight_is_what_it_was():
    model = Chain()
    before = model.a.weight.detach().clone()
    constrain(model, "a", Halves(), project=False)
    assert torch.equal(model.a.weight, before)
    with constrained(model):
        assert torch.equal(model.a.parametrizations.weight.original, before)
    assert torch.equal(model.a.weight, (before * 2).round() / 2)


def test_shared_weights_stay_one_parameter_under_one_constraint():
    model = Chain(tied=True)
    assert sharing(model, "a") == ["a", "b"]
    mask = torch.eye(4, dtype=torch.bool)
    constrain(model, "b", Mask(mask))
    assert state_of(model).constraints["a"] is state_of(model).constraints["b"]
    with constrained(model):
        step(model)
    assert model.a.weight is model.b.weight
    assert (model.a.weight[~mask] == 0).all()


def test_a_copy_of_the_model_has_constraints_of_its_own():
    model = Chain()
    constrain(model, "a", Mask(torch.eye(4, dtype=torch.bool)))
    twin = copy.deepcopy(model)
    assert state_of(twin).constraints["a"][0] is not state_of(model).constraints["a"][0]
    free(twin, "a")
    assert "a" in state_of(model).constraints
    assert "a" not in state_of(twin).constraints


def test_weights_are_baked_also_when_training_fails():
    model = Chain()
    constrain(model, "a", Halves(), project=False)
    with pytest.raises(RuntimeError, match="stopped"), constrained(model):
        raise RuntimeError("stopped")
    weight = model.a.weight.detach()
    assert torch.equal(weight, (weight * 2).round() / 2)
    assert not hasattr(model.a, "parametrizations")
