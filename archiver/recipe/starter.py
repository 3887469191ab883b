"""`init`: look at a model directory and write a commented recipe for it, which builds as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

from archiver.errors import UnsupportedModelError
from archiver.models.facts import ModelFacts, inspect_model
from archiver.models.source import resolve_model
from archiver.recipe.check import RESERVED
from archiver.recipe.yaml_tree import Node, Problems, read_yaml
from archiver.runtimes import RUNTIMES
from archiver.tasks import TASKS, Task, default_task


def write_recipe(model_dir: Path | str, task: str | None = None) -> str:
    """A recipe's YAML text for a model directory (or an embedded model's id), `model:` written as it was given.

    task: None for the one the model is made for
    raises UnsupportedModelError that lists why the model cannot be used
    """
    given = str(model_dir)
    if task is not None and task not in TASKS:
        raise UnsupportedModelError(f"task {task!r} is not supported; allowed: {', '.join(TASKS)}")
    if not given.startswith("embedded:") and not Path(given).is_dir():
        raise UnsupportedModelError(f"{given} is no directory: name one that holds config.json and model.safetensors")
    source = resolve_model(given if given.startswith("embedded:") else Path(given))
    chosen = TASKS[task or default_task(source.path)].of_model(source.path)
    facts = inspect_model(source.path, chosen.auto_class, task=chosen.name, **chosen.inspected)
    names = [one.name for one in RUNTIMES.values() if chosen.execution in one.ways]
    return _HEAD.format(
        name=_yaml_string(_name(source.source)),
        task=chosen.name,
        model=_yaml_string(given),
        summary=_summary(chosen, facts),
        data=chosen.starter_body(facts),
        limits=chosen.starter_limits(facts),
        runtime=f"auto                 # or {', '.join(names)}",
        batches=chosen.starter_serve,
    )


def _name(source: str) -> str:
    """An archive's name made of a folder's: what is not allowed in one becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rpartition("/")[2]).strip("._-")
    return f"{'model-' if name.startswith(RESERVED) else ''}{name}"[:128] or "model"


def _yaml_string(text: str) -> str:
    """`text` bare where YAML reads it back as it is, else quoted."""
    problems = Problems()
    node = read_yaml(f"key: {text}", "key", Path(), problems)
    read = node.value.get("key") if node is not None and isinstance(node.value, dict) else None
    plain = not problems and isinstance(read, Node) and read.value == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def _summary(task: Task, facts: ModelFacts) -> str:
    said = [
        f"{facts.num_parameters / 1e6:.1f} M parameters",
        *(
            [f"{facts.num_layers} layers of {facts.hidden_size}"] if facts.num_layers else []
        ),  # convolutions have stages
        f"{facts.weight_bytes / 1e6:.0f} MB of {facts.dtype} weights",
        *([f"at most {facts.max_positions} tokens"] if facts.vocab_size else []),
    ]
    lines = [f"{facts.architecture or facts.model_type}: {', '.join(said)}"]
    return "\n".join(f"# {line}" for line in lines + task.summary(facts))


_HEAD = """\
{summary}
name: {name}
version: v1
task: {task}
model: {model}
{data}
serve:
  runtime: {runtime}
  device: cpu                   # or cuda
  workers: auto                 # with threads, from the cores the serving container has
{batches}
{limits}
  max_inputs: 64                # most inputs in one request
  examples: 4                   # answered and stored in the archive, for verify and warm-up; or a file of texts
"""
