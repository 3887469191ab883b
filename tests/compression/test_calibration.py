"""Hooks that come and go, the loop over layers, and the search by bisection."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.bisect import bisect
from archiver.compression.calibration import each_layer, input_moments, readers_of, watched_inputs
from archiver.errors import RecipeError


class Model(torch.nn.Module):
    """Two layers of one linear each, x → 2x → 3·2x for weights 2 and 3, and a head beside them that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"linear": torch.nn.Linear(1, 1, bias=False)}) for _ in "ab"
        )
        self.unused = torch.nn.Linear(1, 1)
        self.config = None
        with torch.no_grad():
            for layer, value in zip(self.layers, (2.0, 3.0), strict=True):
                layer["linear"].weight.fill_(value)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = input_ids
        for layer in self.layers:
            x = layer["linear"](x)
        return x


NAMES = ["layers.0.linear", "layers.1.linear"]
BATCHES = [{"input_ids": torch.tensor([[1.0], [2.0]])}]


@pytest.fixture
def grouped(monkeypatch):
    monkeypatch.setattr("archiver.compression.calibration.by_layer", lambda model, names: [[name] for name in names])


def test_later_layers_see_what_was_changed_below_them(grouped):
    model, said = Model(), []
    context = calibrated_on(BATCHES, model)
    context.say = said.append
    squares = []
    for group, moments in each_layer(model, NAMES, context, 1, method="halving"):
        squares.append(moments[group[0]].gram.item())
        with torch.no_grad():
            model.get_submodule(group[0]).weight.mul_(0.5)
    # 1² + 2² at the first; the second sees 1·x where it saw 2·x before.
    assert squares == [5.0, 5.0]
    assert [line.split(", ")[-1] for line in said] == ["1 of 2 modules", "2 of 2 modules"]
    assert said[0].strip().startswith("halving: layers.0.linear")


def test_all_layers_together_see_the_model_as_it_is():
    model = Model()
    ((group, moments),) = each_layer(model, NAMES, calibrated_on(BATCHES, model), 1, method="m", together=True)
    assert group == NAMES
    assert [moments[name].gram.item() for name in NAMES] == [5.0, 20.0]
    assert moments[NAMES[1]].norms.item() == pytest.approx(20.0**0.5)


def test_a_layer_that_no_text_reaches_is_named():
    model = Model()
    with pytest.raises(RecipeError, match="no calibration example reached unused; add them to `ignore`"):
        input_moments(model, [NAMES[0], "unused"], calibrated_on(BATCHES, model), 1)


def test_readers_of_a_shared_weight():
    model = Model()
    model.unused.weight = model.layers[0]["linear"].weight
    assert readers_of(model, "unused") == ["unused", NAMES[0]]
    assert readers_of(model, NAMES[0]) == [NAMES[0], "unused"]


def test_hooks_are_gone_when_the_model_fails():
    model = Model()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with watched_inputs(model, NAMES, lambda name, x: None):
            model(torch.ones(1, 2))
    assert not any(model.get_submodule(name)._forward_pre_hooks for name in NAMES)


def test_bisection_by_hand():
    asked = []

    def passes(value: int) -> bool:
        asked.append(value)
        return value <= 5

    middle = lambda low, high: (low + high) // 2 if high - low > 1 else None  # noqa: E731
    assert bisect(0, 16, middle, passes) == (5, 6)
    assert asked == [8, 4, 6, 5]
    asked.clear()
    assert bisect(0, 16, middle, passes, trials=2) == (4, 8)
    assert asked == [8, 4]
    assert bisect(0.0, 1.0, lambda good, bad: None, lambda value: True) == (0.0, 1.0)
