"""What a build works on: the recipe, the model with its facts, and how the model measures up as it is now.

Subject is what every task shares; EncoderSubject knows what a text becomes and what is measured for its tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from archiver.evaluation.speed import Run
from archiver.models.facts import ModelFacts
from archiver.models.source import ModelSource
from archiver.spec import Recipe
from archiver.state.constraints import state_of

Batch = Mapping[str, torch.Tensor]


@dataclass
class Subject(ABC):
    """model: the transformers module that the stages change. module: it with its head. original: an untouched copy of it.

    examples: validation examples, as read
    """

    recipe: Recipe
    source: ModelSource
    facts: ModelFacts
    examples: Sequence[Any]
    model: torch.nn.Module
    module: torch.nn.Module
    original: torch.nn.Module

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """The task's metrics of `module` as it is now, on the validation examples."""

    @property
    @abstractmethod
    def original_metrics(self) -> dict[str, float]:
        """Those of the original, measured once."""

    @abstractmethod
    def calibration_batches(self, samples: int) -> list[Batch]:
        """data.train's first `samples` texts (or windows), one a batch, without padding, in file order."""

    @abstractmethod
    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        """All of data.train in batches, composed by the seed, with `labels` where there are any."""

    @property
    @abstractmethod
    def train_digest(self) -> str:
        """SHA-256 of data.train as read."""

    @abstractmethod
    def original_speed_batches(self) -> list[Any]:
        """The same texts as the original's own tokenizer cuts them."""

    @abstractmethod
    def speed_batches(self) -> list[Any]:
        """What speed is measured on; each goes to the functions of `runs`."""

    @abstractmethod
    def items_of(self, batch: Any) -> int:
        """How many of what speed counts (`unit`) are in a batch of `speed_batches`."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """What speed counts: "sentences" or "tokens"."""

    @property
    @abstractmethod
    def extent(self) -> dict[str, int]:
        """How much the metrics were measured on: for the report's `measured_on`."""

    @abstractmethod
    def run_of(self, module: torch.nn.Module) -> Run:
        """A torch module as a function of a batch of `speed_batches`, for timing."""

    @cached_property
    def tokenizer_bytes(self) -> bytes:
        """The model directory's tokenizer.json."""
        return (self.source.path / "tokenizer.json").read_bytes()

    @property
    def tokenizer_json(self) -> bytes:
        """The tokenizer.json that goes with the model as it is now."""
        return state_of(self.model).tokenizer_json or self.tokenizer_bytes

    @property
    def pad_id(self) -> int:
        """The padding token's id in the model as it is now."""
        old_ids = state_of(self.model).old_ids
        if old_ids is None:
            return self.facts.pad_token_id
        return int((old_ids == self.facts.pad_token_id).nonzero()[0, 0])
