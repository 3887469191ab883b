"""Hidden states turned before weights are rounded: what the model computes stays, and large columns are gone."""

from __future__ import annotations

import copy

import pytest
import torch
from stage_context import calibrated_on
from tiny_families import LAYERS, answers, difference, make, reloaded

from archiver.architecture import residual_stream
from archiver.compression.modules import choose_modules
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.rotation import check_rotation, orthogonal, rotate, rotation_layers
from archiver.compression.quantize.targets import check_weight_only
from archiver.compression.quantize.weights import weight_only
from archiver.errors import RecipeError
from archiver.recipe.order import order_problems
from archiver.spec import Stage
from archiver.state.constraints import state_of

TURNS = {"model.embed_tokens.projection", "lm_head.v"}
CAN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite")
CANNOT = {
    "gpt2": "beside its layers, table and head",
    "gpt_neox": "gpt_neox.layers.0.input_layernorm is a LayerNorm",
    "cohere": "is a CohereLayerNorm",
    "gemma": "embed_tokens is a GemmaTextScaledWordEmbedding, and shares its weight with lm_head",
    "gemma2": "post_attention_layernorm: what it gives is not read by linear layers alone",
    "mixtral": "experts",
    "bert": "no table of tokens, or no head",
}


@pytest.mark.parametrize("width", [1, 2, 3, 12, 64, 96])
def test_the_matrix_is_orthogonal_and_its_seeds(width):
    found = orthogonal(width, 0)
    assert torch.allclose(found @ found.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.equal(found, orthogonal(width, 0))
    assert width < 12 or not torch.equal(found, orthogonal(width, 1))


def test_powers_of_two_have_hadamards_matrix():
    found = orthogonal(4, 0)
    assert (found.abs() == 0.5).all()
    rows = found / found[:, :1]  # without the signs: the Walsh–Hadamard matrix as Sylvester makes it
    assert rows.tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CAN)
def test_the_model_answers_as_before(name, tied):
    model = make(name, tie_word_embeddings=tied)
    expected, before = answers(model), copy.deepcopy(model.state_dict())
    table = model.get_input_embeddings().weight
    (note,) = rotate(model)
    assert difference(answers(model), expected) < 1e-5
    assert "logits moved by" in note and ("share a weight" in note) == tied
    moved = [
        key for key, value in before.items() if "layers." in key and not torch.equal(value, model.state_dict()[key])
    ]
    assert len(moved) >= LAYERS * 6  # norms, their readers, and writers
    if tied:
        assert rotation_layers(model) == TURNS
        assert model.model.embed_tokens.rows.weight is model.lm_head.u.weight is table
        assert torch.equal(table, before["lm_head.weight"])
    else:
        assert rotation_layers(model) == set()
    assert difference(answers(reloaded(model)), expected) < 1e-5


def test_values_by_hand():
    """Two key-value heads of eight values, two queries each; Phi-3 has 32 rows of queries and 16 of keys before them."""
    for name, first in (("llama", 0), ("phi3", 48)):
        found = residual_stream(make(name)).values
        assert len(found) == LAYERS
        assert found[1].rows.tolist() == [list(range(first, first + 8)), list(range(first + 8, first + 16))]
        assert found[1].columns.tolist() == torch.arange(32).view(2, 2, 8).tolist()
        assert found[1].after == "model.layers.1.self_attn.o_proj"


def test_a_scaled_table_of_its_own_is_turned():
    model = make("gemma", tie_word_embeddings=False)
    expected = answers(model)
    rotate(model)
    assert difference(answers(model), expected) < 1e-5


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_turned_says_why_and_stays(name):
    model = make(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match=CANNOT[name]):
        rotate(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.device("meta"):
        (line,) = check_rotation(make(name))
    assert CANNOT[name] in line and line.startswith("rotate: ")


def test_auto_leaves_what_cannot_be_turned_alone():
    model = make("gpt_neox")
    expected = answers(model)
    (note,) = rotate(model, where_it_can=True)
    assert note.startswith("hidden states are not turned: gpt_neox.layers.0.input_layernorm is a LayerNorm")
    assert torch.equal(answers(model), expected)
    options = WeightOnly(bits=4, group_size=16, rotate="auto")
    with torch.device("meta"):
        assert check_weight_only(make("gpt_neox"), options) == []
    assert any("are not turned" in line for line in weight_only(model, options, calibrated_on([])).notes)


def test_auto_knows_models_that_are_not_of_transformers():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 4))
    options = WeightOnly(bits=4, group_size=16, rotate="auto", targets=("0",))
    notes = weight_only(model, options, calibrated_on([])).notes
    assert any("Sequential has no table of tokens" in note for note in notes)
    assert set(state_of(model).constraints) == {"0"}


