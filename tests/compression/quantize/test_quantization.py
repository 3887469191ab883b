"""Planning int8: scales and zero points by hand, calibrated ranges by hand, which modules, how many bytes."""

from __future__ import annotations

import pytest
import torch
from stage_context import calibrated_on

from archiver.compression.quantize.int8 import activation_ranges, affine_uint8, dynamic_int8, static_int8, weight_only
from archiver.compression.quantize.options import DynamicInt8, StaticInt8, WeightOnly
from archiver.errors import RecipeError
from archiver.state.plan import plan_of
from archiver.storage.sizes import stored_bytes


class Two(torch.nn.Module):
    """x [n, 2] → first: diag(1, −2) → ReLU → second: sum + 1. An embedding that nobody calls stands beside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2, bias=False)
        self.second = torch.nn.Linear(2, 1)
        self.table = torch.nn.Embedding(10, 4)
        self.norm = torch.nn.LayerNorm(2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, 1.0]]))
            self.second.bias.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


BATCHES = [{"x": torch.tensor([[1.0, -3.0], [2.0, 0.5]])}, {"x": torch.tensor([[4.0, 1.0]])}]


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 255.0, 1.0, 0),
        (-255.0, 0.0, 1.0, 255),
        (-1.0, 1.0, 2 / 255, 128),  # 127.5 rounds to the even 128
        (-0.5, 2.05, 0.01, 50),
        (0.0, 0.0, 1.0, 0),
    ],
)
def test_affine_by_hand(low, high, scale, zero):
    found = affine_uint8(low, high)
    assert found == (pytest.approx(scale), zero)


def test_affine_keeps_zero_exact_and_the_rest_within_half_a_step():
    for low, high in [(-3.7, 1.2), (-0.17, 9.0), (0.0, 4.0)]:
        scale, zero = affine_uint8(low, high)
        assert scale * (zero - zero) == 0.0
        for step in range(101):
            x = low + (high - low) * step / 100
            q = min(255, max(0, round(x / scale) + zero))
            assert abs(scale * (q - zero) - x) <= scale


def test_ranges_by_hand():
    # First input: [−3, 2] and [0, 4] (zero always inside), on average [−1.5, 3]. Behind the ReLU: [1, 6], [2, 0] and
    # [4, 0]: [0, 6] and [0, 4], on average [0, 5].
    found = activation_ranges(Two(), ["first", "second"], BATCHES)
    assert found == {"first": (-1.5, 3.0), "second": (0.0, 5.0)}


def test_ranges_need_a_module_that_is_reached():
    with pytest.raises(RecipeError, match="no calibration example reached second; add them to `ignore`"):
        activation_ranges(Two(), ["second"], [])


def test_hooks_go_away_also_when_the_model_fails():
    model = Two()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        activation_ranges(model, ["first"], [{"x": torch.zeros(1, 3)}])
    assert not model.first._forward_pre_hooks


def test_plans():
    model = Two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = dynamic_int8(model, DynamicInt8(), [])
    plan = plan_of(model)
    assert plan is not None
    assert (plan.kind, plan.linears, plan.embeddings) == ("dynamic-int8", ("first", "second"), ("table",))
    assert (plan.ranges, plan.calibration) == ({}, ())
    assert report.method == "quantize/dynamic-int8"
    assert report.options == {"targets": ("*",)}
    assert report.parameters == 4 + 3 + 40 + 4
    # The weights themselves wait for the exporter.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_targets_and_ignore():
    model = Two()
    weight_only(model, WeightOnly(ignore=("s*",)), [])
    plan = plan_of(model)
    assert plan is not None
    assert (plan.kind, plan.linears, plan.embeddings) == ("weight-only", ("first",), ("table",))
    weight_only(model, WeightOnly(targets=("table",)), [])
    plan = plan_of(model)
    assert plan is not None
    assert (plan.linears, plan.embeddings) == ((), ("table",))
    with pytest.raises(RecipeError, match="do not fit this model, whose modules are: first, second, table") as caught:
        dynamic_int8(model, DynamicInt8(targets=("third",)), [])
    assert caught.value.problems == ["targets: 'third' matches no module"]


def test_static_plan_keeps_ranges_and_examples():
    model = Two()
    report = static_int8(model, StaticInt8(targets=("first",), samples=2), calibrated_on(BATCHES, model))
    plan = plan_of(model)
    assert plan is not None
    assert plan.ranges == {"first": (-1.5, 3.0)}
    assert plan.calibration is BATCHES
    assert report.options == {"targets": ("first",), "samples": 2}


def test_stored_bytes_by_hand():
    model = Two()
    assert plan_of(model) is None
    assert stored_bytes(model) == 4 * (4 + 2 + 1 + 40 + 4)
    dynamic_int8(model, DynamicInt8(targets=("first", "table")), [])
    # first: 4 bytes and 2 scales; table: 40 bytes and 10 scales; second with its bias and the norm stay fp32.
    assert stored_bytes(model) == (4 + 2 * 4) + (40 + 10 * 4) + 4 * (2 + 1) + 4 * 4


def test_planned_integers_of_zeros_are_stored_as_such():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        model[0].weight[:, 16:] = 0
    dynamic_int8(model, DynamicInt8(), [])
    # A bit for each of 4096 weights, a byte for each of the 1024 left, a scale for each row.
    assert 512 + 0.95 * 1024 <= stored_bytes(model) - 64 * 4 <= 512 + 1024
