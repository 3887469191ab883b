"""Layers that learn by themselves what the original gives."""

from __future__ import annotations

import copy

import pytest
import torch
from any_models import tiny
from stage_context import calibrated_on

from archiver.compression.prune.options import L1
from archiver.compression.prune.structured import structured
from archiver.compression.prune.structured_options import Structured
from archiver.compression.prune.weights import l1
from archiver.compression.retrain import layerwise as stage
from archiver.compression.retrain.layerwise import layerwise
from archiver.compression.retrain.options import Layerwise
from archiver.errors import ArchiverError, RecipeError
from archiver.state.constraints import state_of
from handlers.architecture.outputs.decoder import DecoderWithHead

IDS = torch.randint(3, 100, (8, 24), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])} for ids in IDS]
OPTIONS = Layerwise(samples=8, steps=60, learning_rate=3e-3, precision="fp32")


def case(depth=4):
    """(the original, a copy to compress, a context of both)."""
    model = tiny("llama", "AutoModelForCausalLM", num_hidden_layers=depth)
    original = copy.deepcopy(model)
    context = calibrated_on(BATCHES, DecoderWithHead(model))
    context.teacher = DecoderWithHead(original)
    return original, model, context


@torch.no_grad()
def distance(model, original):
    """Of the last hidden states, as a share of their square."""
    ours, theirs = (each.model(IDS).last_hidden_state for each in (model, original))
    return float((ours - theirs).square().sum() / theirs.square().sum())


def distances(report):
    line = next(note for note in report.notes if "→" in note)
    before, _, after = line.split("square: ")[1].split(" on average")[0].partition(" → ")
    return float(before), float(after)


def test_zeros_stay_and_the_rest_makes_up_for_them():
    original, model, context = case()
    l1(model, L1(sparsity=0.6, scope="layer"), context)
    before, zeros = distance(model, original), model.model.layers[1].mlp.up_proj.weight == 0
    report = layerwise(model, OPTIONS, context)
    first, last = distances(report)
    assert last < 0.7 * first
    assert distance(model, original) < 0.7 * before
    weight = model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(weight == 0, zeros)
    assert all(value.grad is None for value in model.parameters())
    assert report.notes[0] == "4 layers, 60 steps each on 8 training texts"


def test_a_layer_learns_the_work_of_those_that_are_gone():
    original, model, context = case()
    structured(model, Structured(layers=(0, 1, 3)), context)
    assert state_of(model).layer_origin == [0, 1, 3]
    before = distance(model, original)
    untaught = copy.deepcopy(model)
    layerwise(model, OPTIONS, context)
    assert distance(model, original) < 0.7 * before
    with torch.no_grad():  # behind the second layer: what the third gave in the original
        ours, theirs, earlier = (
            each.model(IDS, output_hidden_states=True).hidden_states for each in (model, original, untaught)
        )
        assert (ours[2] - theirs[3]).square().sum() < 0.7 * (earlier[2] - theirs[3]).square().sum()


def test_cut_neurons_and_heads():
    original, model, context = case()
    structured(model, Structured(neurons=0.5, heads=0.5, importance="magnitude"), context)
    before = distance(model, original)
    layerwise(model, OPTIONS, context)
    assert distance(model, original) < 0.8 * before


def test_where_nothing_is_lost_nothing_is_made_worse():
    original, model, context = case(2)
    layerwise(model, Layerwise(samples=8, steps=3, learning_rate=1e-2, precision="fp32"), context)
    assert distance(model, original) < 1e-10


def test_an_interrupted_teaching_goes_on_at_its_layer(tmp_path, monkeypatch):
    taught = []

    def run(stop=None):
        original, model, context = case()
        l1(model, L1(sparsity=0.6, scope="layer"), context)
        context.checkpoint = None if stop is None else tmp_path / "1-x"

        def teach(block, options):
            if len(taught) == stop:
                raise KeyboardInterrupt
            taught.append(block.prefix)
            return teaches(block, options)

        teaches = stage._teach
        monkeypatch.setattr(stage, "_teach", teach)
        try:
            return model, layerwise(model, Layerwise(samples=8, steps=5, precision="fp32"), context)
        finally:
            monkeypatch.setattr(stage, "_teach", teaches)

    whole, report = run()
    taught.clear()
    with pytest.raises(KeyboardInterrupt):
        run(stop=2)
    model, again = run(stop=99)
    assert taught == [f"model.layers.{index}." for index in (0, 1, 2, 3)]
    assert again.notes == report.notes
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_loss_that_is_no_number_is_one_sentence(monkeypatch):
    _, model, context = case(2)

    def distance_of(given, target, mask):
        distance = stage_distance(given, target, mask)
        return distance * float("nan") if given.requires_grad else distance

    stage_distance = stage.hidden_distance
    monkeypatch.setattr(stage, "hidden_distance", distance_of)
    with pytest.raises(
        ArchiverError, match=r"the loss is nan at step 0 of model\.layers\.0: lower learning_rate \(0.003\)"
    ):
        layerwise(model, OPTIONS, context)


def test_a_model_whose_layers_cannot_be_run_by_themselves():
    model = tiny("albert", "AutoModelForSequenceClassification")
    context = calibrated_on(BATCHES, DecoderWithHead(model))
    with pytest.raises(RecipeError, match="cannot be run so|has none"):
        layerwise(model, OPTIONS, context)
