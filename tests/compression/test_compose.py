"""Stages one after another in one recipe, on a tiny real model, through to an archive that verifies."""

from __future__ import annotations

import pytest
from built import build, recipe_of
from places import ROOT

from archiver.errors import RecipeError
from archiver.packaging.verify import verify
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe

RECIPES = sorted((ROOT / "archiver" / "recipes").glob("*.yaml"))
SHORT = {"epochs": 1, "learning_rate": 1e-3}

CHAINS = {
    "prune, retrain, share, retrain": [
        {"prune": {"method": "l1", "sparsity": 0.5}},
        {"retrain": SHORT},
        {"share": {"method": "codebook", "bits": 3}},
        {"retrain": SHORT},
    ],
    "cut, retrain, share layers, factorize, int8": [
        {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
        {"retrain": SHORT},
        {"share": {"method": "layers", "groups": 1}},
        {"factorize": {"method": "svd", "ratio": 0.5, "targets": "@feed-forward"}},
        {"quantize": {"method": "static-int8", "samples": 8}},
    ],
    "vocabulary, codebook, int8": [
        {"share": {"method": "vocabulary", "keep": "train"}},
        {"share": {"method": "codebook", "bits": 4, "targets": ["@layers", "@embeddings"], "aware": SHORT}},
        {"quantize": {"method": "static-int8", "samples": 8}},
    ],
    "masks under a grid": [
        {"prune": {"method": "wanda", "n_m": "2:4", "samples": 8}},
        {"quantize": {"method": "ternary", "aware": SHORT}},
        {"retrain": SHORT},
    ],
}


@pytest.mark.parametrize(
    ("runtime", "chain"),
    [("onnxruntime", chain) for chain in CHAINS] + [("torch", chain) for chain in list(CHAINS)[:2]],
)
def test_a_chain_becomes_an_archive(tiny_model, tmp_path, chain, runtime):
    chosen = [{verb: body | {"measure": True} for verb, body in stage.items()} for stage in CHAINS[chain]]
    recipe = recipe_of(tmp_path, tiny_model(), compress=chosen, serve={"runtime": runtime})
    built = build(recipe, tmp_path / "store")
    assert verify(built.path) == []
    stages = built.manifest["stages"]
    assert len(stages) == len(CHAINS[chain])
    changed = [stage for stage in stages if stage["method"] != "quantize/static-int8"]  # which is planned for the end
    assert all(stage["metrics"]["after"].keys() == stage["metrics"]["before"].keys() for stage in changed)
    assert len(built.timings["stages"]) == len(changed)
    assert stages[-1]["weight_bytes"] <= built.manifest["size"]["original_bytes"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["tiny.mar"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_sound(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem or path.stem in ("default", "sst2")


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "default"], ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_real_models(shared, path):
    from benchmarks.compression import DECODER, ENCODER

    recipe = load_recipe(path, DECODER if path.stem.startswith(("chat", "decoder-", "llm-")) else ENCODER)
    pipeline.check_only(recipe, Progress(quiet=True))
    assert recipe.compress


BAD = {
    "sparsity 1.0": ({"prune": {"method": "l1", "sparsity": 1.0}}, "sparsity"),
    "negative rank": ({"factorize": {"method": "svd", "rank": -1}}, "rank"),
    "no such module": ({"prune": {"method": "l1", "sparsity": 0.5, "targets": "nothing*"}}, "'nothing\\*' matches no"),
    "a group that divides nothing": (
        {"quantize": {"method": "weight-only", "bits": 4, "group_size": 7}},
        "group_size 7 does not divide the in_features of bert.encoder.layer.0.attention.self.query",
    ),
    "no training data": ({"retrain": {"epochs": 1}}, "learns from data.train, which is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_stages_are_found_before_any_work(tiny_model, tmp_path, name):
    stage, message = BAD[name]
    with pytest.raises(RecipeError, match=message) as caught:
        data = {"train": None} if name == "no training data" else {}
        recipe = recipe_of(tmp_path, tiny_model(), compress=[stage], data=data)
        pipeline.check_only(recipe, Progress(quiet=True))
    assert caught.value.exit_code == 2
