"""What a build works on: the recipe, the model with its facts, the examples, and the original's answers to them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from archiver.data import Example, read_examples
from archiver.errors import DataError, RecipeError
from archiver.evaluation.metrics import measure, unique_texts
from archiver.models import ModelFacts, ModelSource, inspect_model, load_model, resolve_model
from archiver.recipe import Recipe
from handlers.encoding import Encoder, TextInput
from handlers.torch_encoder import EncoderWithHead

# Where a recipe names no validation data, speed and stored examples come from the English text CPython ships.
FALLBACK_VALIDATION = "embedded:cpython:validation"


@dataclass
class Subject:
    """model: the transformers module that the stages change. encoder: it with its head. original: an untouched copy.

    inputs: what is measured on (feature-extraction: every single text once). reference: the original's raw outputs.
    """

    recipe: Recipe
    source: ModelSource
    facts: ModelFacts
    examples: list[Example]
    train: list[Example]
    tokenizer: Encoder
    model: torch.nn.Module
    encoder: EncoderWithHead
    original: EncoderWithHead
    inputs: list[TextInput]
    reference: np.ndarray
    normalize: bool

    def metrics(self, outputs: np.ndarray) -> dict[str, float]:
        """The task's metrics of raw outputs on `inputs`, against the labels and the original's outputs."""
        how: dict[str, Any] = {"task": self.recipe.task, "multi_label": self.facts.multi_label}
        return measure(outputs, self.reference, self.inputs, self.examples, **how)

    @cached_property
    def original_metrics(self) -> dict[str, float]:
        return self.metrics(self.reference)


def check(recipe: Recipe) -> tuple[ModelSource, ModelFacts, list[Example], list[Example]]:
    """Everything that can be found wrong before the first minute of work: the model, the data, and how they fit."""
    source = resolve_model(recipe.model)
    facts = inspect_model(source.path, recipe.task)
    problems = []
    if recipe.serve.max_length > facts.max_positions:
        problems.append(
            f"serve.max_length is {recipe.serve.max_length}; {source.source} has positions for {facts.max_positions} "
            f"tokens: set serve.max_length to at most that"
        )
    if recipe.serve.device == "cuda" and recipe.serve.runtime == "openvino":
        problems.append(
            "serve.device is cuda, which the runtime openvino cannot use: set runtime to onnxruntime or torch"
        )
    if recipe.serve.device == "cuda" and any(
        stage.method in ("dynamic-int8", "static-int8") for stage in recipe.compress
    ):
        problems.append(
            "serve.device is cuda, but int8 activations run on the CPU only: use weight-only, or device: cpu"
        )
    how: dict[str, Any] = {"task": recipe.task, "id2label": facts.id2label or None, "multi_label": facts.multi_label}
    data = recipe.data
    wants_train = data.train is not None and any(stage.entry.needs_data for stage in recipe.compress)
    sources = {"train": data.train if wants_train else None, "validation": data.validation or FALLBACK_VALIDATION}
    found: dict[str, list[Example]] = {"train": [], "validation": []}
    for part, where in sources.items():
        try:
            if where is not None:
                found[part] = read_examples(where, None if where == FALLBACK_VALIDATION else data.columns, **how)
        except DataError as error:
            problems += [f"data.{part}: {error.message}", *error.problems]
    if problems:
        raise RecipeError(f"the recipe {recipe.name} does not fit its model and data:", problems)
    return source, facts, found["validation"], found["train"]


def load(
    recipe: Recipe, source: ModelSource, facts: ModelFacts, examples: list[Example], train: list[Example]
) -> Subject:
    """Load the model and take the original's answers to the validation inputs."""
    model = load_model(source, recipe.task)
    pooling, normalize = None, False
    if recipe.task == "feature-extraction":
        pooling, normalize = facts.pooling.mode, facts.pooling.normalize
    encoder = EncoderWithHead(model, recipe.task, pooling)
    original = copy.deepcopy(encoder).eval()
    tokenizer = Encoder(source.path / "tokenizer.json", max_length=recipe.serve.max_length, pad_id=facts.pad_token_id)
    if recipe.task == "feature-extraction":
        inputs = unique_texts(examples)
    else:
        inputs = [TextInput(example.text, example.text_pair) for example in examples]
    reference = raw_outputs(original, tokenizer, inputs)
    return Subject(
        recipe, source, facts, examples, train, tokenizer, model, encoder, original, inputs, reference, normalize
    )


def raw_outputs(
    encoder: torch.nn.Module, tokenizer: Encoder, inputs: Sequence[TextInput], rows: int = 32
) -> np.ndarray:
    """[n, width] float32 in the order of `inputs`, run in batches of like length."""
    encoded = tokenizer.encode(inputs)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    outputs: list[np.ndarray] = [np.empty(0)] * len(encoded)
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            members = order[start : start + rows]
            arrays = tokenizer.pad([encoded[i] for i in members], len(encoded[members[-1]].ids))
            found = encoder(**{name: torch.from_numpy(value) for name, value in arrays.items()})
            for position, index in enumerate(members):
                outputs[index] = found[position].float().numpy()
    return np.stack(outputs)


def calibration_batches(subject: Subject, samples: int) -> list[dict[str, torch.Tensor]]:
    """One training text a batch, without padding, in file order: what a static method learns its ranges from."""
    chosen = subject.train[:samples]
    texts = unique_texts(chosen) if subject.recipe.task == "feature-extraction" else None
    inputs = texts[:samples] if texts is not None else [TextInput(item.text, item.text_pair) for item in chosen]
    batches = []
    for item in subject.tokenizer.encode(inputs):
        arrays = subject.tokenizer.pad([item], len(item.ids))
        names = arrays if subject.encoder.takes_type_ids else ("input_ids", "attention_mask")
        batches.append({name: torch.from_numpy(arrays[name]) for name in names})
    return batches
