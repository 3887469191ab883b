"""Before the first minute of work: everything that can be wrong with the model, the data and the stages, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archiver.data.examples import read_examples
from archiver.data.windows import read_text, windows_of
from archiver.errors import DataError, RecipeError
from archiver.models.chat_template import read_chat_template
from archiver.models.load import ModelFacts, ModelSource, inspect_model, resolve_model, skeleton
from archiver.runtimes.openvino_assistance import draft_problems
from archiver.spec import Recipe
from archiver.tasks.encoders import EncoderSubject
from archiver.tasks.text.generation_workload import DecoderSubject, context_of

# Where a recipe names no validation data, speed and stored examples come from the English text CPython ships.
FALLBACK_VALIDATION = "embedded:cpython:validation"


@dataclass(frozen=True)
class Checked:
    """A recipe whose model, data and stages fit together.

    validation, train: Examples; for text-generation one text each, or none
    """

    recipe: Recipe
    source: ModelSource
    facts: ModelFacts
    validation: list[Any]
    train: list[Any]


def check(recipe: Recipe) -> Checked:
    """Read the model's facts and all data, and let every stage look at the model's shapes.

    raises RecipeError that lists every problem
    """
    source = resolve_model(recipe.model)
    facts = inspect_model(source.path, recipe.task)
    problems = _serving_problems(recipe, source, facts)
    if facts.decoder:
        read_chat_template(source.path)
    if recipe.serve.draft is not None:
        tokenizer = (source.path / "tokenizer.json").read_bytes()
        problems += draft_problems(recipe.serve.draft, tokenizer, facts.vocab_size, recipe.task)
    found: dict[str, list[Any]] = {"train": [], "validation": []}
    data = recipe.data
    wants_train = data.train is not None and any(stage.needs_data for stage in recipe.compress)
    sources = {"train": data.train if wants_train else None, "validation": data.validation or FALLBACK_VALIDATION}
    how: dict[str, Any] = {"task": recipe.task, "id2label": facts.id2label or None, "multi_label": facts.multi_label}
    for part, where in sources.items():
        try:
            if where is not None and facts.decoder:
                found[part] = [_text(recipe, source, facts, where)]
            elif where is not None:
                found[part] = read_examples(where, None if where == FALLBACK_VALIDATION else data.columns, **how)
        except DataError as error:
            problems += [f"data.{part}: {error.message}", *error.problems]
    problems += _stage_problems(recipe, source)
    if problems:
        raise RecipeError(f"the recipe {recipe.name} does not fit its model and data:", problems)
    return Checked(recipe, source, facts, found["validation"], found["train"])


def load(checked: Checked) -> EncoderSubject | DecoderSubject:
    """Load the model and take the original's answers to the validation inputs."""
    if checked.facts.decoder:
        train = checked.train[0] if checked.train else ""
        return DecoderSubject.load(checked.recipe, checked.source, checked.facts, checked.validation[0], train)
    return EncoderSubject.load(checked.recipe, checked.source, checked.facts, checked.validation, checked.train)


def _text(recipe: Recipe, source: ModelSource, facts: ModelFacts, where: Path | str) -> str:
    """A language model's text, which must fill at least one window."""
    text = read_text(where, str(recipe.data.columns.get("text", "text")))
    context = context_of(recipe, facts)
    if 2 <= context <= facts.max_positions:
        windows_of(text, (source.path / "tokenizer.json").read_bytes(), context)
    return text


def _serving_problems(recipe: Recipe, source: ModelSource, facts: ModelFacts) -> list[str]:
    problems = []
    if recipe.serve.max_length > facts.max_positions:
        problems.append(
            f"serve.max_length is {recipe.serve.max_length}; {source.source} has positions for {facts.max_positions} "
            f"tokens: set serve.max_length to at most that"
        )
    if recipe.data.context is not None and recipe.data.context > facts.max_positions:
        problems.append(
            f"data.context is {recipe.data.context}; {source.source} has positions for {facts.max_positions} tokens: "
            "set data.context to at most that"
        )
    if recipe.serve.device == "cuda" and recipe.serve.runtime == "openvino":
        problems.append(
            "serve.device is cuda, which the runtime openvino cannot use: set runtime to onnxruntime or torch"
        )
    limits = [stage.entry.devices for stage in recipe.compress]
    reasons = [only.reason for only in limits if only is not None and recipe.serve.device not in only.allowed]
    return problems + [f"serve.device is {recipe.serve.device}, but {reason}" for reason in dict.fromkeys(reasons)]


def _stage_problems(recipe: Recipe, source: ModelSource) -> list[str]:
    """What the stages say of the model's modules and shapes: each in turn, on a model without weights (meta device).

    A stage's check changes the shapes as the stage will, so that the next one sees what it will meet.
    """
    checks = [(index, stage, stage.entry.load_check()) for index, stage in enumerate(recipe.compress)]
    if not any(function for _, _, function in checks):
        return []
    problems = []
    with torch.device("meta"):
        model = skeleton(source, recipe.task)
        for index, stage, function in checks:
            if function is not None:
                found = function(model, stage.options)
                problems += [f"compress.{index}: {stage.label}: {line}" for line in found]
    return problems
