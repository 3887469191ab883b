"""text-ranking, zero-shot-classification, sentence-similarity and fill-mask: from recipe to archive, compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built import build, quantize
from task_recipes import MODELS, recipe_of

from archiver.evaluation import speed
from archiver.recipe.load import load_recipe

METRICS = {
    "text-ranking": {"ndcg@10", "mrr@10", "hit@10", "agreement"},
    "zero-shot-classification": {"accuracy", "agreement", "f1", "cross_entropy"},
    "sentence-similarity": {"cosine", "recall@10", "spearman"},
    "fill-mask": {"agreement", "accuracy", "top5"},
}


@pytest.mark.parametrize(("task", "runtime"), list(zip(METRICS, ("openvino", "onnxruntime") * 2, strict=True)))
def test_cut_taught_and_quantized(tiny_model: Any, tmp_path: Path, task: str, runtime: str) -> None:
    kind, config = MODELS[task]
    stages = [
        {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
        {"retrain": {"epochs": 1, "batch_size": 8}},
        *quantize("static-int8", samples=16),
    ]
    model = tiny_model("bert", kind, num_hidden_layers=1, **config)
    built = build(recipe_of(tmp_path, model, task, compress=stages, serve={"runtime": runtime}), tmp_path / "store")
    metrics = built.manifest["metrics"]
    assert set(metrics["compressed"]) == set(metrics["original"]) == METRICS[task]
    assert metrics["original"].get("agreement", metrics["original"].get("cosine")) == 1.0
    # Of a tiny model the graph's text is larger than its weights.
    weights = sum(file["bytes"] for file in built.manifest["files"] if file["path"] in ("model.bin", "model.onnx"))
    assert weights < built.manifest["size"]["original_bytes"] / 2


def test_words_of_fewer_tokens_on_torch(tiny_model: Any, tmp_path: Path) -> None:
    """Tokens that the texts do not need are dropped: ids change, the words that are found do not."""
    stages = [{"share": {"method": "vocabulary", "keep": "train"}}]
    model = tiny_model("bert", "fill-mask")
    recipe = recipe_of(tmp_path, model, "fill-mask", compress=stages, serve={"runtime": "torch"})
    built = build(recipe, tmp_path / "store")
    metrics = built.manifest["metrics"]
    assert metrics["original"]["agreement"] == 1.0
    # A word that was dropped cannot be found any more; all others are, as before.
    assert 0 < metrics["compressed"]["agreement"] <= 1.0
    assert metrics["compressed"]["accuracy"] >= metrics["original"]["accuracy"]


def test_the_embedded_model_orders_real_pairs_as_before(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """all-MiniLM-L6-v2 in static int8 on pairs of the STS benchmark: the order of their similarities stays."""
    assert speed.sorted_batches.__kwdefaults__ is not None
    monkeypatch.setitem(speed.sorted_batches.__kwdefaults__, "limit", 32)  # how fast it is, nobody looks at
    rows = (shared / "data/stsb/dev.csv").read_text(encoding="utf-8").splitlines()[:300]
    (tmp_path / "dev.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "name: similar\ntask: sentence-similarity\nmodel: embedded:all-MiniLM-L6-v2\n"
        "data: {train: embedded:cpython, validation: dev.csv, columns: {text: 0, text_pair: 1, label: 2}}\n"
        "compress: [quantize: {method: static-int8, samples: 64}]\n"
        "serve: {runtime: openvino, max_length: 64}\n"
    )
    built = build(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "store")
    original, compressed = (built.manifest["metrics"][key]["spearman"] for key in ("original", "compressed"))
    assert original > 0.8
    assert compressed > original - 0.01
