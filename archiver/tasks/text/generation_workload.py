"""Text generation: windows of a text, how well the model predicts them, and what it is trained and calibrated on."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from archiver.architecture import kv_shapes
from archiver.data.windows import CONTEXT, VALIDATION_WINDOWS, windows_of
from archiver.evaluation.perplexity import Predictions, language_metrics, predict_windows
from archiver.evaluation.speed import Arrays, Run
from archiver.models.load import ModelFacts, ModelSource, load_model
from archiver.spec import Recipe
from archiver.state.constraints import state_of
from archiver.tasks.workload import Batch, Subject
from handlers.architecture.decoder import DecoderWithHead

SPEED_TOKENS = 2048  # of one batch of windows
SPEED_BATCHES = 2


def context_of(recipe: Recipe, facts: ModelFacts) -> int:
    """Tokens of one window: what the recipe says, else 256, or as many as the model has positions for."""
    return recipe.data.context or min(CONTEXT, facts.max_positions)


@dataclass
class DecoderSubject(Subject):
    """module, original: DecoderWithHead. text, train: validation and training text, "" for none."""

    module: DecoderWithHead
    original: DecoderWithHead
    text: str
    train: str

    @classmethod
    def load(cls, recipe: Recipe, source: ModelSource, facts: ModelFacts, text: str, train: str) -> DecoderSubject:
        """Load the model."""
        model = load_model(source, recipe.task)
        module = DecoderWithHead(model)
        return cls(recipe, source, facts, [text], model, module, copy.deepcopy(module).eval(), text, train)

    @property
    def context(self) -> int:
        return context_of(self.recipe, self.facts)

    def windows(self, tokenizer_json: bytes) -> np.ndarray:
        """[≤ 200, context] the validation text's first windows, as a tokenizer cuts it."""
        return windows_of(self.text, tokenizer_json, self.context)[:VALIDATION_WINDOWS]

    def metrics_of(self, module: torch.nn.Module) -> dict[str, float]:
        """The task's metrics of a module that knows the tokens as the model does now."""
        windows = self.windows(self.tokenizer_json)
        return self.metrics_from(predict_windows(module, windows), windows)

    def metrics_from(self, found: Predictions, windows: np.ndarray) -> dict[str, float]:
        """The task's metrics from what some runtime predicted on `windows`, in the ids of the model as it is now."""
        old_ids = state_of(self.model).old_ids
        if old_ids is None:
            return language_metrics(found, self._original_best)
        # Tokens are gone: the original reads the same windows by its own ids, and may answer with a token that is gone.
        old = old_ids.numpy()
        found.best[...] = old[found.best]
        return language_metrics(found, predict_windows(self.original, old[windows]).best)

    def measure(self) -> dict[str, float]:
        return self.metrics_of(self.module)

    @cached_property
    def _original(self) -> Any:
        return predict_windows(self.original, self.windows(self.tokenizer_bytes))

    @property
    def _original_best(self) -> np.ndarray:
        return self._original.best

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return language_metrics(self._original, self._original_best)

    def calibration_batches(self, samples: int) -> list[Batch]:
        windows = windows_of(self.train, self.tokenizer_json, self.context)[:samples]
        return [_inputs(window[None]) for window in windows]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
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

    def speed_batches(self) -> list[Arrays]:
        return self._batches(self.tokenizer_json)

    def original_speed_batches(self) -> list[Arrays]:
        """The same text as the original's own tokenizer cuts it."""
        return self._batches(self.tokenizer_bytes)

    def _batches(self, tokenizer_json: bytes) -> list[Arrays]:
        windows = self.windows(tokenizer_json)
        rows = max(1, SPEED_TOKENS // self.context)
        starts = range(0, min(len(windows), SPEED_BATCHES * rows), rows)
        return [{"input_ids": windows[start : start + rows].copy()} for start in starts]

    def items_of(self, batch: Any) -> int:
        return int(batch["input_ids"].size)

    @property
    def unit(self) -> str:
        return "tokens"

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.windows(self.tokenizer_bytes)), "context": self.context}

    def run_of(self, module: torch.nn.Module) -> Run:
        def run(arrays: Arrays) -> np.ndarray:
            with torch.inference_mode():
                return module(**{name: torch.from_numpy(value) for name, value in arrays.items()}).numpy()

        return run

    @property
    def key_value_width(self) -> int:
        """Numbers that the KV cache keeps for one token, over all layers as they are now."""
        return sum(2 * heads * width for heads, width in kv_shapes(self.model))

    @property
    def end_ids(self) -> list[int]:
        """Ids, in the model as it is now, of the tokens that end a text."""
        old_ids = state_of(self.model).old_ids
        if old_ids is None:
            return list(self.facts.end_token_ids)
        return [int(place) for end in self.facts.end_token_ids for place in (old_ids == end).nonzero()[:, 0]]


def _inputs(windows: np.ndarray) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(windows.copy())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
