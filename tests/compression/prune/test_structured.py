"""Cutting heads, neurons and layers: the cut model computes what the whole one would with those structures at zero."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from cut_models import BATCHES, DECODERS, ENCODERS, IDS, SIZES, examples, run, tiny

from archiver.architecture import cuts_of, keep_layers, layer_list, layer_parts, without_layers
from archiver.compression.prune import importance as importance_module
from archiver.compression.prune.importance import block_scores, labelled, layer_order
from archiver.compression.prune.structured import check, choose, cut_out, kept_of, structured
from archiver.compression.prune.structured_options import Structured
from archiver.compression.prune.surgeon import surgeon_scores
from archiver.state.constraints import state_of
from handlers.architecture.conv1d import conv1d_to_linear
from handlers.architecture.structure import describe, rebuild


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("what", ["heads", "neurons"])
def test_a_cut_equals_zeros(kind, what):
    """Structures whose consumer has zero columns contribute nothing: cutting those changes no output."""
    model = tiny(kind)
    masked = copy.deepcopy(model)
    kept = torch.tensor([0]) if what == "heads" and kind in ("llama", "qwen2") else torch.tensor([0, 2, 3])
    cuts = cuts_of(masked, what)
    assert len(cuts) == 3
    for cut in cuts:
        weight = masked.get_submodule(cut.consumer).get_parameter("weight")
        width = {"neurons": 1, "heads": 8 * 4 // cut.blocks}[what]  # heads of 8, four for queries
        columns = torch.zeros(weight.shape[1])
        columns.view(-1, width)[kept] = 1.0
        weight.data *= columns
    for cut in cuts_of(model, what):
        cut_out(model, cut, kept)
    assert torch.allclose(run(model), run(masked), atol=1e-5)
    assert not torch.allclose(run(model), run(tiny(kind)), atol=1e-3)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_all_at_once_reloads_with_layers_of_different_sizes(kind):
    model = tiny(kind)
    options = Structured(heads=0.5, neurons=0.4, layers=(0, 2), scope="global", importance="taylor")
    report = structured(model, options, examples(model, kind))
    assert state_of(model).layer_origin == [0, 2]
    assert len(layer_list(model)[1]) == model.config.num_hidden_layers == 2
    assert report.notes[0] == "layers 0, 2 of 3 stay"
    config = type(model.config).from_dict(model.config.to_dict())
    auto = transformers.AutoModelForCausalLM if kind in DECODERS else transformers.AutoModelForSequenceClassification
    fresh = conv1d_to_linear(auto.from_config(config, attn_implementation="eager"))
    rebuild(fresh, describe(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(run(fresh.eval()), run(model))
    if kind in DECODERS:  # with a cache, layer by layer, as without
        with torch.no_grad():
            found = fresh.generate(IDS[:1, :4], max_new_tokens=4, do_sample=False, use_cache=True)
            plain = fresh.generate(IDS[:1, :4], max_new_tokens=4, do_sample=False, use_cache=False)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "activation"])
def test_what_matters_little_goes_first(importance):
    """Neurons 8 … 47 are made next to nothing, and head 3: they are the first to go."""
    model = tiny("bert")
    with torch.no_grad():
        for parts in layer_parts(model):
            for cut in parts.cuts:
                rows = slice(8, None) if cut.kind == "neurons" else slice(24, None)
                assert len(cut.producers) == {"neurons": 1, "heads": 3}[cut.kind]
                for name in cut.producers:
                    layer = model.get_submodule(name)
                    layer.get_parameter("weight")[rows] *= 1e-4
                    layer.get_parameter("bias")[rows] *= 1e-4
                model.get_submodule(cut.consumer).get_parameter("weight")[:, rows] *= 1e-3
    before = run(model)
    structured(model, Structured(heads=0.25, neurons=0.8, importance=importance, samples=3), examples(model, "bert"))
    for parts in layer_parts(model):
        assert {cut.kind: cut.blocks for cut in parts.cuts} == {"heads": 3, "neurons": 10}, parts.refused
    assert torch.allclose(run(model), before, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_are_asked_of_few_tokens_at_once(kind, monkeypatch):
    """What is kept for them would grow with the batch; the scores do not."""
    model = tiny(kind)
    found = examples(model, kind)
    cuts = cuts_of(model, "neurons")
    wanted = block_scores(model, cuts, "taylor", found, 3), surgeon_scores(model, cuts, found, 3)
    length = IDS.shape[1]
    monkeypatch.setattr(importance_module, "_TOKENS", 2 * length)
    rows = [len(batch["input_ids"]) for batch in labelled(found, 3)]
    assert max(rows) == 2 and sum(rows) == sum(len(batch["input_ids"]) for batch in found.train(16, 0))
    scores = block_scores(model, cuts, "taylor", found, 3), surgeon_scores(model, cuts, found, 3)
    torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "activation"])
def test_the_layer_that_does_nothing_goes_first(importance):
    model = tiny("llama")
    with torch.no_grad():
        layer = layer_list(model)[1][1]
        for parameter in layer.parameters():
            parameter.mul_(1e-4)
    found = examples(model, "llama")
    # Against random labels the loss may fall when a layer goes; against the original's own answers it can only rise.
    unlabelled = [{name: value for name, value in BATCHES[0].items() if name != "labels"}]
    found.train = lambda size, seed: unlabelled
    assert layer_order(model, 1, importance, found, 3) == [1]
    assert len(layer_list(model)[1]) == model.config.num_hidden_layers == 3


def test_a_layer_keeps_its_kind_of_attention_while_others_are_skipped():
    config = transformers.AutoConfig.for_model(
        "qwen2", vocab_size=40, bos_token_id=0, eos_token_id=0, pad_token_id=0, use_sliding_window=True, sliding_window=2,
        layer_types=["sliding_attention", "full_attention", "full_attention"], **SIZES["qwen2"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    cut = copy.deepcopy(model)
    keep_layers(cut, (1, 2))
    with without_layers(model, [0]):
        assert torch.equal(run(model), run(cut))
    assert model.config.layer_types[0] == "sliding_attention"
    assert cut.config.layer_types == ["full_attention", "full_attention"]


def test_layers_are_skipped_only_inside():
    model = tiny("bert")
    before = run(model)
    with pytest.raises(RuntimeError, match="inside"), without_layers(model, [0, 1]):
        assert not torch.equal(run(model), before)
        raise RuntimeError("inside")
    assert torch.equal(run(model), before)


@pytest.mark.parametrize(
    ("total", "share", "what", "left"),
    [(12, 0.33, "heads", 8), (12, 0.5, "heads", 6), (2, 0.9, "heads", 1), (1536, 0.5, "neurons", 768),
     (1536, 0.67, "neurons", 512), (1536, 0.005, "neurons", 1528), (48, 0.33, "neurons", 32), (300, 0.5, "neurons", 160)],
)  # fmt: skip
def test_counts_by_hand(total, share, what, left):
    assert kept_of(total, share, what) == left


def test_global_scope_by_hand():
    # Means 2 and 20: scaled [0.5, 1.5] and [0.1, 1.9]; half of four goes: 0.5 and 0.1.
    kept = choose([torch.tensor([1.0, 3.0]), torch.tensor([2.0, 38.0])], 0.5, "heads", "global")
    assert [item.tolist() for item in kept] == [[1], [1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Structured(layers=(0, 3, 7)), "layers: 3, 7 of the list that stays: the model has layers 0 to 2"),
        (Structured(layers=0.1), "0.1 of 3 layers is 0"),
        (Structured(layers=0.9), "0.9 of 3 layers is 3"),
        (Structured(heads=0.05), "heads: 0.05 of the 4 that bert.encoder.layer.0.attention.output.dense takes is none"),
    ],
)
def test_cuts_that_cannot_be_are_found_before_any_work(options, message):
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model("bert", vocab_size=40, **SIZES["bert"])
        )
    found = check(model, options)
    assert message in found[0]


def test_the_check_gives_the_shapes_that_will_be():
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model("bert", vocab_size=40, **SIZES["bert"])
        )
    assert check(model, Structured(heads=0.5, neurons=0.5, layers=0.34)) == []
    assert [[(cut.kind, cut.blocks) for cut in parts.cuts] for parts in layer_parts(model)] == [
        [("heads", 2), ("neurons", 24)]
    ] * 2
    down = model.get_submodule("bert.encoder.layer.1.output.dense")
    assert (down.in_features, tuple(down.weight.shape)) == (24, (32, 24))


def test_cutting_nothing_is_a_mistake():
    assert "cuts nothing" in Structured().mistakes(False)[0]
