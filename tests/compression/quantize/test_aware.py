"""Quantization-aware training on a tiny encoder: what is learned, what holds afterwards; and bits chosen per layer."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from objectives import OBJECTIVES

from archiver.compression import METHODS
from archiver.compression.context import StageContext, stacked
from archiver.compression.modules import linear_names
from archiver.compression.quantize.mixed import cheapest_path, choose_bits
from archiver.compression.quantize.options import Binary, Codebook, FixedPoint, Mixed, Ternary, WeightOnly
from archiver.compression.retrain.options import Retrain
from archiver.compression.retrain.training import train
from archiver.errors import DataError, GateFailed
from archiver.state.constraints import constrained, state_of
from handlers.architecture.outputs.encoder import EncoderWithHead


def tiny() -> EncoderWithHead:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
    return EncoderWithHead(model.eval())


@pytest.fixture
def examples() -> StageContext:
    module = tiny()
    teacher = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(12):
        ids = torch.randint(5, 40, (16, 10), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        batches.append(batch)

    def distance() -> dict[str, float]:
        with torch.no_grad():
            pairs = [(module(**batch), teacher(**batch)) for batch in batches]
        agree = torch.cat([(a.argmax(1) == b.argmax(1)).float() for a, b in pairs]).mean().item()
        return {"agreement": agree, "cross_entropy": sum((a - b).square().mean().item() for a, b in pairs)}

    one_each = [{key: value[[row]] for key, value in batch.items()} for batch in batches[:2] for row in range(16)]
    return StageContext(
        module,
        teacher,
        OBJECTIVES["text-classification"],
        lambda samples: one_each[:samples],
        lambda size, seed: batches,
        distance,
        {"agreement": 1.0, "cross_entropy": 0.0},
    )


AWARE = Retrain(epochs=8, learning_rate=2e-3, precision="fp32")
LAYERS = ("*encoder.layer*",)
STAGES = {
    "weight-only": ("quantize", WeightOnly(bits=2, group_size=16, targets=LAYERS)),
    "gptq": ("quantize", WeightOnly(bits=2, group_size=16, targets=LAYERS, algorithm="gptq", samples=16)),
    "fixed-point": ("quantize", FixedPoint(format="q1.2", targets=LAYERS)),
    "binary": ("quantize", Binary(targets=LAYERS)),
    "learned": ("quantize", Binary(targets=LAYERS, scale="learned", clip=10.0)),
    "progressive": ("quantize", Binary(targets=LAYERS, progressive=True)),
    "ternary": ("quantize", Ternary(targets=LAYERS)),
    "codebook": ("share", Codebook(bits=2, targets=LAYERS)),
}
METHOD = {"gptq": "weight-only", "learned": "binary", "progressive": "binary"}


def run(kind: str, examples: StageContext, aware: Retrain | None) -> torch.nn.Module:
    import dataclasses

    verb, options = STAGES[kind]
    model = examples.module.model
    METHODS[verb][METHOD.get(kind, kind)].load()(model, dataclasses.replace(options, aware=aware), examples)
    return model


@pytest.mark.parametrize("kind", STAGES)
def test_training_makes_up_for_rounding_and_the_grid_holds(kind, examples):
    plain = StageContext(**{**vars(examples), "module": copy.deepcopy(examples.module)})
    run(kind, plain, None)
    with torch.no_grad():
        lost = sum((plain.module(**b) - examples.teacher(**b)).square().mean().item() for b in examples.train(16, 0))
    model = run(kind, examples, AWARE)
    assert examples.measure()["cross_entropy"] < 0.7 * lost
    names = [name for name in linear_names(model) if "encoder.layer" in name]
    baked = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    for name, weight in baked.items():
        constraint = state_of(model).constraints[name][-1]
        with torch.no_grad():
            assert torch.equal(constraint(weight), weight)
        if kind in ("binary", "progressive", "learned"):
            assert (weight.abs() == weight.abs()[:, :1]).all()
        elif kind == "fixed-point":
            assert torch.equal(weight * 4, (weight * 4).round())
        elif kind == "codebook":
            assert len(weight.unique()) <= 4
    # A later retrain keeps the grid: the same scales, whatever the latent weights do.
    train(model, Retrain(epochs=1, learning_rate=1e-3, precision="fp32"), examples)
    for name in names:
        constraint, weight = state_of(model).constraints[name][-1], model.get_submodule(name).weight
        with torch.no_grad():
            assert torch.equal(constraint(weight), weight)
        if kind in ("weight-only", "gptq"):
            scale, zero, bits = constraint.grouping()
            q = weight.detach().view(*scale.shape, -1) / scale[..., None] + zero[..., None]
            assert ((q.round() >= 0) & (q.round() < 2**bits)).all()
        elif kind in ("binary", "progressive"):
            assert torch.equal(weight.abs(), baked[name].abs())
    after = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    with constrained(model):
        pass
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in after.items())


# Bits per layer


def test_path_by_hand():
    losses = {"a": {8: 0.0, 4: 1.0, 2: 9.0}, "b": {8: 0.0, 4: 0.1, 2: 0.2}}
    sizes = {"a": 10, "b": 1}
    # b from 8 to 4: 0.1/4 = 0.025 a bit; a from 8 to 4: 1/40 = 0.025, a comes first; then b, then b to 2 (0.05), then a.
    path = cheapest_path(losses, sizes, (2, 4, 8))
    assert path == [
        {"a": 8, "b": 8},
        {"a": 4, "b": 8},
        {"a": 4, "b": 4},
        {"a": 4, "b": 2},
        {"a": 2, "b": 2},
    ]


def test_headline():
    labelled, original = OBJECTIVES["text-classification"], {"accuracy": 0.9, "agreement": 1.0}
    assert labelled.headline_drop(original, {"accuracy": 0.88, "agreement": 0.5}) == ("accuracy", pytest.approx(0.02))
    assert labelled.headline_drop({"agreement": 1.0}, {"agreement": 0.5}) == ("agreement", 0.5)
    language = OBJECTIVES["text-generation"]
    assert language.headline_drop({"perplexity": 20.0}, {"perplexity": 21.0}) == ("perplexity", pytest.approx(0.05))
    with pytest.raises(DataError, match="mixed: nothing can be measured .* give it labels"):
        labelled.headline_drop({}, {})


def test_the_finest_metric_that_was_measured():
    assert OBJECTIVES["text-classification"].fine_score({"accuracy": 0.9, "cross_entropy": 0.3}) == 0.3
    assert OBJECTIVES["text-generation"].fine_score({"perplexity": 9.0, "agreement": 0.5}) == 9.0
    assert OBJECTIVES["feature-extraction"].fine_score({"cosine": 0.75}) == -0.75
    with pytest.raises(DataError, match="nothing can be measured .* give it labels"):
        OBJECTIVES["text-classification"].fine_score({"accuracy": 0.9})


def test_texts_of_one_length_run_together():
    batches = [{"input_ids": torch.full((1, size), size)} for size in (3, 5, 3, 3)]
    assert [batch["input_ids"].shape for batch in stacked(batches)] == [(3, 3), (1, 5)]


def test_mixed_keeps_its_bound_and_the_weights(examples):
    model = examples.module.model
    names = [name for name in linear_names(model) if "encoder.layer" in name]
    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    options = WeightOnly(group_size=16, mixed=Mixed(max_drop=0.05, bits=(2, 4, 8), texts=16))
    bits, notes = choose_bits(model, names, options, examples)
    assert set(bits) == set(names)
    assert len(set(bits.values())) > 1
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in before.items())
    assert "(0.05 allowed)" in notes[0]
    METHODS["quantize"]["weight-only"].load()(model, options, examples)
    chosen = [name for name in names if name in bits]
    assert [state_of(model).constraints[name][0].grouping()[2] for name in chosen] != [8] * len(chosen)
    assert examples.measure()["agreement"] >= 0.9


def test_mixed_without_a_way_out(examples):
    options = WeightOnly(group_size=16, mixed=Mixed(max_drop=0.0, bits=(2, 3), texts=4))
    names = linear_names(examples.module.model)
    with pytest.raises(GateFailed, match="with 3 bits in every layer agreement drops by .*, and max_drop allows 0"):
        choose_bits(examples.module.model, names, options, examples)