def test_a_reader_that_was_not_found_is_noticed(monkeypatch):
    """The model is asked before and after: whatever the module tree hides, nothing wrong goes on."""
    model = make("llama")
    whole = residual_stream(model)
    less = dict(whole.readers)
    less["model.layers.0.input_layernorm"] = less["model.layers.0.input_layernorm"][:-1]
    monkeypatch.setattr(
        "archiver.compression.quantize.rotation.residual_stream",
        lambda model: type(whole)(whole.width, whole.table, whole.head, less, whole.offsets, whole.writers, ()),
    )
    with pytest.raises(RecipeError, match="reads its hidden states in a way that was not found"):
        rotate(model)


def test_the_check_leaves_the_layers_that_the_stage_will():
    options = WeightOnly(bits=4, group_size=16, rotate=True, targets=("@layers",))
    with torch.device("meta"):
        model = make("llama", tie_word_embeddings=True)
        assert check_weight_only(model, options) == []
        tables = choose_modules(model, ("@embeddings", "@head"))
    assert tables == ["model.embed_tokens.rows", "model.embed_tokens.projection", "lm_head.v", "lm_head.u"]


def test_large_columns_cost_less_when_turned():
    """Two of 32 hidden channels are 40 times the others, and their norm's weights make up for it."""
    model = make("llama", tie_word_embeddings=True)
    loud = torch.ones(32)
    loud[[3, 20]] = 40.0
    with torch.no_grad():
        for name, after in residual_stream(model).readers.items():
            if "layers" in name:
                model.get_submodule(name).weight.div_(loud)
                for reader in after:
                    model.get_submodule(reader).weight.mul_(loud)
    expected = answers(model)
    errors = {}
    for turned in (False, True):
        rounded = copy.deepcopy(model)
        options = WeightOnly(bits=4, group_size=16, targets=("@layers",), rotate=turned)
        report = weight_only(rounded, options, calibrated_on([]))
        errors[turned] = float((answers(rounded) - expected).square().mean())
        assert set(state_of(rounded).constraints) == {
            name for name, module in rounded.named_modules()
            if isinstance(module, torch.nn.Linear) and "layers" in name
        }  # fmt: skip
        assert any("hidden states and heads" in note for note in report.notes) == turned
    assert errors[True] < errors[False] / 2


def test_the_layers_that_turn_are_left_to_a_stage_that_names_them():
    model = make("llama", tie_word_embeddings=True)
    weight_only(model, WeightOnly(bits=8, rotate=True), calibrated_on([]))
    assert not TURNS & set(state_of(model).constraints)
    assert weight_only(model, WeightOnly(bits=8, group_size=16, targets=("@head",)), calibrated_on([]))
    assert {"lm_head.v", "lm_head.u"} <= set(state_of(model).constraints)


def stage(verb: str, method: str, **options: object) -> Stage:
    from archiver.compression import METHODS

    return Stage(verb, method, METHODS[verb][method].options(**options))


def test_it_stands_first():
    turned = stage("quantize", "weight-only", bits=4, rotate=True, targets=("@layers",))
    tables = stage("quantize", "weight-only", bits=8, group_size=16, targets=("@head",))
    pruned, cut = stage("prune", "l1", sparsity=0.5), stage("prune", "structured", neurons=0.5)
    assert order_problems([cut, stage("retrain", "retrain"), turned, tables]) == []
    for earlier in (tables, pruned, stage("factorize", "svd", ratio=0.5)):
        ((index, reason),) = order_problems([earlier, turned])
        assert index == 1 and "turns hidden states" in reason
    assert "remove one of them" in WeightOnly(rotate=True, aware=stage("retrain", "retrain").options).mistakes(False)[0]
