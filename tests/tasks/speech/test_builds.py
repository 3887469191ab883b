"""Archives of models over sound: cut, retrained, in 8 bits, refused where they cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from audio_models import CLASSES, CTC, LABELS, build_audio_model, sounds
from hearing import wav

import archiver
from archiver.errors import RecipeError
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.tasks.speech.recognition import written
from handlers.tasks.speech.ctc import Alphabet

RECOGNITION, CLASSIFICATION = "automatic-speech-recognition", "audio-classification"
CUT = [
    {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
    {"retrain": {"epochs": 1, "batch_size": 4}},
]


def recipe_for(folder: Path, task: str, kind: str = "wav2vec2", rows: int = 10, **more: Any) -> Path:
    """folder/recipe.yaml over a tiny model, with a list of recordings beside it."""
    auto_class, column = (CTC, "transcript") if task == RECOGNITION else (CLASSES, "label")
    model = folder / "model"
    model.mkdir()
    build_audio_model(model, kind, auto_class)
    lines = [f"audio\t{column}"]
    for place, samples in enumerate(sounds(*(2_000 + 900 * place for place in range(rows)))):
        (folder / f"{place}.wav").write_bytes(wav(samples))
        lines.append(f"{place}.wav\t{'ab cd' if task == RECOGNITION else LABELS[place % 5]}")
    (folder / "list.tsv").write_text("\n".join(lines) + "\n")
    recipe = {
        "name": "tiny",
        "task": task,
        "model": "model",
        "data": {"train": "list.tsv", "validation": "list.tsv"},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def built(recipe: Path) -> Any:
    path = pipeline.build(load_recipe(recipe), recipe.parent / "store", Progress(quiet=True)).path
    return archiver.inspect(path)


def test_a_recogniser_is_cut_retrained_and_rounded(tmp_path):
    stages = [*CUT, {"quantize": {"method": "static-int8"}}]
    recipe = recipe_for(tmp_path, RECOGNITION, compress=stages, serve={"runtime": "onnxruntime"})
    report = built(recipe)
    assert [stage["method"] for stage in report["stages"]] == ["prune/structured", "retrain", "quantize/static-int8"]
    assert {"wer", "cer", "word_accuracy", "agreement"} <= report["metrics"]["compressed"].keys()
    assert report["metrics"]["original"]["agreement"] == 1
    assert report["timings"]["unit"] == "seconds of sound"
    assert report["timings"]["real_time_factor"].keys() == {"original", "compressed"}


@pytest.mark.parametrize("kind", ["hubert", "audio-spectrogram-transformer"])
def test_a_classifier_is_cut_and_retrained(tmp_path, kind):
    report = built(recipe_for(tmp_path, CLASSIFICATION, kind, compress=CUT, serve={"runtime": "openvino"}))
    assert {"accuracy", "cross_entropy", "agreement"} <= report["metrics"]["compressed"].keys()


def test_init_knows_what_a_model_hears(tmp_path):
    recipe_for(tmp_path, RECOGNITION)
    text = write_recipe(tmp_path / "model")
    assert "task: automatic-speech-recognition" in text and "chunk_seconds: 30" in text
    build_audio_model(tmp_path / "model", "hubert", CLASSES)  # …ForSequenceClassification, as texts' classifiers are
    assert "task: audio-classification" in write_recipe(tmp_path / "model")
    starter = tmp_path / "starter.yaml"
    starter.write_text(write_recipe(tmp_path / "model"))
    (tmp_path / "validation.tsv").write_text("0.wav\tzero\n")
    assert load_recipe(starter).task == CLASSIFICATION


def mistakes(recipe: Path) -> str:
    with pytest.raises(RecipeError, match="mistake|does not fit") as caught:
        archiver.check(load_recipe(recipe))
    return "\n".join(caught.value.problems)


def test_what_cannot_work_is_said_before_any_work(tmp_path):
    recipe = recipe_for(tmp_path, RECOGNITION, serve={"chunk_seconds": 30, "max_seconds": 20})
    config = json.loads((tmp_path / "model/config.json").read_text()) | {"add_adapter": True}
    (tmp_path / "model/vocab.json").unlink()
    (tmp_path / "model/preprocessor_config.json").unlink()
    (tmp_path / "list.tsv").write_text("audio\ttranscript\nnowhere.wav\tab\n")
    found = mistakes(recipe)
    for sentence in (
        "serve.chunk_seconds is 30; at most serve.max_seconds, 20, is allowed",
        "it has no vocab.json",
        "it has no preprocessor_config.json or processor_config.json",
        "list.tsv:2: nowhere.wav cannot be read: No such file or directory",
    ):
        assert sentence in found
    assert config["add_adapter"]


def test_recordings_are_needed(tmp_path):
    recipe = recipe_for(tmp_path, CLASSIFICATION)
    text = yaml.safe_load(recipe.read_text())
    del text["data"]
    recipe.write_text(yaml.safe_dump(text))
    assert "data.validation is missing: audio-classification is measured" in mistakes(recipe)


def test_columns_and_keys_of_other_tasks(tmp_path):
    recipe = recipe_for(tmp_path, CLASSIFICATION, serve={"chunk_seconds": 20})
    text = yaml.safe_load(recipe.read_text())
    text["data"]["columns"] = {"audio": 0, "transcript": 1}
    recipe.write_text(yaml.safe_dump(text))
    with pytest.raises(RecipeError, match="has 2 mistakes") as caught:
        load_recipe(recipe)
    found = "\n".join(caught.value.problems)
    assert "data.columns.transcript says nothing to audio-classification; allowed: audio, label" in found
    assert "serve.chunk_seconds is for automatic-speech-recognition" in found


def test_transcripts_are_learnt_in_the_letters_that_the_model_has():
    assert written("Ab c", Alphabet(("_", "|", "A", "B"), "_")) == "AB C"
    assert written("Ab c", Alphabet(("_", "|", "a", "b"), "_")) == "ab c"
    assert written("Ab c", Alphabet(("_", "|", "a", "B"), "_")) == "Ab c"
