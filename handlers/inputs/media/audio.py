"""Recordings: sound files to samples, and those to what a model computes on."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.base import Input
from handlers.inputs.media.audio_features import Features, from_settings
from handlers.inputs.media.audio_file import AudioReader, Recording, recording_of
from handlers.inputs.media.voice import FILE, VoiceDetector
from handlers.requirements import required


@dataclass(frozen=True, eq=False)
class Sound:
    """One recording, or a piece of one. samples: [samples] float32 at the model's rate."""

    samples: np.ndarray


class Audio(Input[Recording, Sound]):
    """Recordings as a kind of input; its size is the number of samples that are computed on.

    Args:
        reader: makes samples of a file. features: make what the model computes on of samples.
        voice: finds speech in samples, None in an archive that was made without it.
    """

    allowed: ClassVar[str] = (
        "allowed: a sound file (wav, flac, mp3, ogg) as the body, or the same in base64: "
        '{"inputs": "UklGR…"}, {"inputs": ["UklGR…", …]}'
    )
    max_bytes: ClassVar[int] = 32 << 20  # 15 minutes of wav at 16 kHz

    def __init__(self, reader: AudioReader, features: Features, voice: VoiceDetector | None = None) -> None:
        self.reader = reader
        self.features = features
        self.voice = voice
        self._own = threading.local()  # several threads read requests at once

    @classmethod
    def open(cls, folder: Path, serving: Mapping[str, Any]) -> "Audio":
        """The recordings of an extracted archive: features, max_seconds and skip_silence as serving.json has them."""
        features = from_settings(serving["features"])
        voice = None
        if serving.get("skip_silence"):
            runtime = "openvino" if serving["session"]["runtime"] == "openvino" else "onnxruntime"
            voice = VoiceDetector(folder / FILE, runtime, required(folder, runtime))
        return cls(AudioReader.open(folder, features.rate, serving["max_seconds"]), features, voice)

    def decode(self, value: Any, where: str) -> Recording:
        return recording_of(value, where)

    @contextlib.contextmanager
    def one_request(self) -> Iterator[None]:
        """While it runs, all recordings together may have max_seconds: a list of them must not unfold to more memory."""
        self._own.together = True
        try:
            yield
        finally:
            self._own.together = False

    def encode(self, values: Sequence[Recording], parameters: Mapping[str, Any]) -> list[Sound]:
        sounds: list[Sound] = []
        rate, left, least = self.features.rate, self.reader.max_seconds, self.features.min_samples
        together = vars(self._own).get("together", False)
        for value in values:
            try:
                samples = self.reader.read(value, left)
            except BadRequest as error:
                if left < self.reader.max_seconds:
                    more = f"one request may hold {self.reader.max_seconds:g} seconds of sound"
                    raise BadRequest(f"{error} ({more})") from error
                raise
            if len(samples) < least:
                raise BadRequest(
                    f"{value.where} holds {len(samples) / rate:.4f} seconds of sound; at least {least / rate:g} are needed"
                )
            left -= len(samples) / rate if together else 0.0
            sounds.append(Sound(samples))
        return sounds

    def size(self, item: Sound) -> int:
        return self.features.span or len(item.samples)

    def collate(self, items: Sequence[Sound], size: int, rows: int) -> dict[str, np.ndarray]:
        if self.features.span:
            made = [self.features(item.samples) for item in items]
            return {"input_values": np.stack([*made, *[made[0]] * (rows - len(made))])}
        values = np.zeros((rows, size), np.float32)
        mask = np.zeros((rows, size), np.int64)
        mask[len(items) :, : self.features.min_samples] = 1
        for row, item in enumerate(items):
            values[row, : len(item.samples)] = self.features(item.samples)
            mask[row, : len(item.samples)] = 1
        return {"input_values": values, "attention_mask": mask}

    def to_stored(self, value: Recording) -> Any:
        return value.to_text()

    def from_stored(self, stored: Any) -> Recording:
        return recording_of(stored, "the stored recording")
