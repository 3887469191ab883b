"""automatic-speech-recognition by an encoder-decoder of Whisper's form: a transcript, written token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.data.audio import read_recordings
from archiver.errors import UnsupportedModelError
from archiver.tasks.base import SEQ2SEQ, Metric
from archiver.tasks.seq2seq.tasks import Seq2SeqTask
from handlers.inputs.media.audio_file import AudioReader

if TYPE_CHECKING:
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec

_STARTER = """
# Recordings that the gate and the stored examples come from: without them nothing can be built. Name a list here.
data:
  # train: train.tsv            # what is calibrated on
  validation: validation.tsv    # .tsv, .csv or .jsonl; the sound files' paths are relative to the list
  columns: {audio: 0, transcript: 1}      # positions where the list has no header, else names

compress:
  - quantize: {method: weight-only, bits: 8}
  # - quantize: {method: static-int8}  # faster: the encoder in 8 bits; calibrated on data.train. Use it instead

# gate:                         # a bound that is missed, or cannot be measured, means no archive
#   max_drop: {word_accuracy: 0.01}  # 0.01 is one word in a hundred; max_increase: {wer: 0.1} is relative
#   min_speedup: 2.0            # against transformers' generate in fp32
#   max_size_mb: 150            # of the archive
"""

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
    metrics = {
        "wer": Metric(higher_is_better=False, needs=("transcript",)),
        "cer": Metric(higher_is_better=False, needs=("transcript",)),
        "word_accuracy": Metric(needs=("transcript",)),
        "agreement": Metric(),  # share of recordings with the original's words
    }
    headlines = ("word_accuracy", "agreement")
    fine = ("cer", "agreement")
    learns_labels = False
    columns = ("audio", "transcript")
    data_suffixes = (".tsv", ".csv", ".jsonl", ".ndjson")
    fallback = None
    packages = ("tokenizers", "soundfile", "soxr")
    serve_keys = ("max_seconds", "max_queue", "deadline_s")
    unit = "seconds of sound"
    batches = "windows of at most 30 seconds, one after another, greedily"
    workload = "archiver.tasks.speech.whisper_workload:WhisperWorkload"
    handler = "handlers.tasks.speech.whisper:WhisperHandler"
    starter = _STARTER
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
