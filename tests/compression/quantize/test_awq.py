"""AWQ: scales that cancel, the search by hand, clipping, and where a scale can be folded in."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from stage_context import calibrated_on

from archiver.architecture import Fold
from archiver.compression.modules import linear_names
from archiver.compression.quantize.algorithms.awq import (
    awq_model,
    channel_scale,
    search_alpha,
)
from archiver.compression.quantize.algorithms.clipping import clipped_scales
from archiver.compression.quantize.algorithms.folding import folds_of
from archiver.compression.quantize.algorithms.search import output_error
from archiver.compression.quantize.grids import grouped, round_to_nearest, to_grid
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.quantizers import Grid
from archiver.compression.quantize.weights import weight_only
from archiver.state.constraints import Mask, constrain, state_of

SIZES = {
    "llama": {"num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "qwen2": {"num_key_value_heads": 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "bert": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
}


def tiny(kind: str) -> torch.nn.Module:
    heads = {} if kind == "distilbert" else {"num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, vocab_size=50, **heads, **SIZES[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = transformers.AutoModelForCausalLM if kind in ("llama", "qwen2") else transformers.AutoModel
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases that are not 1 and 0: folding must see them
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


IDS = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))


def answers(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[0]


def test_scale_by_hand():
    # √ of 4, 1, 16 is 2, 1, 4; divided by √(4·1) = 2. The channel that is always zero is left alone.
    found = channel_scale(torch.tensor([4.0, 1.0, 16.0, 0.0]), 0.5)
    assert found.tolist() == [1.0, 0.5, 2.0, 1.0]
    assert channel_scale(torch.tensor([4.0, 1.0]), 0.0).tolist() == [1.0, 1.0]
    assert channel_scale(torch.zeros(2), 0.5).tolist() == [1.0, 1.0]


def test_output_error_is_that_of_the_outputs():
    x, change = torch.randn(20, 4), torch.randn(3, 4)
    torch.testing.assert_close(output_error(change, x.T @ x), (x @ change.T).square().sum(0))


def test_search_favours_the_loud_channel():
    # Channel 0 is a hundred times as loud: its weights must be the exact ones.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, generator=generator)
    loud = torch.tensor([100.0, 1, 1, 1, 1, 1, 1, 1])
    options = WeightOnly(bits=3, group_size="row", algorithm="awq")
    alpha, share = search_alpha([weight], [3], loud, torch.diag(loud.square()), options)
    assert alpha > 0.2
    assert share < 0.5
    quiet, same = search_alpha([weight], [3], torch.ones(8), torch.eye(8), options)
    assert (quiet, same) == (0.0, 1.0)


def test_clipping_by_hand():
    # One weight of 8 stands out where nothing comes in; the rest live within 1. Half the range serves them better.
    weight = torch.tensor([[8.0, 1.0, -1.0, 0.6, -0.6, 0.9, -0.9, 0.8]])
    gram = torch.diag(torch.tensor([1e-6, 1, 1, 1, 1, 1, 1, 1]))
    scale, zero = clipped_scales(weight, gram, 4, None, True)
    assert scale.item() < 8 * 2 / 15 * 0.9
    whole, _, _ = round_to_nearest(weight, 4, None, True)
    mine = to_grid(weight, scale, zero, 4)
    assert output_error(mine - weight, gram).sum() < output_error(whole - weight, gram).sum()
    # Where the large weight is the loud one it is not cut off.
    kept, _ = clipped_scales(weight, torch.diag(torch.tensor([1e6, 1, 1, 1, 1, 1, 1, 1])), 4, None, True)
    assert abs(to_grid(weight, kept, zero, 4)[0, 0].item() - 8) < 0.6


def test_groups_whose_inputs_have_nothing_in_common_are_clipped_by_themselves():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=generator)
    x = torch.randn(40, 12, generator=generator)
    apart = torch.block_diag((x.T @ x)[:6, :6], (x.T @ x)[6:, 6:])
    both, _ = clipped_scales(weight, apart, 3, 6, False)
    for part in (slice(0, 6), slice(6, 12)):
        alone, _ = clipped_scales(weight[:, part], apart[part, part], 3, None, False)
        assert torch.equal(both[:, [part.start // 6]], alone)


def test_groups_make_up_for_each_others_errors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator)
    gram = (lambda x: x.T @ x)(torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator))

    def error(scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        rounded = to_grid(grouped(weight, 8), scale[..., None], zero[..., None], 3).reshape(weight.shape)
        return output_error(rounded - weight, gram).sum()

    together = clipped_scales(weight, gram, 3, 8, False)
    blocks = torch.block_diag(*(gram[i : i + 8, i : i + 8] for i in range(0, 64, 8)))
    assert error(*together) < 0.8 * error(*clipped_scales(weight, blocks, 3, 8, False))


FOLDS = {
    "llama": 8,  # of each layer: two norms, values → output, up → down
    "qwen2": 8,
    "bert": 2,  # values → output; behind a norm the residual goes on, and GELU lets no scale through
    "distilbert": 2,
}


@pytest.mark.parametrize("kind", FOLDS)
def test_folding_changes_no_answer(kind):
    model = tiny(kind)
    before = answers(model)
    names = set(linear_names(model))
    folds = folds_of(model, names)
    assert len(folds) == FOLDS[kind]
    for fold in folds:
        first = model.get_submodule(fold.after[0])
        old = first.weight.detach().clone()
        scale = fold.tied(torch.rand(first.in_features) + 0.5)
        fold.apply(model, scale)
        torch.testing.assert_close(first.weight, old * scale)
    torch.testing.assert_close(answers(model), before, rtol=1e-4, atol=1e-4)


def test_no_fold_where_it_would_reach_others():
    model = tiny("llama")
    names = set(linear_names(model))
    layers = model.model.layers
    fewer = folds_of(model, names - {"model.layers.0.self_attn.k_proj"})
    assert [fold.before for fold in fewer if "input_layernorm" in fold.before] == ["model.layers.1.input_layernorm"]
    grid = Grid.of(layers[0].mlp.up_proj.weight, 4, None, True)
    constrain(model, "model.layers.0.mlp.up_proj", grid)
    found = folds_of(model, names)
    assert len(found) == 6  # neither out of, nor into, what is on a grid
    constrain(model, "model.layers.1.mlp.up_proj", Mask(torch.rand(64, 32) > 0.5))
    assert len(folds_of(model, names)) == 6  # zeros stay zeros under any scale
    layers[1].self_attn.v_proj.weight = layers[0].self_attn.v_proj.weight
    assert len(folds_of(model, names)) == 2  # shared between layers: not into both attentions, nor out of both values


def test_tied_heads_by_hand():
    fold = Fold("v", ("o",), torch.tensor([0, 0, 1, 1]))
    assert fold.tied(torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist() == [2.0, 2.0, 6.0, 6.0]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_stage(kind):
    model = tiny(kind)
    original = copy.deepcopy(model)
    batches = [{"input_ids": ids[None]} for ids in IDS]
    options = WeightOnly(bits=4, group_size=16, algorithm="awq", samples=3)
    report = weight_only(model, options, calibrated_on(batches, model))
    names = linear_names(model)
    scaled = 14 if kind == "llama" else 2
    assert f"the inputs of {scaled} of {len(names)} layers could be scaled" in report.notes[1]
    assert "SQNR" not in report.notes[0]
    for name in names:
        grid = state_of(model).constraints[name][-1]
        weight = model.get_submodule(name).weight
        assert torch.equal(grid(weight), weight)
        steps = (grouped(weight, 16) / grid.scale[..., None]).round() + grid.zero[..., None]
        assert ((steps >= 0) & (steps <= 15)).all()
    near = torch.nn.functional.cosine_similarity(answers(model).flatten(), answers(original).flatten(), dim=0)
    assert near > 0.97


def test_less_output_error_than_rounding():
    """On a model whose inputs differ in loudness, the layer's outputs come closer to the original's."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[::5] *= 20
    original = copy.deepcopy(model)
    batches = [{"input_ids": ids[None]} for ids in IDS]
    nearest = copy.deepcopy(model)
    examples = calibrated_on(batches, model)
    awq_model(
        model, dict.fromkeys(linear_names(model), 3), WeightOnly(bits=3, group_size=16, algorithm="awq"), examples
    )
    weight_only(nearest, WeightOnly(bits=3, group_size=16), calibrated_on(batches, nearest))
    truth = answers(original)
    assert (answers(model) - truth).norm() < 0.9 * (answers(nearest) - truth).norm()
