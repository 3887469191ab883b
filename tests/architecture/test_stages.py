"""The stages that rest on discovery, on families whose layers are laid out each in its own way."""

from __future__ import annotations

import copy

import pytest
import torch
from objectives import OBJECTIVES
from stage_context import calibrated_on
from tiny_families import FAMILIES, IDS, answers, difference, make

from archiver.architecture import Cut, cut_layer, cuts_of
from archiver.compression.context import StageContext
from archiver.compression.prune.importance import block_scores, per_block
from archiver.compression.prune.structured import check, structured
from archiver.compression.prune.structured_options import Structured
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.quantize.weights import weight_only

FAMILY = ["qwen3", "gemma3_text", "phi3", "gpt_neox", "modernbert", "deberta-v2", "albert", "qwen2_moe"]


class Head(torch.nn.Module):
    inputs = ("input_ids", "attention_mask")

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        more = {"use_cache": False} if hasattr(self.model, "lm_head") or hasattr(self.model, "embed_out") else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits


def examples(model: torch.nn.Module, name: str) -> StageContext:
    decoder = FAMILIES[name].decoder
    labels = IDS if decoder else torch.tensor([0, 1, 0])
    found = calibrated_on([{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}], Head(model))
    if decoder:
        found.objective = OBJECTIVES["text-generation"]
    return found


@pytest.mark.parametrize("importance", ["taylor", "magnitude", "activation"])
@pytest.mark.parametrize("name", FAMILY)
def test_structures_that_do_nothing_go_first(name, importance):
    """Structure 0 of every cut is made next to nothing: without it the answers are what they were."""
    model = make(name)
    before = {(cut.consumer, cut.kind): cut.blocks for kind in ("heads", "neurons") for cut in cuts_of(model, kind)}
    for kind in ("heads", "neurons"):
        for cut in cuts_of(model, kind):
            with torch.no_grad():
                model.get_submodule(cut.consumer).weight[:, cut.columns == 0] *= 1e-5
                for producer, owner in cut.producers.items():
                    if kind == "neurons":
                        model.get_submodule(producer).weight[owner == 0] *= 1e-4
    expected = answers(model)
    options = Structured(
        heads=0.2 if FAMILIES[name].heads == (4,) else 0.5, neurons=0.02, importance=importance, samples=3
    )
    assert check(copy.deepcopy(model), options) == []
    structured(model, options, examples(model, name))
    after = {(cut.consumer, cut.kind): cut.blocks for kind in ("heads", "neurons") for cut in cuts_of(model, kind)}
    assert all(after.get(key, 1) < count for key, count in before.items() if key[1] == "neurons" or count > 2)
    assert difference(answers(model), expected) < 1e-3


@pytest.mark.parametrize("algorithm", ["awq", "gptq"])
@pytest.mark.parametrize("name", FAMILY)
def test_four_bits(name, algorithm):
    model = make(name)
    original = answers(model)
    linears = [
        key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "head" not in key
    ]
    options = WeightOnly(bits=4, group_size=16, algorithm=algorithm, samples=3)
    report = weight_only(model, options, examples(model, name))
    if algorithm == "awq":
        scaled = int(report.notes[1].partition("the inputs of ")[2].split()[0])
        assert 0 < scaled <= len(linears)
    near = torch.nn.functional.cosine_similarity(answers(model).flatten(), original.flatten(), dim=0)
    assert near > 0.9


REFUSED = [
    (
        "bloom",
        Structured(heads=0.5),
        "heads cannot be cut in transformer.h.0: a trial cut of self_attention.dense could not",
    ),
    (
        "qwen3_moe",
        Structured(neurons=0.5),
        "neurons cannot be cut in model.layers.0: its feed-forward layers are experts",
    ),
    ("albert", Structured(layers=0.5), "layers: AlbertForSequenceClassification has 1 members in "),
    (
        "modernbert",
        Structured(layers=(1,)),
        "layers: layer 1 of ModernBertForSequenceClassification cannot become layer 0",
    ),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_cannot_be_cut_is_said_before_any_work(name, options, message):
    with torch.device("meta"):
        model = make(name, num_hidden_layers=2)
    found = check(model, options)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_sums_of_structures_by_hand():
    values = torch.tensor([[1.0, 2, 4, 8, 16, 32]])
    runs = Cut("heads", "o", torch.tensor([0, 0, 1, 1, 2, 2]), {}, 3)
    assert per_block(values, runs).tolist() == [[3, 12, 48]]
    woven = Cut("heads", "o", torch.tensor([0, 1, 2, 0, 1, 2]), {}, 3)
    assert per_block(values, woven).tolist() == [[9, 18, 36]]
    uneven = Cut("heads", "o", torch.tensor([1, 0, 0, 0, 1, 1]), {}, 2)
    assert per_block(values[0, :6], uneven).tolist() == [14, 49]
    unlike = Cut("heads", "o", torch.tensor([1, 0, 0, 0, 0, 1]), {}, 2)
    assert per_block(values, unlike).tolist() == [[30, 33]]


def test_magnitude_by_hand():
    """‖W_down[:, j]‖² + ‖W_up[j]‖² of neurons; of fused rows each counts for the neuron that it feeds."""
    model = make("phi3")
    cut = cuts_of(model, "neurons")[0]
    down, up = (
        model.model.layers[0].mlp.down_proj.weight,
        model.model.layers[0].mlp.gate_up_proj.weight.view(2, 48, 32),
    )
    expected = (down.square().sum(0) + up.square().sum((0, 2))).sqrt()
    torch.testing.assert_close(block_scores(model, [cut], "magnitude", examples(model, "phi3"), 1)[0], expected)


@pytest.mark.parametrize("kept", [[], [4], [-1, 0]])
def test_structures_that_are_not_there_cannot_be_kept(kept):
    model = make("bert")
    with pytest.raises(ValueError, match="one or more of 0 to 3 are allowed"):
        cut_layer(model, cuts_of(model, "heads")[0], torch.tensor(kept, dtype=torch.int64))
