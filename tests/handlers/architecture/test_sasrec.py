"""SASRec as a family of transformers: found, loaded, cut; each place sees what stands before it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archiver.architecture import layer_list
from archiver.architecture.discovery import layer_parts
from archiver.compression.roles import roles_of
from archiver.errors import UnsupportedModelError
from archiver.models.facts import inspect_model
from archiver.models.load import load_model, skeleton
from handlers.architecture.outputs.families import register
from handlers.architecture.outputs.next_item import NextItem
from handlers.architecture.outputs.sasrec import SasRecConfig, SasRecForNextItem

ITEMS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sasrec")
    register()
    torch.manual_seed(0)
    SasRecForNextItem(config()).save_pretrained(path)
    return path


def config() -> SasRecConfig:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 12}
    return SasRecConfig(num_items=ITEMS, initializer_range=0.3, **sizes)


def inspected(path: Path):
    return inspect_model(path, "AutoModel", base_only=False, input_name="item_ids")


def test_it_is_found_and_loaded_like_any_family(folder):
    facts = inspected(folder)
    assert (facts.vocab_size, facts.hidden_size, facts.max_positions, facts.num_layers) == (ITEMS, 16, 12, 2)
    assert facts.causal and facts.architecture == "SasRecForNextItem"
    model = load_model(folder, "AutoModel", base_only=False)
    assert model.head.weight is model.model.item_embeddings.weight
    with torch.device("meta"):
        bare = skeleton(folder, "AutoModel", base_only=False)
    assert {name: value.shape for name, value in bare.named_parameters()} == {
        name: value.shape for name, value in model.named_parameters()
    }
    with pytest.raises(UnsupportedModelError, match="takes item_ids"):
        inspect_model(folder, "AutoModel", input_name="pixel_values")


def test_its_layers_can_be_cut(folder):
    model = load_model(folder, "AutoModel", base_only=False)
    assert layer_list(model)[0] == "model.layers"
    for parts in layer_parts(model):
        assert {(cut.kind, cut.blocks) for cut in parts.cuts} == {("heads", 4), ("neurons", 24)}, parts.refused
    roles = roles_of(model)
    assert roles["@head"] == {"head"} and "model.item_embeddings" in roles["@embeddings"]
    assert len(roles["@attention"]) == 8 and len(roles["@feed-forward"]) == 4


def test_a_place_sees_what_stands_before_it_and_padding_changes_nothing(folder):
    module = NextItem(load_model(folder, "AutoModel", base_only=False))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    every = torch.arange(ITEMS)
    with torch.inference_mode():
        places = module(ids, torch.ones_like(ids), every)
        for length in range(1, 6):
            alone = module(ids[:, :length], torch.ones(1, length, dtype=torch.int64))
            torch.testing.assert_close(alone, places[:, length - 1])
        padded = torch.tensor([[3, 1, 4, 39, 39], [3, 1, 4, 1, 5]])
        mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
        torch.testing.assert_close(module(padded, mask)[0], places[0, 2])
        some = torch.tensor([7, 2])
        torch.testing.assert_close(module(ids, torch.ones_like(ids), some), places[..., some])


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="hidden_size 10 is not divided by num_attention_heads 4"):
        SasRecConfig(hidden_size=10, num_attention_heads=4)
