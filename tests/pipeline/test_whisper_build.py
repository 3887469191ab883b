"""A tiny model of Whisper's form from a recipe to an archive, read in 8 bits, with times of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from integer_products import takes_integers
from tiny_whisper import RATE, build_tiny_whisper, noise

from archiver.errors import RecipeError
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.packaging.verify import verify
from archiver.pipeline.build import build, check_only
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.spec import Recipe
from handlers.inputs.media.audio_file import Recording


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "whisper"
    build_tiny_whisper(folder)
    return folder


def recipe_of(folder: Path, model: Path, **more: Any) -> Recipe:
    for index, seconds in enumerate((1.0, 3.0)):
        soundfile.write(folder / f"{index}.wav", noise(seconds, index), RATE, subtype="PCM_16")
    (folder / "list.tsv").write_text("0.wav\tone word\n1.wav\tanother word\n")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "task": "automatic-speech-recognition",
        "model": str(model),
        "data": {"train": "list.tsv", "validation": "list.tsv", "columns": {"audio": 0, "transcript": 1}},
        "compress": [{"quantize": {"method": "static-int8"}}],
        "serve": {"examples": 1, "runtime": "openvino", "max_seconds": 30},
    } | more
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml")


def test_an_archive_stands_on_its_own_and_tells_when_words_are_said(model, tmp_path) -> None:
    built = build(recipe_of(tmp_path, model), tmp_path / "store", Progress(quiet=True))
    assert verify(built.path) == []
    assert {"wer", "cer", "word_accuracy", "agreement"} == set(built.manifest["metrics"]["compressed"])
    with extracted(built.path) as (folder, _):
        assert 'type="FakeQuantize"' in (folder / "reader" / "model.xml").read_text()
        assert 'type="FakeQuantize"' not in (folder / "writer" / "model.xml").read_text()
        handler: Any = handler_of(folder)
        handler.open(folder, threads=1)
        try:
            sound = Recording((tmp_path / "1.wav").read_bytes())
            found = handler.respond([sound], {"return_timestamps": "word"})[0]
            assert found["text"] and found["chunks"]
        finally:
            handler.engine.close()


def test_where_int8_products_overflow_the_encoder_is_multiplied_otherwise(model, tmp_path, monkeypatch) -> None:
    built = build(recipe_of(tmp_path, model), tmp_path / "store", Progress(quiet=True))
    with extracted(built.path) as (folder, _):
        for isa, integers in ((["avx2", "avx512_vnni"], True), (["avx2", "avx512f"], False)):
            monkeypatch.setattr("handlers.cpu.host_isa", lambda isa=isa: isa)
            handler: Any = handler_of(folder)
            handler.open(folder, threads=1)
            try:
                assert takes_integers(handler.backend.session._reader.get_compiled_model()) is integers
            finally:
                handler.engine.close()


def test_stages_that_retrain_are_refused_before_work(model, tmp_path) -> None:
    recipe = recipe_of(tmp_path, model, compress=[{"retrain": {"epochs": 1}}])
    with pytest.raises(RecipeError, match="does not fit its model and data") as caught:
        check_only(recipe, Progress(quiet=True))
    assert "would have to retrain the model" in caught.value.problems[0]


def test_init_knows_it_from_a_model_of_texts(model, tmp_path) -> None:
    text = write_recipe(model)
    assert "task: automatic-speech-recognition" in text and "max_seconds: 900" in text
    (model.parent / "validation.tsv").write_text("none.wav\tnothing\n")
    (model.parent / "recipe.yaml").write_text(text)
    assert load_recipe(model.parent / "recipe.yaml").task == "automatic-speech-recognition"
