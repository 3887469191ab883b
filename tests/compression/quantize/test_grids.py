"""Grids of allowed weights by hand, and what the constraints on them keep."""

from __future__ import annotations

import copy

import pytest
import torch

from archiver.compression.quantize.grids import (
    binary_scale,
    group_scales,
    round_to_nearest,
    signs,
    ternary_grid,
    to_fixed_point,
    to_grid,
    to_ternary,
)
from archiver.compression.quantize.options import (
    Binary,
    FixedPoint,
    Ternary,
    WeightOnly,
    parse_binary_scale,
    parse_format,
    parse_group_size,
    parse_widths,
)
from archiver.compression.quantize.quantizers import FixedPointGrid, Grid, Signs, TernaryGrid
from archiver.compression.quantize.targets import check_fixed_point, check_targets, check_weight_only
from archiver.compression.quantize.weights import binary, fixed_point, ternary, weight_only
from archiver.errors import RecipeError
from archiver.state.constraints import Mask, constrain, constrained, state_of

Tensor = torch.Tensor
NO_DATA: list = []


class Three(torch.nn.Module):
    """Two linear layers that share their weight, one of another size, a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(8, 6)
        self.table = torch.nn.Embedding(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


# Grids of integers


def test_symmetric_grid_by_hand():
    # 2·3.75/15 = 0.5 a step, 16 steps from −4 to 3.5: 3.75 saturates, 0.25 and 0.75 are ties that go to even steps.
    weight = torch.tensor([[3.75, -3.75, 0.25, 0.75, -0.3, 0.0]])
    scale, zero = group_scales(weight, 4, symmetric=True)
    assert (scale.item(), zero.item()) == (0.5, 8.0)
    assert to_grid(weight, scale, zero, 4).tolist() == [[3.5, -4.0, 0.0, 1.0, -0.5, 0.0]]


def test_affine_grid_by_hand():
    # [−0.5, 1.0] in 3 steps of 0.5: zero is step 1.
    weight = torch.tensor([[-0.5, 0.1, 0.3, 1.0]])
    scale, zero = group_scales(weight, 2, symmetric=False)
    assert (scale.item(), zero.item()) == (0.5, 1.0)
    assert to_grid(weight, scale, zero, 2).tolist() == [[-0.5, 0.0, 0.5, 1.0]]


def test_affine_range_takes_zero_in():
    for low, high in ((1.0, 4.0), (-4.0, -1.0)):
        scale, zero = group_scales(torch.tensor([[low, high]]), 4, symmetric=False)
        assert to_grid(torch.zeros(1, 1), scale, zero, 4).item() == 0.0
        assert abs(to_grid(torch.tensor([[low]]), scale, zero, 4).item() - low) <= scale.item() / 2


def test_groups_have_scales_of_their_own():
    weight = torch.tensor([[7.5, 0.0, 0.75, 0.1], [0.0, 0.0, 15.0, -1.0]])
    values, scale, zero = round_to_nearest(weight, 4, 2, symmetric=True)
    assert scale[0].tolist() == [1.0, pytest.approx(0.1, rel=1e-3)]
    assert scale[1].tolist() == [1.0, 2.0]  # an empty group has the scale 1
    assert zero.tolist() == [[8.0, 8.0], [8.0, 8.0]]
    assert values[1].tolist() == [0.0, 0.0, 14.0, 0.0]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_grid_values_and_storage(bits, symmetric):
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(bits))
    weight[:, ::3] = 0
    values, scale, zero = round_to_nearest(weight, bits, 32, symmetric)
    assert torch.equal(scale, scale.half().float())  # two bytes hold it
    grid = Grid(scale, zero, bits, symmetric)
    assert torch.equal(grid(weight), values)
    assert torch.equal(grid(values), values)
    assert not values[:, ::3].any()
    found = grid.grouping()
    q = values.view(6, 4, 32) / found[0][..., None] + found[1][..., None]
    assert ((q.round() >= 0) & (q.round() < 2**bits)).all()
    assert torch.equal((q.round() - found[1][..., None]) * found[0][..., None], values.view(6, 4, 32))
    assert (values - weight).abs().max() <= scale.max() * (1.01 if symmetric else 0.51)


# Fixed point


def test_fixed_point_by_hand():
    how = parse_format("q2.5")
    assert (how.bits, how.integer, how.fraction) == (8, 2, 5)
    given = [0.0, 1 / 64, 3 / 64, -1 / 64, -3 / 64, 0.1, -0.1, 3.97, 4.0, 100.0, -4.0, -4.01, -100.0]
    # 1/64 is half a step and goes to 0, 3/64 to 2 steps; 0.1 is 3.2 steps.
    exact = [0.0, 0.0, 1 / 16, 0.0, -1 / 16, 3 / 32, -3 / 32, 3.96875, 3.96875, 3.96875, -4.0, -4.0, -4.0]
    assert to_fixed_point(torch.tensor(given), how).tolist() == exact


@pytest.mark.parametrize("name", ["q0.7", "q3.4", "q1.0", "q0.1", "q7.8", "Q2.5"])
def test_every_number_of_a_format_stays(name):
    how = parse_format(name)
    every = torch.arange(-(2 ** (how.bits - 1)), 2 ** (how.bits - 1)) * 2.0**-how.fraction
    assert len(every) == 2**how.bits
    assert torch.equal(to_fixed_point(every, how), every)
    assert to_fixed_point(torch.tensor(1e9), how) == every[-1]
    assert str(how) == name.lower()


@pytest.mark.parametrize(
    "text", ["2.5", "q2", "q2.5.1", "q-1.5", "q8.8", "q0.0", "q2,5", "", "q 2.5", 2.5, None, "q100.1"]
)
def test_what_is_no_format(text):
    with pytest.raises(ValueError, match="is no fixed-point format|2 to 16 are allowed"):
        parse_format(text)


# Signs and three values


def test_binary_by_hand():
    weight = torch.tensor([[0.5, -1.5, 0.0, 2.0], [-1.0, -1.0, 1.0, -1.0]])
    assert binary_scale(weight, "channel").tolist() == [[1.0], [1.0]]
    assert binary_scale(weight, "tensor").tolist() == [[1.0]]
    assert signs(weight).tolist() == [[1, -1, 1, 1], [-1, -1, 1, -1]]  # sgn(0) = +1
    assert Signs(weight, 0.25, "tensor")(weight)[0].tolist() == [0.25, -0.25, 0.25, 0.25]


def test_ternary_by_hand():
    # mean|w| = 1, Δ = 0.7; above it 1 and 2.4, whose mean is 1.7.
    weight = torch.tensor([[0.6, -1.0, 0.0, 2.4]])
    threshold, scale = ternary_grid(weight, "channel")
    assert threshold.item() == pytest.approx(0.7)
    assert scale.item() == pytest.approx(1.7)
    assert to_ternary(weight, threshold, scale).tolist() == [[0, -scale.item(), 0, scale.item()]]


def test_learned_scale_gets_the_mean_gradient_along_the_signs():
    weight = torch.nn.Parameter(torch.tensor([[0.5, -1.5], [3.0, 1.0]]))
    learned = Signs(weight, "learned", "channel", clip=1.0)
    assert [name for name, _ in learned.named_parameters()] == ["scale"]
    gradient = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    learned(weight).backward(gradient)
    assert learned.scale.grad.tolist() == [[(1.0 - 2.0) / 2], [(4.0 + 8.0) / 2]]
    # b = 1 and 2: beyond it nothing comes through.
    assert weight.grad.tolist() == [[1.0, 0.0], [0.0, 8.0]]


QUANTIZERS = {
    "grid": lambda w: Grid.of(w, 4, 4, True),
    "affine": lambda w: Grid.of(w, 2, None, False),
    "fixed": lambda w: FixedPointGrid(parse_format("q1.3")),
    "signs": lambda w: Signs(w, "mean", "channel"),
    "sign": lambda w: Signs(w, "mean", "tensor"),
    "learned": lambda w: Signs(w, "learned", "channel"),
    "ternary": lambda w: TernaryGrid(w, "channel"),
}


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_training_moves_the_grid_and_baking_keeps_it(kind):
    model = Three()
    start = model.first.weight.detach().clone()
    quantizer = QUANTIZERS[kind](start)
    constrain(model, "first", quantizer, project=False)
    assert torch.equal(model.first.weight, start)
    with constrained(model):
        latent = model.first.parametrizations.weight.original
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            assert latent.grad is not None
            optimizer.step()
        with torch.no_grad():
            free = latent.clone()
    quantizer.freeze()
    baked = model.first.weight.detach().clone()
    assert not torch.equal(free, start)
    assert not torch.equal(free, baked)
    assert model.second.weight is model.first.weight
    # What a later stage meets: the same weights, bit for bit, as often as it asks.
    with torch.no_grad():
        assert torch.equal(quantizer(baked), baked)
        again = copy.deepcopy(model)
        with constrained(again):
            assert torch.equal(again.first.weight, baked)
        assert torch.equal(again.first.weight, baked)


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if "sign" not in kind and kind != "learned"])
def test_pruned_weights_stay_pruned(kind):
    model = Three()
    mask = torch.rand(8, 8) > 0.5
    constrain(model, "first", Mask(mask))
    constrain(model, "first", QUANTIZERS[kind](model.first.weight))
    assert not model.first.weight[~mask].any()


# The stages


def test_stages_leave_constraints_and_say_what_they_did():
    model = Three()
    report = weight_only(model, WeightOnly(bits=4, group_size=4, ignore=("last",)), NO_DATA)
    assert report.notes[0].startswith("1 modules, 64 weights: 4 bits a weight and a scale for each group; SQNR ")
    assert "makes nothing faster" in report.notes[-1]
    assert set(state_of(model).constraints) == {"first", "second"}
    assert state_of(model).constraints["first"][0].grouping()[2] == 4
    report = fixed_point(model, FixedPoint(format="q1.4", targets=("table", "last")), NO_DATA)
    assert torch.equal(to_fixed_point(model.table.weight, parse_format("q1.4")), model.table.weight)
    assert "q1.4 (6 bits, −2 … 1.9375 in steps of 0.0625)" in report.notes[0]
    with pytest.raises(RecipeError, match="an earlier stage has quantized last, table already: add them to `ignore`"):
        ternary(model, Ternary(targets=("table", "last")), NO_DATA)


def test_ternary_and_binary_stages():
    model = Three()
    ternary(model, Ternary(targets=("last",), granularity="tensor"), NO_DATA)
    assert len(model.last.weight.unique()) == 3
    report = binary(model, Binary(scale=0.5, targets=("first",)), NO_DATA)
    assert report.method == "quantize/binary"
    assert model.second.weight.unique().tolist() == [-0.5, 0.5]


def test_defaults_of_targets():
    model = Three()
    fixed_point(model, FixedPoint(), NO_DATA)
    assert set(state_of(model).constraints) == {"first", "second", "last", "table"}
    model = Three()
    binary(model, Binary(), NO_DATA)
    assert set(state_of(model).constraints) == {"first", "second", "last"}


def test_binary_after_pruning_is_refused():
    model = Three()
    constrain(model, "last", Mask(torch.rand(6, 8) > 0.5))
    with pytest.raises(RecipeError, match="no zero for the pruned weights of last: use ternary"):
        binary(model, Binary(), NO_DATA)


def test_plain_eight_bits_are_left_to_the_runtime():
    model = Three()
    before = model.last.weight.detach().clone()
    weight_only(model, WeightOnly(), NO_DATA)
    assert torch.equal(model.last.weight, before)
    assert not WeightOnly(ignore=("last",)).in_place
    for options in (WeightOnly(bits=4), WeightOnly(algorithm="rtn"), WeightOnly(group_size="row")):
        assert options.in_place


# What is found before work


def test_checks_name_every_bad_layer():
    with torch.device("meta"):
        model = Three()
    assert check_weight_only(model, WeightOnly(bits=4, group_size=3)) == [
        "group_size 3 does not divide the in_features of first (in_features 8), last (in_features 8): "
        "set a divisor of 8, or row, or add them to `ignore`"
    ]
    assert check_weight_only(model, WeightOnly()) == []
    assert "an earlier stage quantizes first, last already" in check_targets(model, Binary())[0]
    assert check_targets(model, Binary(targets=("table",))) == []
    assert check_fixed_point(model, FixedPoint(targets=("nowhere",)))[1] == "targets: 'nowhere' matches no module"


def test_options_that_cannot_work_together():
    assert "add `algorithm: gptq`" in WeightOnly(act_order=True).mistakes(False)[0]
    assert "both choose widths" in WeightOnly(bits=4, mixed=object()).mistakes(False)[0]  # type: ignore[arg-type]
    assert "scale: learned is about training" in Binary(scale="learned").mistakes(False)[0]
    assert WeightOnly(bits=4).columns_per_group == 64
    assert WeightOnly(algorithm="rtn").columns_per_group is None
    assert WeightOnly(bits=4).is_symmetric()
    assert not WeightOnly(bits=3).is_symmetric()


@pytest.mark.parametrize(
    ("parse", "value", "match"),
    [
        (parse_group_size, 0, "a group has at least one weight"),
        (parse_group_size, True, "a group has at least one weight"),
        (parse_group_size, "all", "a group has at least one weight"),
        (parse_binary_scale, 0, "no scale"),
        (parse_binary_scale, "max", "no scale"),
        (parse_binary_scale, float("nan"), "no scale"),
        (parse_widths, [4], "no list of widths"),
        (parse_widths, [4, 5], "no list of widths"),
        (parse_widths, 4, "no list of widths"),
    ],
)
def test_values_that_are_refused(parse, value, match):
    with pytest.raises(ValueError, match=match):
        parse(value)


def test_values_that_are_taken():
    assert (parse_group_size(None), parse_group_size("row"), parse_group_size(32)) == ("row", "row", 32)
    assert parse_widths([8, 4, 4]) == (4, 8)
    assert parse_binary_scale(1) == 1.0
