"""automatic-speech-recognition by an encoder-decoder of Whisper's form: a transcript, written token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.data.audio import read_recordings
from archiver.errors import UnsupportedModelError
from archiver.tasks.base import SEQ2SEQ
from archiver.tasks.seq2seq.tasks import Seq2SeqTask
from archiver.tasks.speech.transcripts import COLUMNS, FINE, HEADLINES, METRICS, starter
from handlers.inputs.media.audio_file import AudioReader

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

_SERVE = """\
  batch_size: 32                # windows that are written at once, a beam counts as one
  max_queue: 128                # windows that may wait for a place; beyond, 503
  deadline_s: 120               # a request ends here at the latest"""

DEFAULT_SECONDS = 900.0


class WhisperRecognition(Seq2SeqTask):
    """What is heard is a spectrogram of at most 30 seconds; longer recordings are heard window after window."""

    name = "automatic-speech-recognition"
    auto_class = "AutoModelForSpeechSeq2Seq"
    execution = SEQ2SEQ
    input_name = "input_features"
    answer = "text"
    metrics = METRICS
    headlines = HEADLINES
    fine = FINE
    learns_labels = False
    columns = COLUMNS
    data_suffixes = (".tsv", ".csv", ".jsonl", ".ndjson")
    fallback = None
    packages = ("tokenizers", "soundfile", "soxr")
    serve_keys = ("max_seconds", "max_queue", "deadline_s")
    unit = "seconds of sound"
    batches = "windows of at most 30 seconds, one after another, greedily"
    workload = "archiver.tasks.speech.whisper_workload:WhisperWorkload"
    handler = "handlers.tasks.speech.whisper:WhisperHandler"
    starter = starter(
        train="what is calibrated on",
        static="faster: the encoder in 8 bits; calibrated on data.train. Use it instead",
        against="transformers' generate in fp32",
    )
    starter_serve = _SERVE

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        reader = AudioReader(16_000, self.most_seconds(recipe.serve))
        return list(read_recordings(where, recipe.data.columns, reader, keys=self.columns))

    def most_seconds(self, serve: ServeSpec) -> float:
        """The most seconds of sound in a request."""
        return DEFAULT_SECONDS if serve.max_seconds == "auto" else float(serve.max_seconds)

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        from archiver.models.inputs.speech import whisper_features

        problems = []
        try:
            whisper_features(source.path)
        except UnsupportedModelError as error:
            problems.append(str(error))
        learning = [stage for stage in recipe.compress if stage.needs_data and stage.verb != "quantize"]
        return problems + [
            f"{stage.label} would have to retrain the model, which is not done for models that write transcripts token by "
            "token: remove it"
            for stage in learning
        ]

    def summary(self, facts: ModelFacts) -> list[str]:
        return [f"an encoder of sound and a decoder with {facts.vocab_size} tokens"]

    def starter_limits(self, facts: ModelFacts) -> str:
        return f"  max_seconds: {DEFAULT_SECONDS:g}              # of sound in one request"
