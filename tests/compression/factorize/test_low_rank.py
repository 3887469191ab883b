"""Factorizing: the stage on tiny models, and what training and the runtimes make of factors."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from stage_context import calibrated_on
from task_models import load_model

from archiver.architecture.tracing import text_tracing
from archiver.compression.factorize.low_rank import activation_svd, svd
from archiver.compression.factorize.low_rank_math import decompose
from archiver.compression.factorize.options import ActivationSvd, Svd
from archiver.compression.factorize.targets import check
from archiver.compression.quantize.int8 import dynamic_int8
from archiver.compression.quantize.options import DynamicInt8
from archiver.errors import RecipeError
from archiver.export.onnx import export_onnx, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.recipe.load import load_recipe
from archiver.state.constraints import constrained, state_of
from archiver.state.plan import plan_of
from handlers.architecture.factored import FactoredEmbedding, FactoredLinear, factored_ranks, install
from handlers.architecture.outputs.encoder import EncoderWithHead

FEED_FORWARD = ("*intermediate.dense", "*layer.?.output.dense")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ids(rows: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


@pytest.fixture
def encoder(tiny_model) -> EncoderWithHead:
    return EncoderWithHead(load_model(tiny_model(), "text-classification"))


@pytest.fixture
def decoder(tiny_model) -> torch.nn.Module:
    return load_model(tiny_model("llama", "text-generation", tie_word_embeddings=True), "text-generation")


# ---- the modules


def test_factored_linear_by_hand():
    layer = FactoredLinear(2, 2, 1)
    with torch.no_grad():
        layer.v.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.u.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        layer.u.bias.copy_(torch.tensor([0.5, 0.0]))
    assert layer(torch.tensor([[1.0, 1.0]])).tolist() == [[9.5, -3.0]]
    assert (layer.in_features, layer.out_features, layer.rank) == (2, 2, 1)
    assert layer.v.bias is None


def test_install_rebuilds_what_was_factored(encoder):
    fresh = copy.deepcopy(encoder)
    svd(encoder.model, Svd(rank=3, targets=(*FEED_FORWARD, "*word_embeddings"), execute="factored"), None)
    ranks = factored_ranks(encoder.model)
    assert len(ranks) == 2 * 2 + 1
    install(fresh.model, ranks)
    fresh.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(**_ids()), encoder(**_ids()))
    with pytest.raises(ValueError, match=r"bert\.embeddings\.LayerNorm: a LayerNorm cannot be factored"):
        install(fresh.model, {"bert.embeddings.LayerNorm": 2})


# ---- the stage


def test_half_of_the_parameters(encoder):
    layer = copy.deepcopy(encoder.model.bert.encoder.layer[0].intermediate.dense)
    before = sum(p.numel() for p in encoder.model.parameters())
    report = svd(encoder.model, Svd(ratio=0.5, targets=("*intermediate.dense",)), None)
    made = encoder.model.bert.encoder.layer[0].intermediate.dense
    assert made.rank == 10  # 0.5·64·32 / 96 = 10.67
    assert report.method == "factorize/svd"
    assert report.parameters == before - 2 * (64 * 32 - 10 * 96)
    kept = decompose(layer.weight).kept(10)
    assert report.notes[0].startswith(
        f"bert.encoder.layer.0.intermediate.dense: rank 10 of 32, factored, {kept:.2%} of the energy kept"
    )
    a, b = decompose(layer.weight).pair(10)
    x = _random(5, 32)
    with torch.no_grad():
        assert torch.allclose(made(x), torch.nn.functional.linear(x, a @ b.T, layer.bias), atol=1e-4)


def test_default_targets_leave_heads_and_tables_alone(encoder):
    svd(encoder.model, Svd(rank=2), None)
    ranks = factored_ranks(encoder.model)
    assert len(ranks) == 2 * 6 + 1  # and the pooler
    assert not any("classifier" in name or "embeddings" in name for name in ranks)


def test_auto_leaves_alone_what_two_factors_make_no_cheaper(encoder):
    before = copy.deepcopy(encoder.state_dict())
    report = svd(encoder.model, Svd(rank=16, targets=("*.query",)), None)  # 16·(32 + 32) = 32·32
    assert factored_ranks(encoder.model) == {}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert "left alone, rank 16 of 32 is as many multiplications as the dense layer, or more" in report.notes[0]
    svd(encoder.model, Svd(rank=16, targets=("*.query",), execute="factored"), None)
    assert len(factored_ranks(encoder.model)) == 2


def test_full_rank_is_left_alone(encoder):
    report = svd(encoder.model, Svd(rank=32, targets=("*.query",), execute="factored"), None)
    assert factored_ranks(encoder.model) == {}
    assert "rank 32 of 32 is full rank" in report.notes[0]


def test_recombined_is_dense_and_stays_of_low_rank_in_training(encoder):
    name = "bert.encoder.layer.0.intermediate.dense"
    report = svd(encoder.model, Svd(rank=4, targets=(name,), execute="recombined"), None)
    layer = encoder.model.get_submodule(name)
    assert isinstance(layer, torch.nn.Linear)
    assert any("makes nothing faster" in note for note in report.notes)
    first = layer.weight.detach().clone()
    with constrained(encoder.model):
        optimizer = torch.optim.SGD([p for p in encoder.model.parameters() if p.requires_grad], lr=1.0)
        encoder(**_ids()).square().sum().backward()
        optimizer.step()
    encoder.zero_grad()
    assert not torch.equal(layer.weight, first)
    assert int(torch.linalg.matrix_rank(layer.weight.double(), rtol=1e-5)) == 4
    a, b = state_of(encoder.model).factors[name]
    assert torch.equal(layer.weight, (a.double() @ b.double().T).float())


def test_activation_svd_is_nearer_on_its_calibration_texts(encoder):
    batches = [_ids(1, 12, seed) for seed in range(12)]
    with torch.no_grad():
        wanted = [encoder(**batch) for batch in batches]
    errors = {}
    for function, options in (
        (svd, Svd(ratio=0.4, targets=("*layer.*.dense",))),
        (activation_svd, ActivationSvd(ratio=0.4, targets=("*layer.*.dense",))),
    ):
        copied = copy.deepcopy(encoder)
        report = function(copied.model, options, calibrated_on(batches, copied))
        with torch.no_grad():
            found = [copied(**batch) for batch in batches]
        errors[function] = sum(float((a - b).norm() ** 2) for a, b in zip(wanted, found, strict=True))
    assert errors[activation_svd] < errors[svd]
    assert "relative error on calibration inputs" in report.notes[0]


def test_tables_factored_and_recombined(encoder):
    name, batches = "bert.embeddings.word_embeddings", [_ids()]
    dense = encoder.model.get_submodule(name).weight.detach().clone()
    report = activation_svd(
        encoder.model, ActivationSvd(rank=8, targets=("*word_embeddings",)), calibrated_on(batches, encoder)
    )
    # A row is looked up without a multiplication: auto stores factors and looks up in the dense table.
    assert isinstance(encoder.model.get_submodule(name), torch.nn.Embedding)
    assert f"{name}: rank 8 of 32, recombined" in report.notes[0]
    product = encoder.model.get_submodule(name).weight
    seen = torch.zeros(len(dense), dtype=torch.bool)
    seen[batches[0]["input_ids"].flatten()] = True
    lost = (dense - product).norm(dim=1)
    assert lost[seen].mean() < lost[~seen].mean()
    svd(encoder.model, Svd(rank=8, targets=("*word_embeddings",), execute="factored"), None)
    table = encoder.model.get_submodule(name)
    assert isinstance(table, FactoredEmbedding)
    assert (table.rank, table.num_embeddings, table.embedding_dim, table.padding_idx) == (8, len(dense), 32, 0)
    # It was of rank 8 already.
    assert torch.allclose(table(torch.arange(20)), product[:20], atol=1e-4)
    assert state_of(encoder.model).factors == {}


def test_layers_that_share_weights_keep_sharing(encoder):
    first, second = (encoder.model.bert.encoder.layer[i].intermediate.dense for i in (0, 1))
    second.weight = first.weight
    report = svd(encoder.model, Svd(rank=4, targets=("*intermediate.dense",)), None)
    first, second = (encoder.model.bert.encoder.layer[i].intermediate.dense for i in (0, 1))
    assert first is not second
    assert first.u.weight is second.u.weight
    assert first.v.weight is second.v.weight
    assert first.u.bias is not second.u.bias
    assert len(report.notes) == 1


def test_tied_head_is_recombined_with_the_table(decoder):
    targets = ("*embed_tokens",)
    assert check(copy.deepcopy(decoder), Svd(rank=4, targets=targets, execute="factored")) == [
        "model.embed_tokens and lm_head are one weight, looked up in one place and multiplied with in the other, and "
        "cannot be executed factored: set execute to recombined or auto, or leave them out of targets"
    ]
    svd(decoder, Svd(rank=4, targets=targets), None)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert int(torch.linalg.matrix_rank(decoder.lm_head.weight.double(), rtol=1e-5)) == 4
    assert set(state_of(decoder).factors) == {"model.embed_tokens", "lm_head"}


def test_factoring_a_second_time_finds_nothing_left(encoder):
    svd(encoder.model, Svd(rank=2), None)
    assert check(encoder.model, Svd(rank=1)) == [
        "targets name only layers that are factored already: name others, or factorize once"
    ]


def test_bound_finds_the_least_energy(encoder):
    asked = []

    def measure():
        weight = encoder.model.get_submodule("bert.encoder.layer.0.intermediate.dense").weight
        asked.append(int(torch.linalg.matrix_rank(weight.double(), rtol=1e-5)))
        return {"rank": asked[-1]}

    def missed(metrics):
        return [] if metrics["rank"] >= 12 else ["too low"]

    examples = dataclasses.replace(calibrated_on([], encoder), measure=measure, missed=missed, bounded=True)
    report = svd(encoder.model, Svd(targets=("*0.intermediate.dense",)), examples)
    ((_, rank),) = factored_ranks(encoder.model).items()
    assert 12 <= rank <= 13
    assert min(asked) < 12
    assert "is the least found that keeps the stage's bounds" in report.notes[0]


def test_bound_that_nothing_keeps_leaves_the_model_as_it_was(encoder):
    before = copy.deepcopy(encoder.state_dict())
    examples = dataclasses.replace(calibrated_on([], encoder), missed=lambda metrics: ["no"], bounded=True)
    report = svd(encoder.model, Svd(targets=("*intermediate.dense",)), examples)
    assert "every layer is left alone" in report.notes[0]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


# ---- before any work


def test_check_names_every_layer_whose_rank_is_too_high(encoder):
    meta = copy.deepcopy(encoder.model).to("meta")
    found = check(meta, Svd(rank=40, targets=("*intermediate.dense", "classifier")))
    assert found == [
        f"rank 40 is more than {name} has: {shape}: lower rank, or add it to `ignore`"
        for name, shape in (
            ("bert.encoder.layer.0.intermediate.dense", "64 × 32, at most 32"),
            ("bert.encoder.layer.1.intermediate.dense", "64 × 32, at most 32"),
            ("classifier", "2 × 32, at most 2"),
        )
    ]
    assert check(meta, Svd(rank=4, targets=("*nothing",))) == ["targets: '*nothing' matches no module"]
    assert check(meta, Svd(rank=4, targets=("*intermediate.dense",))) == []
    assert set(factored_ranks(meta).values()) == {4}
    assert meta.bert.encoder.layer[0].intermediate.dense.u.weight.is_meta


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("rank: -1", r"rank must be an integer of at least 1"),
        ("ratio: 1.0", r"ratio must be a number above 0 and at most 0.9999"),
        ("energy: 0", r"energy must be a number above 0"),
        ("rank: 2, ratio: 0.5", r"rank and ratio are given together"),
        ("execute: auto", r"nothing says how much is kept: give rank, ratio or energy, or max_drop"),
        ("rank: 2, execute: fast", r"must be one of auto, factored, recombined"),
    ],
)
def test_mistakes_of_a_recipe(recipe_folder, options, match):
    path = recipe_folder / "recipe.yaml"
    path.write_text(
        "name: a\ntask: text-classification\nmodel: minilm-sst2\n"
        f"compress:\n  - factorize: {{method: svd, {options}}}\n"
    )
    with pytest.raises(RecipeError, match=match):
        load_recipe(path)


# ---- the runtimes


@pytest.fixture(scope="module")
def factored(tiny_model) -> EncoderWithHead:
    encoder = EncoderWithHead(load_model(tiny_model(), "text-classification")).eval()
    svd(encoder.model, Svd(rank=8, targets=(*FEED_FORWARD, "*word_embeddings"), execute="factored"), None)
    return encoder


def test_factored_model_answers_the_same_in_onnx_runtime(factored, tmp_path):
    import onnxruntime

    graph = export_onnx(factored, text_tracing(factored, max_length=32))
    names = set(graph.modules.values())
    assert {"bert.encoder.layer.0.intermediate.dense.u", "bert.encoder.layer.0.intermediate.dense.v"} <= names
    with torch.no_grad():
        wanted = factored(**_ids()).numpy()
    arrays = {name: value.numpy() for name, value in _ids().items()}
    save_onnx(graph.model, tmp_path / "plain.onnx")
    found = onnxruntime.InferenceSession(tmp_path / "plain.onnx").run(None, arrays)[0]
    assert np.allclose(found, wanted, atol=1e-4)
    copied = copy.deepcopy(factored)
    dynamic_int8(copied.model, DynamicInt8(), None)
    plan = plan_of(copied.model)
    assert plan is not None
    assert "bert.encoder.layer.0.intermediate.dense.v" in plan.linears
    integers = quantize_graph(graph, plan)
    save_onnx(integers, tmp_path / "int8.onnx")
    stored = {item.name: item for item in integers.graph.initializer}
    assert sum(item.data_type == 3 for item in stored.values()) >= len(plan.linears)  # 3: int8
    found = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, arrays)[0]
    assert not np.array_equal(found, wanted)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max() + 0.05


def test_factored_model_answers_the_same_in_openvino(factored, tmp_path):
    import openvino

    config = export_openvino(export_onnx(factored, text_tracing(factored, max_length=32)), None, tmp_path, widths=())
    compiled = openvino.compile_model(str(tmp_path / "model.xml"), "CPU", config)
    with torch.no_grad():
        wanted = factored(**_ids()).numpy()
    found = compiled({name: value.numpy() for name, value in _ids().items()})[0]
    assert np.allclose(found, wanted, atol=1e-4)
