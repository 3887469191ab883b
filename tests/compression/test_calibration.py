"""Hooks that come and go, moments of inputs, and the search by bisection."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.bisect import bisect, remembered
from archiver.compression.calibration import input_moments, moments_of, readers_of, watched_inputs
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


def test_moments_by_hand():
    model = Model()
    moments = input_moments(model, NAMES, calibrated_on(BATCHES, model), 1)
    assert [moments[name].gram.item() for name in NAMES] == [5.0, 20.0]  # 1² + 2², then of 2x
    assert [moments[name].absolute.item() for name in NAMES] == [3.0, 6.0]
    assert moments[NAMES[1]].norms.item() == pytest.approx(20.0**0.5)
    assert moments[NAMES[0]].tokens == 2


def test_sums_of_float32_products_are_as_exact_as_float64():
    """Large means and many tokens, where float32 sums would lose the small ones."""
    x = 100 + torch.randn(40_000, 24, generator=torch.Generator().manual_seed(0))
    exact = x.double().T @ x.double()
    found = moments_of(x.reshape(4, 10_000, 24))
    assert found.tokens == 40_000
    assert float(((found.gram - exact).abs() / exact).max()) < 1e-6
    assert float(((x.T @ x).double() - exact).abs().max()) > float((found.gram - exact).abs().max())


class Branching(torch.nn.Module):
    """Two layers that take one input, and one that takes another."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.query(input_ids) * self.key(input_ids))


def test_modules_with_the_same_input_share_their_moments():
    model = Branching()
    batches = [{"input_ids": torch.randn(3, 2)}, {"input_ids": torch.randn(5, 2)}]
    moments = input_moments(model, ["query", "key", "out"], calibrated_on(batches, model), 2)
    assert moments["query"] is moments["key"]
    assert moments["out"] is not moments["key"]
    x = torch.cat([batch["input_ids"] for batch in batches]).double()
    assert torch.allclose(moments["query"].gram, x.T @ x) and moments["query"].tokens == 8


def test_a_module_that_runs_twice_on_one_input_counts_it_twice():
    class Twice(Branching):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.query(input_ids) + self.query(input_ids)

    model = Twice()
    moments = input_moments(model, ["query"], calibrated_on([{"input_ids": torch.ones(1, 2)}], model), 1)
    assert moments["query"].gram.tolist() == [[2.0, 2.0], [2.0, 2.0]]


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


def test_an_interrupted_search_does_not_try_again_what_it_has_tried(tmp_path):
    asked = []

    def passes(value: float) -> bool:
        asked.append(value)
        if value == 0.375:
            raise KeyboardInterrupt
        return value <= 0.3

    middle = lambda low, high: (low + high) / 2 if high - low > 0.1 else None  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        bisect(0.0, 1.0, middle, remembered(passes, tmp_path / "0-x"), 7)
    assert asked == [0.5, 0.25, 0.375]
    asked.clear()
    fails = lambda value: bool(asked.append(value))  # noqa: E731
    assert bisect(0.0, 1.0, middle, remembered(fails, tmp_path / "0-x"), 7) == (0.25, 0.3125)
    assert asked == [0.375, 0.3125]
    (tmp_path / "0-x-trials.json").write_text("{")
    asked.clear()
    bisect(0.0, 1.0, middle, remembered(fails, tmp_path / "0-x"), 1)
    assert asked == [0.5]
