"""Recipes of token-classification and question-answering over tiny models, with data beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_models import SENTENCES

LABELS = {0: "O", 1: "B-X", 2: "I-X"}
_TAGS = ("O", "B-X", "I-X")


def write_tagged(path: Path) -> Path:
    """A CoNLL file of 18 sentences, the last longer than a window."""
    sentences = [*SENTENCES * 3, " ".join(SENTENCES * 2)]
    blocks = ["\n".join(f"{word}\t{_TAGS[len(word) % 3]}" for word in text.split()) for text in sentences]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


def write_questions(path: Path) -> Path:
    """SQuAD's JSON of 12 questions, one with a context longer than a window and one without an answer."""
    paragraphs = []
    for index, text in enumerate([*SENTENCES, " ".join(SENTENCES * 2)]):
        last = text.split()[-1]
        answers = [] if index == 1 else [{"text": last, "answer_start": text.rindex(last)}]
        asked = [{"question": f"{word} film?", "answers": answers} for word in ("what", "which")]
        paragraphs.append({"context": text, "qas": asked})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def write_recipe(folder: Path, task: str, model: Path, compress: list[dict[str, Any]], **serve: Any) -> Path:
    """folder/tags.yaml or answers.yaml, for one of the two tasks."""
    tags = task == "token-classification"
    data = write_tagged(folder / "tags.conll") if tags else write_questions(folder / "questions.json")
    recipe = {
        "name": "tags" if tags else "answers",
        "task": task,
        "model": str(model),
        "data": {"train": str(data), "validation": str(data)},
        "compress": compress,
        "serve": {"max_length": 32, "workers": 1, "examples": 2, **serve},
    }
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
