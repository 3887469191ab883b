"""Integers beside the torch module they are compared with: large weights in parts, a module that computes as planned."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from archiver.export.graph.integer_constants import as_rows, planned_modules, with_int8_rows
from archiver.state.plan import QuantizationPlan
from archiver.storage.int8_rows import quantize_rows
from archiver.storage.layouts import content_key


class Pair(torch.nn.Module):
    """Two linear layers, the second with a bias; a third that holds the first's values in a Parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (torch.nn.Linear(4, 4, bias=index == 1) for index in range(3))
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[127.0, 0.4, 0.6, -1.0]] * 4))  # rows of the scale 1
            self.third.weight.copy_(self.first.weight)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.first(x), self.second(x), self.third(x)


def test_a_planned_module_computes_with_what_its_integers_stand_for() -> None:
    model, x = Pair(), torch.eye(4)
    plan = QuantizationPlan("weight-only", ("first",), ())
    plain = model(x)
    with torch.no_grad(), with_int8_rows(planned_modules(model, plan)):
        first, second, third = model(x)
    rounded = torch.tensor([127.0, 0.0, 1.0, -1.0])
    assert torch.equal(first.T, rounded.expand(4, 4)) and torch.equal(third, first)
    assert torch.equal(second, plain[1])
    assert all(torch.equal(now, before) for now, before in zip(model(x), plain, strict=True))
    with with_int8_rows(planned_modules(model, None)):
        assert torch.equal(model(x)[0], plain[0])


def test_many_rows_become_the_same_integers_as_few() -> None:
    weight = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    found = as_rows(weight)
    q, scale = quantize_rows(torch.from_numpy(weight))
    assert np.array_equal(found.levels[:, 0], q.numpy()) and np.array_equal(found.scale[:, 0], scale.numpy())
    assert np.array_equal(found.values(), (q.float() * scale).numpy())


def test_the_key_of_a_weight_is_its_shape_and_values() -> None:
    weight = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    assert content_key(weight) == hashlib.sha256(b"(5000, 3)" + weight.tobytes()).digest()
    weight[0, 0] = -0.0
    other = weight.copy()
    other[0, 0] = 0.0
    assert content_key(weight) == content_key(other) != content_key(np.ascontiguousarray(weight.reshape(3, 5000)))
    assert content_key(np.zeros((0, 4), np.float32)) != content_key(np.zeros(0, np.float32))
