"""The plain handler answers each task as transformers does, a batch of requests together."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from archiver.bench.stock_handler import StockHandler


def answers_of(folder: Path, task: str, auto_class: str, *bodies: Any) -> list[Any]:
    """The answers of requests that come together."""
    handler = StockHandler()
    settings = {"task": task, "auto_class": auto_class, "max_length": 48}
    context = SimpleNamespace(
        system_properties={"model_dir": str(folder)}, model_yaml_config={"handler": settings}, manifest={}
    )
    handler.initialize(context)
    data = [{"body": body if isinstance(body, (bytes, dict)) else json.dumps(body).encode()} for body in bodies]
    return [json.loads(answer) for answer in handler.handle(data, context)]


def test_token_classification_is_the_pipeline(tiny_model: Callable[..., Path], sentences: tuple[str, ...]) -> None:
    import transformers

    folder = tiny_model("bert", "token-classification", id2label={0: "O", 1: "B-X", 2: "I-X"})
    found = answers_of(
        folder,
        "token-classification",
        "AutoModelForTokenClassification",
        *({"inputs": text, "parameters": {"aggregation_strategy": "simple"}} for text in sentences),
    )
    pipe = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="simple")
    for text, answer in zip(sentences, found, strict=True):
        expected = pipe(text)
        assert [(each["word"], each["start"]) for each in answer] == [
            (each["word"], each["start"]) for each in expected
        ]


def test_question_answering_finds_the_best_span_of_all_windows(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("bert", "question-answering")
    asked = [
        {"question": "who runs fast?", "context": "the dog runs fast, the cat eats! " * 9},
        {"question": "what is very good", "context": "this film is very good"},
    ]
    found = answers_of(
        folder, "question-answering", "AutoModelForQuestionAnswering", *({"inputs": each} for each in asked)
    )
    for each, answer in zip(asked, found, strict=True):
        assert answer["answer"] == each["context"][answer["start"] : answer["end"]] != ""
        assert 0 < answer["score"] <= 1
    alone = answers_of(folder, "question-answering", "AutoModelForQuestionAnswering", {"inputs": asked[1]})
    assert alone[0] == pytest.approx(found[1], abs=1e-5)


def test_ranking_and_similarity(tiny_model: Callable[..., Path], sentences: tuple[str, ...]) -> None:
    import transformers

    folder = tiny_model("bert", "text-classification", id2label={0: "score"})
    texts = list(sentences[1:4])
    ranked, other = answers_of(
        folder,
        "text-ranking",
        "AutoModelForSequenceClassification",
        {"inputs": {"query": sentences[0], "texts": texts}},
        {"inputs": {"query": sentences[1], "texts": texts[:1]}},
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        [sentences[0]] * 3, texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**batch).logits[:, 0].sigmoid()
    assert [each["index"] for each in ranked] == expected.argsort(descending=True).tolist() and len(other) == 1
    assert [each["score"] for each in ranked] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)
    (close,) = answers_of(
        tiny_model("bert", "feature-extraction"),
        "sentence-similarity",
        "AutoModel",
        {"inputs": {"source_sentence": texts[0], "sentences": texts}},
    )
    assert len(close) == 3 and close[0] == pytest.approx(1, abs=1e-5)


def test_images_by_bytes_and_base64(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "PNG")
    task, auto_class = "image-classification", "AutoModelForImageClassification"
    raw, text = answers_of(
        tmp_path, task, auto_class, file.getvalue(), {"inputs": base64.b64encode(file.getvalue()).decode()}
    )
    assert [each["label"] for each in raw] == [each["label"] for each in text] and set(raw[0]) == {"label", "score"}
    # One batch of two: on some processors the rows of a product differ in their last bit.
    assert [each["score"] for each in raw] == pytest.approx([each["score"] for each in text], abs=1e-6) and len(
        raw
    ) == 2


def test_recordings_of_any_rate(tmp_path: Path) -> None:
    import soundfile
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embedding_groups=2,
        num_conv_pos_embeddings=4,
        num_labels=3,
        classifier_proj_size=8,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(4000) / 9)[:, None] * np.ones(2), 8000, format="WAV")
    (answer,) = answers_of(tmp_path, "audio-classification", "AutoModelForAudioClassification", file.getvalue())
    assert sum(each["score"] for each in answer) == pytest.approx(1, abs=1e-3)
