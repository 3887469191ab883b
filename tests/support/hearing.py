"""Handlers over tiny models of sound in this process, and sound files for them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from audio_models import CONVOLUTIONS, LABELS, TOKENS

from handlers.architecture.outputs.audio import with_head
from handlers.inputs.media.audio import Audio
from handlers.inputs.media.audio_features import Waveform
from handlers.inputs.media.audio_file import AudioReader, Recording
from handlers.tasks.speech.classification import AudioClassificationHandler
from handlers.tasks.speech.recognition import CtcHandler

BATCHING = {"token_budget": 960_000, "max_rows": 32, "run_cost": 8_000}


class TorchRows:
    """A module as a session."""

    name = "test"

    def __init__(self, module: Any) -> None:
        self.module = module
        self.shapes: list[tuple[int, ...]] = []

    def run(self, arrays: Any) -> np.ndarray:
        self.shapes.append(arrays["input_values"].shape)
        with torch.inference_mode():
            found: np.ndarray = self.module(**{k: torch.from_numpy(v) for k, v in arrays.items()}).numpy()
            return found


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """[samples] as a wav of floats, which loses nothing."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def recording(samples: np.ndarray) -> Recording:
    return Recording(wav(samples), "inputs")


def least() -> int:
    """Samples of one frame of the tiny models."""
    samples = 1
    for kernel, stride in reversed(CONVOLUTIONS):
        samples = (samples - 1) * stride + kernel
    return samples


def hear(model: Any, *, chunk_seconds: float = 30.0, max_seconds: float = 60.0, **serving: Any) -> Any:
    """A handler over a tiny model, as an archive's would be: of transcripts for a CTC model, else of labels."""
    recognises = type(model).__name__.endswith("ForCTC")
    handler: Any = CtcHandler() if recognises else AudioClassificationHandler()
    handler.serving = {
        "batching": BATCHING,
        "max_inputs": 64,
        "tolerance": 0.001,
        "max_seconds": max_seconds,
        "chunk_seconds": chunk_seconds,
        "convolutions": [list(pair) for pair in CONVOLUTIONS],
        "alphabet": {
            "tokens": TOKENS, "blank": "<pad>", "delimiter": "|", "space": " ", "lower": False, "clean": False,
        },
        "labels": list(LABELS.values()),
        "activation": "softmax",
        **serving,
    }  # fmt: skip
    handler.input = Audio(AudioReader(16_000, max_seconds), Waveform(min_samples=least()))
    handler.session = TorchRows(with_head(model))
    return handler


def extractor(folder: Path | None = None) -> Any:
    """transformers' own feature extractor for the tiny models."""
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True, return_attention_mask=False)
