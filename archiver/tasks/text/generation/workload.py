"""Text generation: windows of a text, how well the model predicts them, and what it is trained and calibrated on."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from archiver.data.text.windows import VALIDATION_WINDOWS, windows_of
from archiver.evaluation.speed import Speed
from archiver.host import give_back_memory
from archiver.tasks.base import load_object
from archiver.tasks.text.generation.task import TextGeneration, context_of
from archiver.tasks.workload import TOLERANCE_FP32, TOLERANCE_INT8, Arrays, Batch, Workload

if TYPE_CHECKING:
    import torch

    from archiver.evaluation.comparison import Comparison
    from archiver.models.adapters import LoraFiles
    from archiver.models.facts import ModelFacts
    from archiver.models.source import ModelSource
    from archiver.models.streamed import Streamed
    from archiver.spec import GateSpec, Recipe
    from archiver.tasks.text.generation.windows import OriginalAnswers, Predict

SPEED_TOKENS = 2048  # of one batch of windows
SPEED_BATCHES = 2
# Speed as served: so many streams at once, each a prompt of so many tokens and so many new ones.
STREAMS, READ, WRITTEN = 8, 32, 32
LARGE = 1e9  # bytes of fp32 weights from which on both sides are timed apart


@dataclass
class GenerationWorkload(Workload):
    """A workload whose module gives logits [rows, length, vocabulary].

    Attributes:
        text, train: validation and training text, "" for none.
        streamed: the original within `original`, whose weights stay in the model's files; None where it is in memory.
        parked: `model`, once its weights are in files too.
    """

    task: TextGeneration
    text: str = ""
    train: str = ""
    streamed: Streamed | None = None
    parked: Streamed | None = None

    @classmethod
    def load(
        cls,
        task: TextGeneration,
        recipe: Recipe,
        source: ModelSource,
        facts: ModelFacts,
        validation: list[Any],
        train: list[Any],
    ) -> Self:
        """Load the model beside its texts, of which there is one to validate with and at most one to train on."""
        from archiver.models.load import load_model
        from handlers.architecture.outputs.decoder import DecoderWithHead

        model = load_model(source, task.auto_class)
        module = DecoderWithHead(model)
        streamed = _streamed(model, source.path)
        original = (copy.deepcopy(module) if streamed is None else DecoderWithHead(streamed.model)).eval()
        give_back_memory()
        text, more = validation[0], train[0] if train else ""
        return cls(task, recipe, source, facts, [text], model, module, original, text, more, streamed)

    @property
    def context(self) -> int:
        """Tokens of one window."""
        return context_of(self.recipe, self.facts)

    def windows(self, tokenizer_json: bytes) -> np.ndarray:
        """[≤ 200, context] int64: the validation text's first windows, as a tokenizer cuts it."""
        return windows_of(self.text, tokenizer_json, self.context)[:VALIDATION_WINDOWS]

    # ---- quality ------------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Over all windows: what stages compare with each other is measured on the same text."""
        from archiver.evaluation.metrics.perplexity import predict_windows

        return self._compare(lambda windows: predict_windows(self.module, windows), (), whole=True).metrics

    def compare(self, bounds: Sequence[GateSpec]) -> Comparison:
        from archiver.evaluation.metrics.perplexity import predict_windows

        return self._compare(lambda windows: predict_windows(self.module, windows), bounds)

    def measure_served(self, handler: Any, way: Any, folder: Path) -> dict[str, float]:
        return self.compare_served(handler, way, folder).metrics

    def compare_served(self, handler: Any, way: Any, folder: Path) -> Comparison:
        with load_object(way.score)(handler, folder) as predict:
            return self._compare(predict, [bounds for _, bounds in self.recipe.final_bounds])

    def _compare(self, predict: Predict, bounds: Sequence[GateSpec], *, whole: bool = False) -> Comparison:
        """A model beside the original.

        Args:
            predict: [windows, length] int64 in the ids of the model as it is now → Predictions.
            bounds: what is to be decided. whole: over all windows, whatever the recipe says.
        """
        from archiver.evaluation.metrics.perplexity import Predictions, predict_windows
        from archiver.state.constraints import state_of
        from archiver.tasks.text.generation.windows import OriginalAnswers, compare_whole, compare_windows

        windows = self.windows(self.tokenizer_json)
        whole = whole or self.recipe.data.windows == "all"
        kept = state_of(self.model).old_ids
        if kept is None:
            return compare_windows(predict, windows, self._original, bounds, whole=whole)
        old_ids = kept.numpy()

        def in_old_ids(part: np.ndarray) -> Predictions:
            found = predict(part)
            return Predictions(found.nll, old_ids[found.best])

        if np.array_equal(old_ids[windows], self._original.windows):
            return compare_windows(in_old_ids, windows, self._original, bounds, whole=whole)
        # Tokens of this text are gone: the original reads the model's windows by its own ids, and its own as they were.
        reread = OriginalAnswers(lambda part: predict_windows(self.original, part), old_ids[windows])
        return compare_whole(in_old_ids(windows), reread.every(), self._original.every())

    @cached_property
    def _original(self) -> OriginalAnswers:
        from archiver.evaluation.metrics.perplexity import predict_windows
        from archiver.tasks.text.generation.windows import OriginalAnswers

        windows = self.windows(self.tokenizer_bytes)
        return OriginalAnswers(lambda part: predict_windows(self.original, part), windows)

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        """Over all windows."""
        from archiver.evaluation.metrics.perplexity import language_metrics

        found = self._original.every()
        return language_metrics(found, found.best)

    # ---- data ---------------------------------------------------------------------------------------------------------

    def calibration_batches(self, samples: int) -> list[Batch]:
        windows = windows_of(self.train, self.tokenizer_json, self.context)[:samples]
        return [_inputs(window[None]) for window in windows]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        import torch

        windows = windows_of(self.train, self.tokenizer_json, self.context)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).numpy()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size):
            batch = _inputs(windows[np.sort(order[start : start + batch_size])])
            batches.append(batch | {"labels": batch["input_ids"]})
        return batches

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(self.train.encode()).hexdigest()

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.windows(self.tokenizer_bytes)), "context": self.context}

    # ---- speed --------------------------------------------------------------------------------------------------------

    def speed_batches(self) -> list[Arrays]:
        return self._batches(self.tokenizer_json)

    def original_speed_batches(self) -> list[Arrays]:
        return self._batches(self.tokenizer_bytes)

    def _batches(self, tokenizer_json: bytes) -> list[Arrays]:
        windows = self.windows(tokenizer_json)
        rows = max(1, SPEED_TOKENS // self.context)
        starts = range(0, min(len(windows), SPEED_BATCHES * rows), rows)
        return [{"input_ids": windows[start : start + rows].copy()} for start in starts]

    def items_of(self, batch: Any) -> int:
        return int(batch["input_ids"].size)

    def speed(self, handler: Any) -> Speed:
        """Tokens written per second against transformers' generate on the fp32 original.

        A large original and what serves are in memory one after the other, never together.
        """
        from archiver.evaluation.generation_speed import backend_rate, compare_generation, original_rate

        room = min(self.recipe.serve.max_length, self.facts.max_positions)
        read = max(1, min(READ, self.context - 1, room // 2))
        written = max(1, min(WRITTEN, room - read))
        cut = [self.windows(tokenizer)[:STREAMS, :read] for tokenizer in (self.tokenizer_bytes, self.tokenizer_json)]
        if self.streamed is not None and 4 * self.facts.num_parameters > LARGE:
            with handler.unloaded():
                if self.parked is not None:
                    self.parked.let_go()
                give_back_memory()
                with self.timed_original() as original:
                    before = original_rate(original.get_submodule("model"), cut[0], written)
            return Speed(before, backend_rate(handler.backend, cut[1], written))
        with self.timed_original() as original:
            return compare_generation(original.get_submodule("model"), handler.backend, cut[0], cut[1], written)

    def park(self, folder: Path) -> None:
        from archiver.models.streamed import parked

        if self.streamed is not None and self.parked is None:
            self.parked = parked(self.model, self.source.path, folder / "weights")
            give_back_memory()

    @contextmanager
    def weights_in_memory(self) -> Iterator[None]:
        with self.parked.mapped() if self.parked is not None else nullcontext():
            yield
        give_back_memory()

    @contextmanager
    def original_in_memory(self) -> Iterator[torch.nn.Module]:
        """Where no stage has changed a weight it is the model itself, and no second one is loaded."""
        if self.streamed is None:
            yield self.original
        elif self.parked is None and self.streamed.same(self.model):
            yield self.module
        else:
            with self.streamed.resident():
                yield self.original
            give_back_memory()

    # ---- the archive --------------------------------------------------------------------------------------------------

    def write_inputs(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(self.tokenizer_json)

    def serving(self, session: Mapping[str, Any]) -> dict[str, Any]:
        from archiver.models.inputs.chat_template import read_chat_template

        serve = self.recipe.serve
        return {
            "max_length": serve.max_length,
            "max_queue": serve.max_queue,
            "deadline_s": serve.deadline_s,
            "chat": read_chat_template(self.source.path),
            "pad_id": self.pad_id,
            "end_ids": self.end_ids,
            "tolerance": TOLERANCE_INT8 if session["int8"] else TOLERANCE_FP32,
            "example_tokens": 1,
            **({"adapters": list(self.adapters)} if self.adapters else {}),
        }

    def serving_packages(self, serving: Mapping[str, Any]) -> tuple[str, ...]:
        return ("jinja2",) if serving["chat"] else ()

    def choose_examples(self, handler: Any) -> tuple[list[Any], dict[str, Any]]:
        from archiver.tasks.text.generation.examples import choose_prompts, prompts_of

        wanted = self.recipe.serve.examples
        model = self.module.get_submodule("model")
        prompts, tokens = choose_prompts(handler, model, prompts_of(self.text, wanted), wanted)
        return list(prompts), {"example_tokens": tokens}

    @cached_property
    def adapters(self) -> Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]:
        return {name: files.load() for name, files in self._adapter_files.items()}

    @property
    def _adapter_files(self) -> dict[str, LoraFiles]:
        from archiver.models.adapters import read_lora

        read = {name: read_lora(path)[0] for name, path in self.recipe.serve.adapters.items()}
        return {name: files for name, files in read.items() if files is not None}  # `check` has refused others

    def adapter_examples(self, handler: Any) -> tuple[list[tuple[Any, dict[str, Any]]], dict[str, Any]]:
        from archiver.tasks.text.generation.adapter_examples import choose_adapter_prompts
        from archiver.tasks.text.generation.examples import prompts_of

        if not self.adapters:
            return [], {}
        prompts = prompts_of(self.text, self.recipe.serve.examples)
        examples, alike = choose_adapter_prompts(handler, self.module.get_submodule("model"), prompts, self.adapters)
        facts = {name: files.facts() | {"alike": alike[name]} for name, files in self._adapter_files.items()}
        return list(examples), facts

    @property
    def end_ids(self) -> list[int]:
        """Ids, in the model as it is now, of the tokens that end a text."""
        from archiver.state.constraints import state_of

        old_ids = state_of(self.model).old_ids
        if old_ids is None:
            return list(self.facts.end_token_ids)
        return [int(place) for end in self.facts.end_token_ids for place in (old_ids == end).nonzero()[:, 0]]


def _streamed(model: Any, folder: Path) -> Streamed | None:
    """The model with its weights in its files; None where its code looks at a weight outside of the module that has it."""
    import torch

    from archiver.models.streamed import streamed_copy

    streamed: Any = streamed_copy(model, folder)
    ids = torch.tensor([[0, 0]])
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        try:
            found = streamed.model(input_ids=ids, use_cache=False).logits
        except Exception:  # whatever such code meets in an empty weight
            return None
    return streamed if torch.equal(found, expected) else None


def _inputs(windows: np.ndarray) -> dict[str, torch.Tensor]:
    import torch

    ids = torch.from_numpy(windows.copy())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
