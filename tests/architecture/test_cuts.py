"""A cut model is the original with those structures at zero, travels without pickle, and its folds change no answer."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_families import FAMILIES, IDS, answers, difference, make, reloaded

from archiver.architecture import Cut, cut_layer, cuts_of, keep_layers, kv_shapes, layer_parts, settings_of

CUT = [name for name, family in FAMILIES.items() if family.heads or family.neurons]
DECODERS = ("llama", "phi3", "gpt_neox", "gemma3_text", "gemma-one-key", "falcon", "opt", "stablelm")


def some(cut: Cut, index: int) -> torch.Tensor:
    """What stays: other structures in each layer, and another number of them."""
    if cut.kind == "neurons":
        return torch.arange(index, cut.blocks, 3 + index)
    return torch.tensor([index % cut.blocks] if cut.blocks < 3 or index == 1 else [0, 2])


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_equals_zeros(name, kind):
    model = make(name)
    cuts = cuts_of(model, kind)
    if not getattr(FAMILIES[name], kind):
        assert cuts == []
        return
    original, zeroed = answers(model), copy.deepcopy(model)
    for index, cut in enumerate(cuts):
        weight = zeroed.get_submodule(cut.consumer).weight.data
        weight[:, ~torch.isin(cut.columns, some(cut, index))] = 0
    for index, cut in enumerate(cuts):
        cut_layer(model, cut, some(cut, index))
    assert difference(answers(model), answers(zeroed)) < 1e-4
    assert difference(answers(model), original) > 1e-3
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in zeroed.parameters())
    assert difference(answers(reloaded(model)), answers(model)) < 1e-6


@pytest.mark.parametrize("name", ["bert", "llama", "phi3", "gpt2", "deberta-v2", "deberta"])
def test_what_is_left_can_be_cut_again(name):
    model = make(name)
    for kind in ("heads", "neurons"):
        before = cuts_of(model, kind)
        for cut in before:
            cut_layer(model, cut, torch.arange(1, cut.blocks))
        after = cuts_of(model, kind)
        # One key with the two queries that share it: now each query can be cut.
        assert [cut.blocks for cut in after] == [2 if cut.blocks == 2 else cut.blocks - 1 for cut in before]
        zeroed = copy.deepcopy(model)
        for cut in after:
            zeroed.get_submodule(cut.consumer).weight.data[:, cut.columns == 0] = 0
            cut_layer(model, cut, torch.arange(1, cut.blocks))
        assert difference(answers(model), answers(zeroed)) < 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_a_cut_decoder_continues_with_a_cache_as_without(name):
    model = make(name)
    for kind in ("heads", "neurons"):
        for index, cut in enumerate(cuts_of(model, kind)):
            cut_layer(model, cut, some(cut, index))
    model = reloaded(model)
    with torch.no_grad():
        found, plain = (
            model.generate(IDS[:1, :5], max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert torch.equal(found, plain)
    output = model(input_ids=IDS, use_cache=True)
    caches = [
        tuple(layer.keys.shape[i] for i in (1, 3)) + (layer.values.shape[3],) for layer in output.past_key_values.layers
    ]
    assert kv_shapes(model) == caches


def test_settings_say_only_what_the_config_does_not():
    model = make("phi3")
    assert settings_of(model) == {}
    cut = cuts_of(model, "heads")[0]
    cut_layer(model, cut, torch.tensor([1]))
    assert settings_of(model) == {
        "model.layers.0.self_attn": {"config.num_attention_heads": 2, "num_key_value_heads": 1}
    }  # fmt: skip
    assert model.config.num_attention_heads == 4 == model.model.layers[1].self_attn.config.num_attention_heads
    keep_layers(model, (0,))
    assert difference(answers(reloaded(model)), answers(model)) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_folds_change_no_answer(name):
    model = make(name)
    before = answers(model)
    generator = torch.Generator().manual_seed(0)
    for parts in layer_parts(model):
        for fold in parts.folds:
            first = model.get_submodule(fold.after[0])
            old = first.weight.detach().clone()
            scale = fold.tied(torch.rand(first.in_features, generator=generator) + 0.5)
            fold.apply(model, scale)
            torch.testing.assert_close(first.weight, old * scale)
    assert difference(answers(model), before) < 1e-4


@pytest.mark.parametrize("name", ["phi3", "gpt2", "llama"])
def test_a_cut_model_still_folds(name):
    model = make(name)
    for kind in ("heads", "neurons"):
        for index, cut in enumerate(cuts_of(model, kind)):
            cut_layer(model, cut, some(cut, index))
    before = answers(model)
    folds = [fold for parts in layer_parts(model) for fold in parts.folds]
    assert len(folds) == 2 * FAMILIES[name].folds
    for fold in folds:
        fold.apply(model, fold.tied(torch.rand(model.get_submodule(fold.after[0]).in_features) + 0.5))
    assert difference(answers(model), before) < 1e-4
