"""Parts of a recipe that are each right and cannot work together."""

from __future__ import annotations

from pathlib import Path

from archiver.recipe.order import order_problems
from archiver.recipe.yaml_tree import Node, Problems
from archiver.spec import GENERATION_KEYS, DataSpec, GateSpec, ServeSpec, Stage
from archiver.tasks.base import TASKS


def check_combinations(
    root: Node,
    task: str | None,
    data: DataSpec,
    stages: tuple[Stage | None, ...],
    gate: GateSpec | None,
    serve: ServeSpec,
    problems: Problems,
) -> None:
    """Adds a problem for every combination that cannot work, at the line of the key that asks for too much."""
    named = _keys_of(root, "data")
    has_train, has_validation = "train" in named, "validation" in named
    for index, stage in enumerate(stages):
        if stage is None:
            continue
        node = root.value["compress"].value[index]
        what = f"compress.{index}: {stage.label}"
        if stage.needs_data and not has_train:
            use = "is calibrated on" if stage.verb == "quantize" and stage.entry.needs_data else "learns from"
            problems.add(node, f"{what} {use} data.train, which is missing: add it, or use another method")
        for key in ("max_drop", "max_increase"):
            if metrics := tuple(getattr(stage, key)):
                _check_metrics(node, f"{what}: {key}", metrics, task, data, has_validation, problems)
    for index, reason in order_problems(stages):
        problems.add(root.value["compress"].value[index], f"compress.{index}: {reason}")
    gate_node = root.value.get("gate")
    if gate is not None and gate_node is not None:
        if gate.min_speedup is not None and not has_validation:
            entry = gate_node.value["min_speedup"]
            problems.add(entry, "gate.min_speedup is measured over data.validation, which is missing: add it")
        for key in ("max_drop", "max_increase", "min"):
            metrics = tuple(getattr(gate, key))
            if metrics:
                _check_metrics(gate_node.value[key], f"gate.{key}", metrics, task, data, has_validation, problems)
    if task == "text-generation":
        _check_language_model(root, data, stages, serve, problems)
    else:
        if data.context is not None:
            entry = root.value["data"].value["context"]
            problems.add(entry, f"data.context is for text-generation, the task is {task}: remove it")
        for key in sorted(_keys_of(root, "serve") & GENERATION_KEYS):
            entry = root.value["serve"].value[key]
            problems.add(entry, f"serve.{key} is for text-generation, the task is {task}: remove it")
        if serve.runtime == "vllm":
            problems.add(root.value["serve"].value["runtime"], "serve.runtime vllm is for text-generation: use auto")
    if serve.device == "cuda" and serve.runtime == "openvino":
        entry = root.value["serve"].value["device"]
        problems.add(
            entry, "serve.device cuda cannot be run by openvino: use onnxruntime, torch or auto, or device cpu"
        )


def _check_language_model(
    root: Node, data: DataSpec, stages: tuple[Stage | None, ...], serve: ServeSpec, problems: Problems
) -> None:
    """Its data is plain text, and torch serves it."""
    for key in ("train", "validation"):
        source = getattr(data, key)
        if isinstance(source, Path) and source.suffix.lower() != ".txt":
            entry = root.value["data"].value[key]
            problems.add(entry, f"data.{key}: {source.name} is a table; a language model's data is plain text (.txt)")
    unneeded = [key for key in data.columns if key != "text"]
    if unneeded:
        entry = root.value["data"].value["columns"]
        problems.add(entry, f"data.columns.{unneeded[0]} says nothing to a language model: give at most text")
    if serve.runtime not in ("auto", "openvino", "torch", "vllm"):
        entry = root.value["serve"].value["runtime"]
        problems.add(entry, f"text-generation is not served with {serve.runtime}: use auto, openvino, torch or vllm")
    for index, stage in enumerate(stages):
        only = stage.entry.executions if stage is not None else None
        if stage is not None and only is not None and "generate" not in only.allowed:
            problems.add(root.value["compress"].value[index], f"compress.{index}: {stage.label} {only.reason}")


def _keys_of(root: Node, key: str) -> set[str]:
    """Keys of a section as written: a value that is wrong counts as given, it has its own problem already."""
    node = root.value.get(key)
    if node is None or not isinstance(node.value, dict):
        return set()
    return {name for name, value in node.value.items() if value.value is not None}


def _check_metrics(
    node: Node,
    what: str,
    metrics: tuple[str, ...],
    task: str | None,
    data: DataSpec,
    has_validation: bool,
    problems: Problems,
) -> None:
    """Metrics are measured on data.validation; some need labels, or pairs of texts, in it."""
    if not has_validation:
        problems.add(node, f"{what} is measured on data.validation, which is missing: add it, or remove {what}")
        return
    source = data.validation
    plain_text = (isinstance(source, Path) and source.suffix.lower() == ".txt") or (
        isinstance(source, str) and source.startswith("embedded:")
    )
    for name in metrics:
        metric = TASKS[task].metrics.get(name) if task else None
        if metric is None:
            continue
        needs = [key for key, needed in (("label", metric.needs_label), ("text_pair", metric.needs_pair)) if needed]
        if needs and plain_text:
            shown = source.name if isinstance(source, Path) else source
            problems.add(node, f"{what}: {name} needs a {' and a '.join(needs)}; data.validation {shown} is plain text")
            continue
        missing = [key for key in needs if data.columns and key not in data.columns]
        if missing:
            problems.add(node, f"{what}: {name} needs data.columns.{' and '.join(missing)}: name that column")
