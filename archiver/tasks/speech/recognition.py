"""automatic-speech-recognition by a CTC model: the transcript of a recording."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.errors import UnsupportedModelError
from archiver.evaluation.metrics.transcripts import transcript_metrics
from archiver.models.inputs.voice import voice_file, voice_problems
from archiver.requirements import requirement
from archiver.tasks.base import Task
from archiver.tasks.forward import Measured
from archiver.tasks.speech.audio import AudioTask, config_of
from archiver.tasks.speech.transcripts import COLUMNS, FINE, HEADLINES, METRICS, starter
from handlers.inputs.media.audio import Audio
from handlers.inputs.media.voice import FILE, VoiceDetector
from handlers.tasks.speech.ctc import Alphabet, frames_of

if TYPE_CHECKING:
    import torch

    from archiver.evaluation.speed import Speed
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec
    from archiver.tasks.workload import Arrays, Workload


class CtcRecognition(AudioTask):
    """Transcripts are learnt by the CTC loss; two models are compared by the divergence of their softened frames."""

    name = "automatic-speech-recognition"
    auto_class = "AutoModelForCTC"
    architectures = ("ForCTC", "ForConditionalGeneration")
    metrics = METRICS
    headlines = HEADLINES
    fine = FINE
    columns = COLUMNS
    serve_keys = ("max_seconds", "chunk_seconds", "skip_silence", "precision", "max_queue")
    default_seconds = 600.0
    unit = "seconds of sound"
    handler = "handlers.tasks.speech.recognition:CtcHandler"
    starter = starter(
        train="what is calibrated on, and retrained with",
        static="faster; calibrated on data.train. Use it instead of weight-only",
        against="PyTorch eager fp32",
    )

    def of_model(self, path: Path) -> Task:
        """By frames, or written token by token from what an encoder has heard."""
        from archiver.tasks.speech.whisper import WhisperRecognition

        classes = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
        return WhisperRecognition() if str(classes[0]).endswith("ForConditionalGeneration") else self

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        problems = super().check(recipe, source, facts)
        try:
            self.alphabet(source)
        except UnsupportedModelError as error:
            problems.append(str(error))
        serve = recipe.serve
        if serve.chunk_seconds > self.most_seconds(serve):
            problems.append(
                f"serve.chunk_seconds is {serve.chunk_seconds:g}; at most serve.max_seconds, "
                f"{self.most_seconds(serve):g}, is allowed"
            )
        if serve.skip_silence:
            problems += voice_problems(self.rate_of(source.path))
        return problems

    def alphabet(self, source: ModelSource) -> dict[str, Any]:
        """The model's tokens, as serving.json holds them."""
        from archiver.models.inputs.audio import read_alphabet

        return read_alphabet(source.path, int(config_of(source.path)["vocab_size"]))

    def longest(self, serve: ServeSpec) -> float:
        return serve.chunk_seconds

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        from archiver.models.inputs.audio import convolutions_of

        return {
            **super().input_settings(workload),
            "chunk_seconds": workload.recipe.serve.chunk_seconds,
            "skip_silence": workload.recipe.serve.skip_silence,
            "convolutions": convolutions_of(config_of(workload.source.path)),
            "alphabet": self.alphabet(workload.source),
        }

    def make_input(self, workload: Workload, original: bool) -> Audio:
        found = super().make_input(workload, original)
        if workload.recipe.serve.skip_silence:
            found.voice = VoiceDetector(voice_file(), "onnxruntime", "onnxruntime")
        return found

    def write_inputs(self, workload: Workload, folder: Path) -> None:
        if workload.recipe.serve.skip_silence:
            shutil.copyfile(voice_file(), folder / FILE)

    def serving_packages(self, serving: Mapping[str, Any]) -> tuple[str, ...]:
        detects = serving["skip_silence"] and serving["session"]["runtime"] not in ("openvino", "onnxruntime")
        return (requirement("onnxruntime"),) if detects else ()

    def answer_settings(self, facts: ModelFacts) -> dict[str, Any]:
        return {}

    def metrics_of(self, measured: Measured) -> dict[str, float]:
        found, reference = (
            [answer["text"] for answer in measured.handler.answers(one, {})]
            for one in (measured.found, measured.reference)
        )
        return transcript_metrics(found, reference, [example.transcript for example in measured.examples])

    def amount(self, workload: Workload, batch: Arrays) -> float:
        """Seconds of sound, without padding: what is heard twice, where pieces overlap, counts twice."""
        return float(batch["attention_mask"].sum()) / self.features(workload.source.path).rate

    def targets(
        self, workload: Workload, examples: Sequence[Any], prepared: Sequence[Sequence[Any]]
    ) -> list[Any] | None:
        """As `ctc_loss` takes them. A recording that is cut into pieces is learnt from the original alone."""
        settings = self.input_settings(workload)
        alphabet = Alphabet.of(settings["alphabet"])
        if any(example.transcript is None for example in examples):
            return None
        targets = []
        for example, items in zip(examples, prepared, strict=True):
            ids = [token for token in alphabet.ids_of(written(example.transcript, alphabet)) if token is not None]
            for item in items:
                frames = frames_of(len(item.samples), settings["convolutions"])
                blank = alphabet.tokens.index(alphabet.blank)
                targets.append(np.array([frames, blank, *(ids if len(items) == 1 else ())], np.int64))
        return targets

    def collate_targets(self, targets: Sequence[Any], size: int) -> torch.Tensor:
        import torch

        found = np.full((len(targets), max(map(len, targets))), -100, np.int64)
        for row, target in enumerate(targets):
            found[row, : len(target)] = target
        return torch.from_numpy(found)

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from archiver.compression.retrain.objectives import ctc_loss

        return ctc_loss(outputs, labels)

    def distance(
        self, outputs: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
    ) -> torch.Tensor:
        from archiver.compression.retrain.objectives import softened_divergence

        each = softened_divergence(outputs, teacher, temperature)
        return each.mean() if mask is None else (each * mask).sum() / mask.sum()

    def timings(self, speed: Speed) -> dict[str, Any]:
        """Seconds of computing for a second of sound."""
        return {
            "real_time_factor": {
                "original": round(1 / speed.original_per_s, 6),
                "compressed": round(1 / speed.compressed_per_s, 6),
            }
        }

    def summary(self, facts: ModelFacts) -> list[str]:
        return ["hears by CTC: a token for each frame of sound"]

    def starter_limits(self, facts: ModelFacts) -> str:
        return (
            "  max_seconds: 600              # of sound in one request\n"
            "  chunk_seconds: 30             # longer recordings are cut into pieces that overlap\n"
            "  # skip_silence: true          # leave out where nobody speaks; silero-vad must be installed here"
        )


def written(transcript: str, alphabet: Alphabet) -> str:
    """A transcript in the letters that the alphabet has: upper case where it knows no lower case, and the reverse."""
    letters = "".join(token for token in alphabet.tokens if len(token) == 1)
    if not any(letter.islower() for letter in letters):
        return transcript.upper()
    return transcript if any(letter.isupper() for letter in letters) else transcript.lower()
