"""What tasks share that answer a recording in one pass over its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from archiver.data.audio import RecordingExample, read_recordings
from archiver.errors import UnsupportedModelError
from archiver.tasks.forward import ForwardTask
from handlers.inputs.media.audio import Audio
from handlers.inputs.media.audio_features import KaldiMel, Waveform, to_settings
from handlers.inputs.media.audio_file import AudioReader

if TYPE_CHECKING:
    from archiver.architecture.tracing import Tracing
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.spec import Recipe, ServeSpec
    from archiver.tasks.workload import Workload

_STEPS = ((0.25, 2.0), (0.5, 4.0), (1.0, 10.0), (2.0, 30.0), (10.0, 600.0))  # seconds: every …, up to …


class AudioTask(ForwardTask):
    """A task whose inputs are recordings, for models over samples or over a spectrogram."""

    input_name = "input_values"
    module = "handlers.architecture.outputs.audio:with_head"
    packages = ("soundfile", "soxr")
    data_suffixes = (".tsv", ".csv", ".jsonl", ".ndjson")
    fallback = None
    serve_keys: ClassVar[tuple[str, ...]] = ("max_seconds", "precision", "max_queue")
    default_seconds: ClassVar[float] = 60.0  # attention over a recording takes memory by the square of its length
    # In samples: a pass of at most a minute of sound at 16 kHz; starting one more costs as much as some 50 ms of it.
    batching: ClassVar[dict[str, Any]] = {"token_budget": 960_000, "max_rows": 32, "run_cost": 8_000}

    def features(self, path: Path) -> Waveform | KaldiMel:
        """What a model directory's model computes on. UnsupportedModelError where that is not known."""
        from archiver.models.inputs.audio import read_features

        return read_features(path, config_of(path))

    def rate_of(self, path: Path) -> int:
        """Samples a second; 16 000 where the model's features are not known: `check` says what is wrong with them."""
        try:
            return self.features(path).rate
        except UnsupportedModelError:
            return 16_000

    def read(self, where: Path | str, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[Any]:
        return list(
            read_recordings(
                where,
                recipe.data.columns,
                AudioReader(self.rate_of(source.path), self.most_seconds(recipe.serve)),
                keys=self.columns,
                id2label=facts.id2label or None,
                multi_label=facts.multi_label,
            )
        )

    def check(self, recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
        config = config_of(source.path)
        problems = []
        try:
            self.features(source.path)
        except UnsupportedModelError as error:
            problems.append(str(error))
        for name, why in (
            ("squeeze_factor", "frames are joined in the middle of the model, across a recording's end"),
            ("add_adapter", "an adapter shortens the frames once more"),
        ):
            if config.get(name):
                problems.append(f"config.json: {name} is {config[name]}: such models are not supported, because {why}")
        return problems

    def values(self, examples: Sequence[RecordingExample]) -> list[Any]:
        return [example.recording for example in examples]

    def input_settings(self, workload: Workload) -> dict[str, Any]:
        features = self.features(workload.source.path)
        return {"features": to_settings(features), "max_seconds": self.most_seconds(workload.recipe.serve)}

    def make_input(self, workload: Workload, original: bool) -> Audio:
        features = self.features(workload.source.path)
        return Audio(AudioReader(features.rate, _ALL), features)

    def tracing(self, workload: Workload) -> Tracing:
        from archiver.architecture.tracing import samples_tracing, spectrogram_tracing

        features = self.features(workload.source.path)
        if isinstance(features, KaldiMel):
            return spectrogram_tracing(features.frames, features.bins)
        longest = round(self.longest(workload.recipe.serve) * features.rate)
        return samples_tracing(features.min_samples, longest + features.min_samples)

    def most_seconds(self, serve: ServeSpec) -> float:
        """The most seconds of sound in a request."""
        return self.default_seconds if serve.max_seconds == "auto" else float(serve.max_seconds)

    def longest(self, serve: ServeSpec) -> float:
        """The most seconds of sound in one pass."""
        return self.most_seconds(serve)

    def sizes(self, serve: ServeSpec) -> list[int]:
        """Some forty lengths in samples, closer together where recordings are short."""
        most, found, start = self.longest(serve), set[float](), 0.0
        for step, end in _STEPS:
            while start + step <= min(end, most):
                start += step
                found.add(start)
        return [round(seconds * 16_000) for seconds in sorted({*found, most})]

    def extent(self, workload: Workload) -> dict[str, int]:
        return {"seconds": round(sum(example.seconds for example in workload.examples))}


_ALL = 86_400.0 * 365  # training data are read whole, whatever one request may hold


@lru_cache(maxsize=8)
def config_of(path: Path) -> dict[str, Any]:
    """A model directory's configuration with transformers' defaults."""
    from transformers import AutoConfig

    found: dict[str, Any] = AutoConfig.from_pretrained(path, local_files_only=True).to_dict()
    return found
