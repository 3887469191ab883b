"""Archives of two tiny speech recognizers: hears, of Whisper's form, and letters, a CTC model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from audio_models import CTC, build_audio_model
from hearing import wav
from tiny_whisper import build_tiny_whisper, noise

from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe

HEARS, LETTERS = "hears", "letters"


def archives_in(folder: Path) -> list[Path]:
    """What `build_speech_archives` has made."""
    return sorted((folder / "store").glob("*.mar"))


def build_speech_archives(folder: Path) -> None:
    """Both, into the folder."""
    for index, seconds in enumerate((1.0, 1.5)):
        (folder / f"{index}.wav").write_bytes(wav(noise(seconds, index)))
    (folder / "list.tsv").write_text("0.wav\tAB\n1.wav\tB C\n")
    build_tiny_whisper(folder / HEARS)
    (folder / LETTERS).mkdir()
    build_audio_model(folder / LETTERS, "wav2vec2", CTC, num_hidden_layers=1)
    for name, runtime in ((HEARS, "openvino"), (LETTERS, "onnxruntime")):
        recipe: dict[str, Any] = {
            "name": name,
            "task": "automatic-speech-recognition",
            "model": name,
            "data": {"validation": "list.tsv", "columns": {"audio": 0, "transcript": 1}},
            "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
            "serve": {"workers": 1, "runtime": runtime, "max_seconds": 40, "examples": 1},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        pipeline.build(load_recipe(folder / f"{name}.yaml"), folder / "store", Progress(quiet=True))
