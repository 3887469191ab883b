"""Parts of a recipe that are each right and cannot work together."""

from __future__ import annotations

from pathlib import Path

from archiver.recipe.order import order_problems
from archiver.recipe.yaml_tree import Node, Problems
from archiver.runtimes import RUNTIMES, serves_adapters, serving_runtimes
from archiver.spec import DataSpec, GateSpec, ServeSpec, Stage
from archiver.tasks import FORWARD, TASKS, Task


def check_combinations(
    root: Node,
    task: Task | None,
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
    if task is not None:
        _check_task_keys(root, task, problems)
        _check_data_kind(root, task, data, problems)
        _check_runtime(root, task, serve, problems)
        _check_several(root, task, serve, problems)
        _check_methods(root, task, stages, serve, problems)


def _check_task_keys(root: Node, task: Task, problems: Problems) -> None:
    """Keys that only other tasks take."""
    for section, own in (("data", "data_keys"), ("serve", "serve_keys")):
        owners = {key: other.name for other in TASKS.values() for key in getattr(other, own)}
        for key in sorted(_keys_of(root, section)):
            if key in owners and key not in getattr(task, own):
                entry = root.value[section].value[key]
                problems.add(entry, f"{section}.{key} is for {owners[key]}, the task is {task.name}: remove it")


def _check_data_kind(root: Node, task: Task, data: DataSpec, problems: Problems) -> None:
    """A task of running text takes plain text files; no task takes columns but its own."""
    unneeded = [key for key in data.columns if key not in task.columns]
    if unneeded:
        entry = root.value["data"].value["columns"]
        reason = (
            "says nothing to a language model: give at most text"
            if task.plain_text
            else (f"says nothing to {task.name}; allowed: {', '.join(task.columns)}")
        )
        problems.add(entry, f"data.columns.{unneeded[0]} {reason}")
    if not task.plain_text:
        return
    for key in ("train", "validation"):
        source = getattr(data, key)
        if isinstance(source, Path) and source.suffix.lower() != ".txt":
            entry = root.value["data"].value[key]
            problems.add(entry, f"data.{key}: {source.name} is a table; a language model's data is plain text (.txt)")


def _check_runtime(root: Node, task: Task, serve: ServeSpec, problems: Problems) -> None:
    """Runtimes that do not serve the task, or not on the device."""
    key = "runtimes" if serve.runtimes else "runtime"
    if serve.runtimes and task.execution != FORWARD:
        return  # `_check_several` says what is allowed
    words = ["auto"] if key == "runtime" else []
    others = words + [one.name for one in RUNTIMES.values() if task.execution in one.ways]
    for name in serve.runtimes or [serve.runtime]:
        runtime = RUNTIMES.get(name)
        if runtime is None:
            continue
        entries = root.value["serve"].value
        if task.execution not in runtime.ways:
            allowed = f"{', '.join(others[:-1])} or {others[-1]}"
            problems.add(entries[key], f"{task.name} is not served with {runtime.name}: use {allowed}")
        elif serve.device not in runtime.devices:
            able = " or ".join(
                filter(None, [", ".join(one.name for one in serving_runtimes(task.execution, serve.device)), *words])
            )
            problems.add(
                entries.get("device", entries[key]),
                f"serve.device {serve.device} cannot be run by {runtime.name}: "
                f"use {able}, or device {runtime.devices[0]}",
            )
        elif serve.adapters and not runtime.ways[task.execution].adapters:
            able = " or ".join(one.name for one in RUNTIMES.values() if serves_adapters(one, task.execution))
            problems.add(
                entries["adapters"], f"serve.adapters: {runtime.name} serves no adapters: use {able}, or remove them"
            )


def _check_several(root: Node, task: Task, serve: ServeSpec, problems: Problems) -> None:
    """What does not go with `serve.runtimes`, and what says nothing without it."""
    if not serve.runtimes:
        if "choose_at_load" in (given := _keys_of(root, "serve")) and "runtimes" not in given:
            entry = root.value["serve"].value["choose_at_load"]
            problems.add(entry, "serve.choose_at_load says nothing without serve.runtimes: name at least two there")
        return
    entries = root.value["serve"].value
    if task.execution != FORWARD:
        problems.add(
            entries["runtimes"],
            f"serve.runtimes is for tasks that answer with one pass, and {task.name} writes token by token: name one "
            "runtime in serve.runtime",
        )
    if serve.runtime != "auto":
        problems.add(
            entries["runtime"],
            f"serve.runtime is {serve.runtime}, and serve.runtimes names several: remove one of them",
        )
    if serve.precision != "f32":
        problems.add(
            entries["precision"],
            f"serve.precision is {serve.precision}, which OpenVINO alone computes with, and serve.runtimes names several: "
            "remove one of them",
        )


def _check_methods(
    root: Node, task: Task, stages: tuple[Stage | None, ...], serve: ServeSpec, problems: Problems
) -> None:
    """Methods that are not for this kind of task, or not for this device."""
    for index, stage in enumerate(stages):
        if stage is None:
            continue
        entry = root.value["compress"].value[index]
        executions, devices = stage.entry.executions, stage.entry.devices
        if executions is not None and task.execution not in executions.allowed:
            problems.add(entry, f"compress.{index}: {stage.label} {executions.reason}")
        if serve.adapters and getattr(stage.options, "rotate", False):
            problems.add(
                entry,
                f"compress.{index}: {stage.label} turns hidden states, and adapters were trained on those of the original: "
                "set rotate to false, or remove serve.adapters",
            )
        if devices is not None and serve.device not in devices.allowed:
            problems.add(
                entry, f"compress.{index}: {stage.label}: serve.device is {serve.device}, but {devices.reason}"
            )


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
    task: Task | None,
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
        metric = task.metrics.get(name) if task else None
        if metric is None:
            continue
        needs = metric.needs
        if needs and plain_text:
            shown = source.name if isinstance(source, Path) else source
            problems.add(node, f"{what}: {name} needs a {' and a '.join(needs)}; data.validation {shown} is plain text")
            continue
        missing = [key for key in needs if data.columns and key not in data.columns]
        if missing:
            problems.add(node, f"{what}: {name} needs data.columns.{' and '.join(missing)}: name that column")
