"""The plain archive to compare with answers as transformers does."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.bench.stock import build_stock
from archiver.errors import UnsupportedModelError
from archiver.torchserve.client import predict_grpc, predict_rest
from archiver.torchserve.server import TorchServe


def test_both_tasks_served_answer_as_transformers_does(
    tmp_path: Path, tiny_model: Callable[..., Path], sentences: tuple[str, ...]
) -> None:
    import torch
    import transformers

    classifier, encoder = tiny_model("bert", "text-classification"), tiny_model("bert", "feature-extraction")
    archives = [
        build_stock(classifier, "text-classification", "AutoModelForSequenceClassification", tmp_path, name="labels"),
        build_stock(encoder, "feature-extraction", "AutoModel", tmp_path, name="vectors"),
    ]
    text = sentences[0]
    tokens = transformers.AutoTokenizer.from_pretrained(classifier)(text, return_tensors="pt")
    with torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
        scores = model(**tokens).logits.softmax(-1)[0]
        vector = transformers.AutoModel.from_pretrained(encoder)(**tokens).last_hidden_state[0].mean(dim=0)
    with TorchServe(archives) as server:
        server.wait_ready(180)
        token = server.inference_key
        answers = [
            predict_rest(server.prediction_url("labels"), text.encode(), "text/plain", token=token),
            predict_rest(server.prediction_url("labels"), json.dumps({"inputs": text}).encode(), token=token),
            predict_grpc(server.grpc_target, "labels", json.dumps({"inputs": text}).encode(), token=token),
        ]
        pooled = predict_rest(server.prediction_url("vectors"), json.dumps({"inputs": text}).encode(), token=token)
    for answer in answers:
        (best,) = json.loads(answer.body)
        assert best["label"] == model.config.id2label[int(scores.argmax())]
        assert best["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    expected = (vector / vector.norm()).tolist()
    assert json.loads(pooled.body) == pytest.approx(expected, abs=1e-5)


def test_the_archive_holds_what_from_pretrained_reads_and_no_more(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_model("bert", "text-classification"), model)
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    (model / "onnx").mkdir()
    auto_class = "AutoModelForSequenceClassification"
    archive = build_stock(model, "text-classification", auto_class, tmp_path / "out", max_length=32, batch_size=4)
    with zipfile.ZipFile(archive) as contents:
        names = set(contents.namelist())
        settings = contents.read("model-config.yaml").decode()
    assert {"model.safetensors", "config.json", "tokenizer.json", "stock_handler.py"} <= names
    assert not [name for name in names if name.endswith(".bin") or name.startswith("onnx")]
    assert "batchSize: 4" in settings and "max_length: 32" in settings and "maxBatchDelay: 20" in settings
    assert list((tmp_path / "out").iterdir()) == [archive]


def test_what_it_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match="no plain handler for recommendation: transformers has no pipeline"
    ):
        build_stock(tmp_path, "recommendation", "AutoModel", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"needs config\.json and \*\.safetensors, has \[\]"):
        build_stock(tmp_path, "fill-mask", "AutoModelForMaskedLM", tmp_path)
