"""What reads a cut structure makes up for it: by hand, and as an option of structured pruning."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_models import examples, run, tiny

from archiver.architecture import cuts_of
from archiver.compression.calibration import input_moments
from archiver.compression.prune.compensation import compensate, refitted
from archiver.compression.prune.structured import structured
from archiver.compression.prune.structured_options import Structured

GRAM = torch.tensor([[3.0, 1.0, 1.0], [1.0, 2.0, 0.5], [1.0, 0.5, 4.0]], dtype=torch.float64)


def test_by_hand():
    """One input stays: it takes over w₁·G₁₃/G₃₃ and w₂·G₂₃/G₃₃."""
    stays = torch.tensor([False, False, True])
    found = refitted(torch.tensor([[0.4, -0.6, 2.0]]), GRAM, stays, damping=0.0)
    assert found[0].tolist() == [0.0, 0.0, pytest.approx(2.0 + (0.4 * 1.0 - 0.6 * 0.5) / 4.0, rel=1e-6)]


def test_damping_by_hand():
    """λ = 1 · (3 + 2 + 4)/3 = 3 is added to G₃₃."""
    stays = torch.tensor([False, False, True])
    found = refitted(torch.tensor([[0.4, -0.6, 2.0]]), GRAM, stays, damping=1.0)
    assert float(found[0, 2]) == pytest.approx(2.0 + (0.4 * 1.0 - 0.6 * 0.5) / 7.0, rel=1e-6)


def test_an_input_that_is_a_sum_of_others_is_not_missed():
    torch.manual_seed(0)
    x = torch.randn(4, 50, dtype=torch.float64)
    x[3] = x[0] - 2 * x[1]
    weight = torch.randn(5, 4, dtype=torch.float64)
    found = refitted(weight, x @ x.T, torch.tensor([True, True, True, False]), damping=1e-12)
    assert torch.allclose(found @ x, weight @ x, atol=1e-8)
    assert not found[:, 3].any()


def test_inputs_that_are_always_zero_change_nothing():
    weight = torch.randn(2, 3)
    found = refitted(weight, torch.zeros(3, 3), torch.tensor([True, False, True]))
    assert torch.equal(found[:, [0, 2]], weight[:, [0, 2]])


@pytest.mark.parametrize("kind", ["bert", "llama", "qwen2"])
@pytest.mark.parametrize("what", ["heads", "neurons"])
def test_the_lowest_consumer_is_nearer_to_what_it_gave(kind, what):
    model = tiny(kind)
    context = examples(model, kind)
    cuts = cuts_of(model, what)
    keep = [torch.arange(max(1, cut.blocks // 2)) for cut in cuts]
    first = cuts[0].consumer
    gram = input_moments(model, [first], context, 3)[first].gram
    before = model.get_submodule(first).get_parameter("weight").detach().clone()
    compensate(model, cuts, keep, context, 3)
    after = model.get_submodule(first).get_parameter("weight").detach()
    stays = torch.isin(cuts[0].columns, keep[0])
    assert not after[:, ~stays].any()

    def distance(weight: torch.Tensor) -> float:
        return float(torch.trace((weight - before).double() @ gram @ (weight - before).double().T))

    assert distance(after) < distance(before * stays)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_as_an_option_it_is_nearer_to_the_original(kind):
    found = {}
    for compensates in (False, True):
        model = tiny(kind)
        whole = run(copy.deepcopy(model))
        options = Structured(neurons=0.4, importance="activation", compensate=compensates, samples=3)
        report = structured(model, options, examples(model, kind))
        assert ("refitted" in report.notes[0]) == compensates
        found[compensates] = float((run(model) - whole).square().sum())
    assert found[True] < found[False]


def test_it_is_for_heads_and_neurons_and_needs_texts():
    assert "heads and neurons" in Structured(layers=0.5, compensate=True).mistakes(False)[0]
    assert Structured(neurons=0.5, importance="magnitude", compensate=True).needs_data
    assert not Structured(neurons=0.5, importance="magnitude").needs_data
