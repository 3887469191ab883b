"""text-ranking, zero-shot-classification, sentence-similarity and fill-mask from recipe to archive, compressed each way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built import build, quantize
from task_recipes import MODELS, recipe_of

STAGES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "weight-only": quantize("weight-only"),
    "static-int8": quantize("static-int8", samples=16),
    "cut": [
        {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
        {"retrain": {"epochs": 1, "batch_size": 8}},
        *quantize("static-int8", samples=16),
    ],
}
METRICS = {
    "text-ranking": {"ndcg@10", "mrr@10", "hit@10", "agreement"},
    "zero-shot-classification": {"accuracy", "agreement", "f1", "cross_entropy"},
    "sentence-similarity": {"cosine", "recall@10", "spearman"},
    "fill-mask": {"agreement", "accuracy", "top5"},
}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("task", METRICS)
def test_every_task_is_built(tiny_model: Any, tmp_path: Path, task: str, stages: str, runtime: str) -> None:
    kind, config = MODELS[task]
    recipe = recipe_of(
        tmp_path, tiny_model("bert", kind, **config), task, compress=STAGES[stages], serve={"runtime": runtime}
    )
    built = build(recipe, tmp_path / "store")
    metrics = built.manifest["metrics"]
    assert set(metrics["compressed"]) == set(metrics["original"]) == METRICS[task]
    if stages == "none":
        assert metrics["compressed"] == pytest.approx(metrics["original"], abs=0.02)
        assert metrics["original"].get("agreement", metrics["original"].get("cosine")) == 1.0
