"""A handler over a tiny model of Whisper's form on torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_whisper import FEATURES, RATE, tiny_tokenizer, tiny_whisper

from archiver.models.inputs.generation import generation_rules
from archiver.models.inputs.speech import speech_tokens
from handlers.inputs.media.audio_features import to_settings
from handlers.inputs.media.audio_file import AudioReader
from handlers.inputs.media.sound_windows import SoundWindows
from handlers.runtimes.torch_seq2seq import TorchSeq2Seq
from handlers.tasks.speech.whisper import WhisperHandler


@pytest.fixture(scope="module")
def handler() -> Iterator[WhisperHandler]:
    model = tiny_whisper()
    heads = model.generation_config.alignment_heads
    made: Any = type(
        "Here", (WhisperHandler,), {"runtime": lambda *_: TorchSeq2Seq.of_model(model, "input_features", heads)}
    )()
    made.serving = {
        "session": {},
        "max_running": 8,
        "max_inputs": 3,
        "max_target": 40,
        "max_queue": 16,
        "max_seconds": 20.0,
        "deadline_s": 60.0,
        "features": to_settings(FEATURES),
        "generation": generation_rules(model, 39),
        "speech": speech_tokens(model.generation_config),
        "heads": True,
        "tolerance": 0.1,
    }
    made.input = SoundWindows(AudioReader(RATE, 20.0), FEATURES)
    made.open_tokenizer = lambda folder: tiny_tokenizer()
    made.load(Path(), 1)
    yield made
    made.engine.close()
