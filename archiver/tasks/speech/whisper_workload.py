"""A recipe's model of Whisper's form and its recordings: transcripts to metrics, calibration, speed, and what is served."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from archiver.data.audio import RecordingExample
from archiver.evaluation.metrics.transcripts import transcript_metrics
from archiver.evaluation.speed import Speed
from archiver.tasks.base import load_object
from archiver.tasks.seq2seq.workload import Seq2SeqWorkload
from archiver.tasks.speech.whisper import WhisperRecognition
from archiver.tasks.workload import Arrays, Batch
from handlers.inputs.media.audio import Sound
from handlers.inputs.media.audio_file import AudioReader, Recording
from handlers.inputs.media.sound_windows import SoundWindows

if TYPE_CHECKING:
    import torch

    from archiver.architecture.tracing import SourceExample

# How far answers may lie apart, as the share of words: one word that is as likely as another decides what follows.
DIFFERENT_WORDS = 0.1
TIMED, ROUNDS = 4, 2  # windows that speed is measured on; rounds
_ALL = 86_400.0 * 365


@dataclass
class WhisperWorkload(Seq2SeqWorkload):
    """A workload whose sources are recordings."""

    task: WhisperRecognition
    train: list[RecordingExample] = field(default_factory=list)  # type: ignore[assignment]

    @property
    def values(self) -> list[Recording]:  # type: ignore[override]
        """What requests would send to have the validation examples answered."""
        return [example.recording for example in self.examples]

    @cached_property
    def windows(self) -> SoundWindows:
        """The kind of input that serves."""
        from archiver.models.inputs.speech import whisper_features

        features = whisper_features(self.source.path)
        return SoundWindows(AudioReader(features.rate, _ALL), features)

    def writer(self, module: torch.nn.Module, serving: Mapping[str, Any] | None = None) -> Any:
        from handlers.runtimes.torch_seq2seq import TorchSeq2Seq

        made: Any = load_object(self.task.handler)
        inner: Any = module
        handler = type("Here", (made,), {"runtime": lambda *_: TorchSeq2Seq.of_model(inner.model, inner.source)})()
        session = {"int8": False}
        handler.serving = {
            "session": session,
            "max_inputs": len(self.examples),
            **self.serving(session),
            "heads": False,
        }
        handler.input = self.windows
        handler.open_tokenizer = lambda folder: self.tokenizer
        handler.load(Path(), 1)
        return handler

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizers.Tokenizer."""
        import tokenizers

        return tokenizers.Tokenizer.from_buffer(self.tokenizer_json)

    # ---- quality ------------------------------------------------------------------------------------------------------

    def _texts(self, handler: Any) -> list[str]:
        return [answer["text"] for answer in handler.respond(self.values)]

    def _metrics(self, texts: list[str]) -> dict[str, float]:
        return transcript_metrics(texts, self._original_texts, [example.transcript for example in self.examples])

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.examples), "seconds": round(sum(example.seconds for example in self.examples))}

    # ---- data ---------------------------------------------------------------------------------------------------------

    def calibration_batches(self, samples: int) -> list[Batch]:
        """The first windows of recordings, each with what the original writes of it."""
        handler = self.writer(self.original)
        try:
            return [self._heard(handler, example.recording) for example in self.train[:samples]]
        finally:
            handler.engine.close()

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        raise NotImplementedError("stages that retrain are refused by the task's check")

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(repr([example.sha256 for example in self.train]).encode()).hexdigest()

    def _heard(self, handler: Any, recording: Recording) -> dict[str, torch.Tensor]:
        import torch

        from handlers.generation.seq2seq.backend import SourceJob
        from handlers.protocols.continuation import Sampling

        sound = self.windows.encode([recording], {})[0]
        item = Sound(sound.samples[: self.windows.features.span])
        rules = handler._rules({}, False)
        job = SourceJob((), Sampling(1), item=item, rules=rules)
        handler.engine.generate([job])
        ids = np.array([[*rules.start, *job.ids]])
        arrays = self.windows.collate([item], 1, 1)
        decoder = {"decoder_input_ids": ids, "decoder_attention_mask": np.ones_like(ids)}
        return {name: torch.from_numpy(value) for name, value in (arrays | decoder).items()}

    # ---- speed --------------------------------------------------------------------------------------------------------

    def _speed_batches(self) -> list[Arrays]:
        found: list[Arrays] = []
        for item in self._timed()[:1]:
            ids = np.array([[*self.rules["start"]] * 8])
            decoder = {"decoder_input_ids": ids, "decoder_attention_mask": np.ones_like(ids)}
            found.append(self.windows.collate([item], 1, 1) | decoder)
        return found

    def items_of(self, batch: Any) -> int:
        return len(batch["input_features"])

    def _timed(self) -> list[Sound]:
        """The first windows of the first recordings."""
        sounds = self.windows.encode(self.values[:TIMED], {})
        return [Sound(sound.samples[: self.windows.features.span]) for sound in sounds]

    def speed(self, handler: Any) -> Speed:
        """Seconds of sound a second, against transformers' generate on the fp32 original, in turns in one run."""
        import torch

        from handlers.generation.seq2seq.backend import SourceJob
        from handlers.protocols.continuation import Sampling

        items = self._timed()
        arrays = [torch.from_numpy(self.windows.collate([item], 1, 1)["input_features"]) for item in items]
        rules = handler._rules({}, False)

        def original(model: Any) -> None:
            with torch.inference_mode():
                for features in arrays:
                    model.generate(features.to(model.device), do_sample=False)

        def served() -> None:
            for item in items:
                handler.engine.generate([SourceJob((), Sampling(1), item=item, rules=rules)])

        seconds: dict[str, list[float]] = {"original": [], "served": []}
        with self.timed_original() as module:
            sides = (("original", partial(original, module.get_submodule("model"))), ("served", served))
            for turn in range(ROUNDS + 1):
                for name, run in sides:
                    started = time.perf_counter()
                    run()
                    if turn:
                        seconds[name].append(time.perf_counter() - started)
        heard = sum(len(item.samples) for item in items) / self.windows.features.rate
        return Speed(heard / median(seconds["original"]), heard / median(seconds["served"]))

    # ---- the archive --------------------------------------------------------------------------------------------------

    def tracing_example(self) -> SourceExample:
        import torch

        from archiver.architecture.tracing import SourceExample

        features = self.windows.features
        shape = (2, getattr(features, "bins", 80), features.span // getattr(features, "hop", 160))
        module: Any = self.module
        values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return SourceExample({"input_features": values}, "input_features", module.heads)

    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        from archiver.models.inputs.generation import target_places
        from archiver.models.inputs.speech import speech_tokens
        from handlers.inputs.media.audio_features import to_settings

        serve, model, module = self.recipe.serve, self.model, self.module
        described: Any = model
        named: Any = module
        features: Any = self.windows.features
        return {
            "features": to_settings(features),
            "max_seconds": self.task.most_seconds(serve),
            "max_target": target_places(model),
            "max_running": serve.batch_size,
            "max_queue": serve.max_queue,
            "deadline_s": serve.deadline_s,
            "generation": self.rules,
            "speech": speech_tokens(described.generation_config),
            "heads": bool(named.heads),
            "tolerance": DIFFERENT_WORDS,
        }

    def choose_examples(self, handler: Any) -> tuple[list[Any], dict[str, Any]]:
        """The shortest recordings: they travel as they are."""
        wanted = self.recipe.serve.examples
        examples: Sequence[RecordingExample] = self.examples
        if isinstance(wanted, Path):
            found = self.task.read(wanted, self.recipe, self.source, self.facts)
            return [example.recording for example in found], {}
        return [example.recording for example in sorted(examples, key=lambda one: one.seconds)[:wanted]], {}
