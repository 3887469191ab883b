"""Learned rounding by hand, and on the layers of a tiny model."""

from __future__ import annotations

import pytest
import torch
from any_models import tiny
from stage_context import calibrated_on

from archiver.compression.quantize.algorithms.learned_rounding import LearnedRounding, autoround_model, fit
from archiver.compression.quantize.grids import round_to_nearest
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.walk.blocks import Block
from archiver.errors import RecipeError
from archiver.state.constraints import Mask, constrain
from handlers.architecture.outputs.decoder import DecoderWithHead

IDS = torch.randint(3, 100, (4, 16), generator=torch.Generator().manual_seed(1))
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]


@pytest.mark.parametrize("symmetric", [True, False])
def test_before_it_learns_it_rounds_to_nearest(symmetric):
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    rounding = LearnedRounding(weight, 4, 8, symmetric)
    values, scale, zero = round_to_nearest(weight, 4, 8, symmetric)
    assert torch.equal(rounding.values().detach(), values)
    assert torch.equal(rounding.grid()[0][..., 0].detach(), scale)
    assert torch.equal(rounding.grid()[1][..., 0].detach(), zero)


def test_a_step_by_hand():
    """Step 0.2 (2·1.5/15), and 0.25 is 1.25 steps: with an offset of a quarter and more it is rounded up."""
    rounding = LearnedRounding(torch.tensor([[0.25, -1.5]]), 4, None, True)
    assert rounding.values()[0, 0].item() == pytest.approx(0.2, rel=1e-3)
    for _ in range(3):
        (gradient,) = torch.autograd.grad((rounding.values()[0, 0] - 0.4).square(), [rounding.offset])
        assert gradient[0, 0, 0] < 0 and gradient[0, 0, 1] == 0
        rounding.move([gradient, torch.zeros(1, 1, 1)], 0.1)
    assert rounding.offset[0, 0].tolist() == pytest.approx([0.3, 0.0])
    assert rounding.values()[0, 0].item() == pytest.approx(0.4, rel=1e-3)
    for _ in range(9):
        rounding.move([-torch.ones(1, 1, 2), torch.ones(1, 1, 1)], 0.1)
    assert rounding.offset[0, 0].tolist() == [0.5, 0.5]  # no further than to the next number
    assert rounding.high.item() == pytest.approx(0.1)


def test_pruned_weights_stay_zero():
    rounding = LearnedRounding(torch.tensor([[0.0, 1.0, -0.4, 0.0]]), 4, None, False)
    rounding.move([torch.full((1, 1, 4), -1.0), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)], 0.5)
    assert rounding.values()[0, [0, 3]].tolist() == [0.0, 0.0]
    assert torch.autograd.grad(rounding.values().sum(), [rounding.high])[0].isfinite().all()


def test_it_learns_what_the_outputs_need():
    """Inputs of few dimensions: what some weights lose, others can make up for."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(16, 8, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.randn(8, 16, generator=generator))
    inputs = torch.randn(64, 4, generator=generator) @ torch.randn(4, 16, generator=generator)
    target = layer(inputs).detach()
    block = Block(layer, ["0"], "", [((inputs,), {})], [target])
    options = WeightOnly(bits=3, group_size=8, algorithm="autoround", steps=200)
    nearest = (inputs @ round_to_nearest(layer[0].weight, 3, 8, False)[0].T - target).square().mean()
    found = fit(block, {"0": 3}, options)["0"]
    learned = (inputs @ found.values().detach().T - target).square().mean()
    assert learned < 0.7 * nearest
    values = found.values().detach()
    scale, zero = (item.detach() for item in found.grid())
    codes = values.reshape(8, 2, 8) / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-4) and codes.min() > -0.01 and codes.max() < 7.01


def llama():
    return tiny("llama", "AutoModelForCausalLM", num_hidden_layers=3)


def outputs_after(algorithm, samples=1, pruned=False):
    """(how far the last hidden states moved, the model, its grids) by 3 bits in groups of 16."""
    from archiver.compression.quantize.weights import integer_grids

    model = llama()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    options = WeightOnly(
        bits=3, group_size=16, algorithm=algorithm, samples=samples, steps=60 if algorithm == "autoround" else None
    )
    context = calibrated_on(BATCHES, DecoderWithHead(model))
    if pruned:
        mask = (
            torch.rand(model.model.layers[0].mlp.up_proj.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.5
        )
        constrain(model, "model.layers.0.mlp.up_proj", Mask(mask))
    with torch.no_grad():
        before = model.model(IDS).last_hidden_state
        found = integer_grids(model, dict.fromkeys(names, 3), options, context)
        for name, grid in found.grids.items():
            weight = model.get_submodule(name).weight
            weight.copy_(grid.rounded(weight))
        return float((model.model(IDS).last_hidden_state - before).square().mean()), model, found


def test_on_a_model_it_errs_less_than_the_others():
    learned, model, found = outputs_after("autoround")
    assert learned < 0.6 * outputs_after("rtn")[0]
    assert learned < outputs_after("awq")[0]
    assert found.notes[0] == "autoround: 60 steps a layer on 1 training texts"
    assert found.notes[1] == "rounded to nearest, outside of the layers: lm_head"
    for name, grid in found.grids.items():
        weight = model.get_submodule(name).weight.detach()
        assert torch.allclose(grid.rounded(weight), weight, atol=1e-6)


def test_zeros_of_a_mask_stay():
    _, model, _ = outputs_after("autoround", pruned=True)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert int((weight == 0).sum()) >= weight.numel() * 0.4


def test_awq_and_gptq_together():
    both, _, found = outputs_after("awq-gptq")
    assert both < outputs_after("awq")[0]
    assert found.notes[0].startswith("awq and gptq on 1 training texts: the inputs of ")


def test_targets_outside_of_layers_alone_are_refused():
    model = llama()
    options = WeightOnly(bits=4, algorithm="autoround")
    with pytest.raises(RecipeError, match="autoround fits transformer layers, and none of the targets lies in one"):
        autoround_model(model, {"lm_head": 4}, options, calibrated_on(BATCHES, DecoderWithHead(model)))


def test_a_model_whose_layers_cannot_be_run_by_themselves_is_refused():
    model = tiny("albert", "AutoModelForSequenceClassification", num_hidden_groups=1, inner_group_num=2)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name]

    class Called(torch.nn.Module):
        def forward(self, **inputs):
            return model(**inputs).logits

    options = WeightOnly(bits=4, algorithm="autoround")
    with pytest.raises(RecipeError, match="autoround fits"):
        autoround_model(model, dict.fromkeys(names, 4), options, calibrated_on(BATCHES, Called()))


def test_its_options():
    assert WeightOnly(bits=4, algorithm="autoround").needs_data
    assert WeightOnly(bits=4, algorithm="autoround").learning_steps == 200
    assert WeightOnly(bits=4, algorithm="gptq", steps=3).mistakes(False) == [
        "steps is about learned rounding: add `algorithm: autoround`, or remove steps"
    ]
