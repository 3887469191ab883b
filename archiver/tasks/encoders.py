"""Text classification and feature extraction: what a text becomes, and what is measured on it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from archiver.data.examples import Example
from archiver.evaluation.metrics import measure, unique_texts
from archiver.evaluation.speed import Arrays, Run, sorted_batches
from archiver.models.facts import ModelFacts
from archiver.models.source import ModelSource
from archiver.spec import Recipe
from archiver.tasks.loading import load_model
from archiver.tasks.workload import Batch, Subject
from handlers.architecture.encoder import EncoderWithHead
from handlers.inputs.text import Encoded, Encoder, TextInput

_POOL = 50  # batches are cut from pools of this many, sorted by length: little padding, and yet another mix each seed


@dataclass
class EncoderSubject(Subject):
    """module, original: EncoderWithHead. inputs: what is measured on (feature-extraction: every single text once).

    reference: the original's raw outputs on them. train: as read. normalize: as modules.json says.
    """

    module: EncoderWithHead
    original: EncoderWithHead
    examples: list[Example]
    train: list[Example]
    inputs: list[TextInput]
    reference: np.ndarray
    normalize: bool

    @classmethod
    def load(
        cls, recipe: Recipe, source: ModelSource, facts: ModelFacts, examples: list[Example], train: list[Example]
    ) -> EncoderSubject:
        """Load the model and take the original's answers to the validation inputs."""
        model = load_model(source, recipe.task)
        pooling, normalize = None, False
        if recipe.task == "feature-extraction":
            pooling, normalize = facts.pooling.mode, facts.pooling.normalize
        module = EncoderWithHead(model, recipe.task, pooling)
        original = copy.deepcopy(module).eval()
        inputs = _inputs(examples, recipe.task)
        tokenizer = _tokenizer((source.path / "tokenizer.json").read_bytes(), recipe, facts.pad_token_id)
        reference = raw_outputs(original, tokenizer, inputs)
        return cls(recipe, source, facts, examples, model, module, original, train, inputs, reference, normalize)

    @property
    def tokenizer(self) -> Encoder:
        """The tokenizer of the model as it is now."""
        return _tokenizer(self.tokenizer_json, self.recipe, self.pad_id)

    def metrics(self, outputs: np.ndarray) -> dict[str, float]:
        """The task's metrics of raw outputs on `inputs`, against the labels and the original's outputs."""
        how: dict[str, Any] = {"task": self.recipe.task, "multi_label": self.facts.multi_label}
        return measure(outputs, self.reference, self.inputs, self.examples, **how)

    def measure(self) -> dict[str, float]:
        return self.metrics(raw_outputs(self.module, self.tokenizer, self.inputs))

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return self.metrics(self.reference)

    def calibration_batches(self, samples: int) -> list[Batch]:
        tokenizer = self.tokenizer
        inputs = _inputs(self.train[:samples], self.recipe.task)[:samples]
        return [self._tensors(tokenizer.pad([item], len(item.ids))) for item in tokenizer.encode(inputs)]

    def training_batches(self, batch_size: int, seed: int) -> list[Batch]:
        tokenizer = self.tokenizer
        inputs = _inputs(self.train, self.recipe.task)
        encoded = tokenizer.encode(inputs)
        labels = self._labels() if self.recipe.task == "text-classification" else None
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
        batches: list[Batch] = []
        for start in range(0, len(order), batch_size * _POOL):
            pool = sorted(order[start : start + batch_size * _POOL], key=lambda i: len(encoded[i].ids))
            for first in range(0, len(pool), batch_size):
                members = pool[first : first + batch_size]
                rows = [encoded[i] for i in members]
                batch = self._tensors(tokenizer.pad(rows, len(rows[-1].ids)))
                batches.append(batch | ({"labels": labels[members]} if labels is not None else {}))
        return batches

    @cached_property
    def train_digest(self) -> str:
        return hashlib.sha256(repr(self.train).encode()).hexdigest()

    def speed_batches(self) -> list[Arrays]:
        return sorted_batches(self.inputs, self.tokenizer)

    def original_speed_batches(self) -> list[Arrays]:
        """The same texts as the original's own tokenizer cuts them."""
        return sorted_batches(self.inputs, _tokenizer(self.tokenizer_bytes, self.recipe, self.facts.pad_token_id))

    def items_of(self, batch: Any) -> int:
        return len(batch["input_ids"])

    @property
    def unit(self) -> str:
        return "sentences"

    @property
    def extent(self) -> dict[str, int]:
        return {"examples": len(self.examples), "max_length": self.recipe.serve.max_length}

    def run_of(self, module: torch.nn.Module) -> Run:
        def run(arrays: Arrays) -> np.ndarray:
            with torch.inference_mode():
                return module(**{name: torch.from_numpy(value) for name, value in arrays.items()}).numpy()

        return run

    def _tensors(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        names = arrays if self.module.takes_type_ids else ("input_ids", "attention_mask")
        return {name: torch.from_numpy(arrays[name]) for name in names}

    def _labels(self) -> torch.Tensor | None:
        """[n] ids or numbers, or [n, labels] of zeros and ones; None when some training example has no label."""
        found: list[Any] = [example.label for example in self.train]
        if any(label is None for label in found):
            return None
        if self.facts.multi_label:
            labels = torch.zeros(len(found), self.facts.num_labels)
            for row, ids in enumerate(found):
                labels[row, list(ids if isinstance(ids, tuple) else (ids,))] = 1.0
            return labels
        return torch.tensor(found, dtype=torch.float32 if self.facts.num_labels == 1 else torch.int64)


def _tokenizer(tokenizer_json: bytes, recipe: Recipe, pad_id: int) -> Encoder:
    return Encoder(tokenizer_json, max_length=recipe.serve.max_length, pad_id=pad_id)


def _inputs(examples: Sequence[Example], task: str) -> list[TextInput]:
    """What the model sees of examples: pairs for a classifier, every single text once for embeddings."""
    if task == "feature-extraction":
        return unique_texts(examples)
    return [TextInput(example.text, example.text_pair) for example in examples]


def raw_outputs(module: torch.nn.Module, tokenizer: Encoder, inputs: Sequence[TextInput], rows: int = 32) -> np.ndarray:
    """[n, width] float32 in the order of `inputs`, run in batches of like length, where the module's weights are."""
    encoded: list[Encoded] = tokenizer.encode(inputs)
    device = next(module.parameters()).device
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    outputs: list[np.ndarray] = [np.empty(0)] * len(encoded)
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            members = order[start : start + rows]
            arrays = tokenizer.pad([encoded[i] for i in members], len(encoded[members[-1]].ids))
            found = module(**{name: torch.from_numpy(value).to(device) for name, value in arrays.items()})
            for position, index in enumerate(members):
                outputs[index] = found[position].float().cpu().numpy()
    return np.stack(outputs)
