"""A recipe's tree against what a recipe may hold: every mistake is put into `problems`, none stops the search."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from archiver.compression import METHODS
from archiver.fields import REQUIRED, Allowed, options_of
from archiver.recipe.combinations import check_combinations
from archiver.recipe.sources import (
    DataKinds,
    check_adapters,
    check_data_source,
    check_draft,
    check_file,
    check_model,
    local_path,
)
from archiver.recipe.yaml_tree import Node, Problems, plain
from archiver.runtimes import RUNTIMES
from archiver.spec import DataSpec, GateSpec, NewModel, Recipe, ServeSpec, Stage
from archiver.tasks import TASKS, Task, task_of

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
RESERVED = "token"  # no name begins so: the server would never be ready (TorchServe 0.12, TokenAuthorizationHandler)
_SECTIONS: dict[str, tuple[str, ...]] = {
    "": ("name", "version", "task", "model", "data", "compress", "gate", "serve"),
    "data": tuple(f.name for f in dataclasses.fields(DataSpec)),
    "gate": tuple(f.name for f in dataclasses.fields(GateSpec)),
    "serve": tuple(f.name for f in dataclasses.fields(ServeSpec)),
}


def check_recipe(root: Node, base_dir: Path, problems: Problems) -> Recipe | None:
    """The Recipe that a tree describes, or None when there are problems."""
    top = mapping(root, "a recipe", _SECTIONS[""], problems, required=("name", "task", "model"))
    if top is None:
        return None
    name = _text(top, "name", problems)
    version = _text(top, "version", problems) if "version" in top else "v1"
    task_name = choice(top["task"], "task", TASKS, problems) if "task" in top else None
    task = TASKS.get(task_name or "")
    model = _model(top["model"], task, problems) if "model" in top else None
    data = _data(top["data"], task, problems) if _given(top, "data") else DataSpec()
    if isinstance(model, NewModel) and data.train is None and "train" not in _keys(top.get("data")):
        problems.add(top["model"], f"model: a new {model.family} learns from data.train, which is missing: add it")
    stages = _stages(top["compress"], task, problems) if _given(top, "compress") else ()
    gate = _gate(top["gate"], task, problems) if _given(top, "gate") else None
    serve = _serve(top["serve"], task, problems) if _given(top, "serve") else ServeSpec()
    if name in serve.adapters:
        problems.add(top["serve"], f"serve.adapters: {name} is the name of the model itself: choose another")
    check_combinations(root, task_of(task_name, model) if task_name else None, data, stages, gate, serve, problems)
    if problems or name is None or version is None or task_name is None or model is None:
        return None
    compress = tuple(stage for stage in stages if stage is not None)
    return Recipe(name, version, task_name, model, data, compress, gate, serve, base_dir)


def _keys(node: Node | None) -> set[str]:
    return set(node.value) if node is not None and isinstance(node.value, dict) else set()


def _given(top: dict[str, Node], key: str) -> bool:
    return key in top and top[key].value is not None


def show(node: Node) -> str:
    """The value found, short enough for a message."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list"
    if node.value is None:
        return "nothing"
    text = repr(node.value) if isinstance(node.value, str) else node.text or str(node.value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggestion(word: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest allowed word, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def mapping(
    node: Node, what: str, allowed: Iterable[str], problems: Problems, required: Iterable[str] = ()
) -> dict[str, Node] | None:
    """The allowed entries of a mapping; unknown and missing keys become problems. None when it is no mapping."""
    allowed = tuple(allowed)
    if not isinstance(node.value, dict):
        problems.add(node, f"{what} must be a mapping with keys among {', '.join(allowed)}; found {show(node)}")
        return None
    for key in node.value:
        if key not in allowed:
            homes = [name for name, keys in _SECTIONS.items() if key in keys]
            if homes:
                hint = f"; it belongs {f'under {homes[0]}:' if homes[0] else 'at the top level'}"
            else:
                hint = suggestion(key, allowed)
            where, order = node.keys[key]
            problems.add_at(where, order, f"unknown key {key!r} in {what}{hint}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in node.value:
            problems.add(node, f"{what} lacks the key {key!r}; add `{key}: ...`")
    return {key: value for key, value in node.value.items() if key in allowed}


def choice(node: Node, what: str, allowed: Iterable[str], problems: Problems) -> str | None:
    """The node's string when it is one of `allowed`."""
    allowed = tuple(allowed)
    if isinstance(node.value, str) and node.value in allowed:
        return node.value
    hint = suggestion(node.text, allowed)
    problems.add(node, f"unknown {what} {show(node)}{hint}; allowed: {', '.join(allowed)}")
    return None


def _model(node: Node, task: Task | None, problems: Problems) -> Path | str | NewModel | None:
    """A directory or an id; or a new model: `new:FAMILY`, or a mapping with `new: FAMILY` and its sizes."""
    short = isinstance(node.value, str) and node.value.startswith("new:")
    if not short and not isinstance(node.value, dict):
        return check_model(node, problems)
    families = task.new_models if task is not None else {}
    if task is not None and not families:
        makers = ", ".join(name for name, one in TASKS.items() if one.new_models)
        problems.add(node, f"model: {task.name} makes no new models, {makers} does: name a directory or a hub id")
        return None
    if short:
        family = choice(dataclasses.replace(node, value=node.value[4:]), "family of model, new:", families, problems)
        return None if family is None else NewModel(family, families[family]())
    if "new" not in node.value:
        problems.add(node, "model is a mapping without the key 'new': name the family, such as `new: sasrec`")
        return None
    family = choice(node.value["new"], "family of model, new:", families, problems)
    if family is None:
        return None
    entries = mapping(node, "model", ("new", "keep", *options_of(families[family])), problems) or {}
    options = read_options(families[family], entries, "model.", problems)
    keep = entries.get("keep")
    if keep is not None and not (isinstance(keep.value, str) and keep.value.strip()):
        problems.add(keep, f"model.keep must be a folder's path, where the trained model is left; found {show(keep)}")
        return None
    if options is None:
        return None
    for mistake in options.mistakes():
        problems.add(node, f"model: {mistake}")
    return NewModel(family, options, None if keep is None else local_path(keep))


def _text(top: dict[str, Node], key: str, problems: Problems) -> str | None:
    """A string; a plain number counts as it is written, so that `version: 1.10` is "1.10"."""
    if key not in top:
        return None
    node = top[key]
    scalar = node.value is not None and not isinstance(node.value, (dict, list, bool))
    if scalar and NAME.match(node.text) and len(node.text) <= 128:
        if node.text.startswith(RESERVED):
            problems.add(
                node,
                f"{key} begins with {RESERVED!r}: TorchServe takes every address with /{RESERVED} for that of its own "
                "keys; choose another",
            )
            return None
        return node.text
    allowed = "letters, digits, '.', '_' and '-' that begins with a letter or digit, at most 128 long"
    problems.add(node, f"{key} must be a string of {allowed}; found {show(node)}")
    return None


def read_options(cls: type[T], entries: dict[str, Node], prefix: str, problems: Problems) -> T | None:
    """An instance of a dataclass made of `archiver.fields.option` fields, from the entries that name them."""
    values: dict[str, Any] = {}
    good = True
    for name, (allowed, default) in options_of(cls).items():
        if name not in entries:
            if default is REQUIRED:
                raise AssertionError(f"{cls.__name__}.{name}: a required option must be checked by `mapping`")
            continue
        value = read_value(entries[name], f"{prefix}{name}", allowed, problems)
        good = good and value is not None
        values[name] = value
    return cls(**values) if good else None


def read_value(node: Node, what: str, allowed: Allowed, problems: Problems) -> Any:
    """The node's value when it is allowed, globs as a tuple and numbers as their kind; None when it is not."""
    if allowed.kind == "options" and allowed.of is not None and isinstance(node.value, dict):
        before = len(problems.lines())
        entries = mapping(node, what, options_of(allowed.of), problems) or {}
        found = read_options(allowed.of, entries, f"{what}.", problems)
        return found if len(problems.lines()) == before else None
    value = plain(node)
    problem = allowed.problem(value)
    if problem:
        words = [word for word in allowed.choices if isinstance(word, str)]
        hint = suggestion(node.text, words) if words else ""
        problems.add(node, f"{what} {problem}; found {show(node)}{hint}")
        return None
    if allowed.kind == "globs":
        return tuple(value) if isinstance(value, list) else (value,)
    if allowed.kind == "parsed":
        assert allowed.parse is not None
        return allowed.parse(value)
    return float(value) if allowed.kind == "number" and not isinstance(value, str) else value


def _data(node: Node, task: Task | None, problems: Problems) -> DataSpec:
    entries = mapping(node, "data", _SECTIONS["data"], problems) or {}
    train, validation = (
        check_data_source(entries[key], f"data.{key}", key, problems, _kinds(task)) if _given(entries, key) else None
        for key in ("train", "validation")
    )
    columns = _columns(entries["columns"], task, problems) if _given(entries, "columns") else {}
    items = check_file(entries["items"], "data.items", problems, _kinds(task)) if _given(entries, "items") else None
    options = {key: value for key, value in entries.items() if value.value is not None}
    read = read_options(DataSpec, options, "data.", problems) or DataSpec()
    return dataclasses.replace(read, train=train, validation=validation, columns=columns, items=items)


def _kinds(task: Task | None) -> DataKinds:
    return DataKinds(task.data_suffixes, task.data_folders) if task else DataKinds()


def _columns(node: Node, task: Task | None, problems: Problems) -> dict[str, str | int]:
    allowed_keys = dict.fromkeys(key for one in TASKS.values() for key in one.columns)
    required = (task or next(iter(TASKS.values()))).columns[:1]
    entries = mapping(node, "data.columns", allowed_keys, problems, required=required) or {}
    columns: dict[str, str | int] = {}
    for key, value in entries.items():
        position = isinstance(value.value, int) and not isinstance(value.value, bool) and 0 <= value.value < 10_000
        if position or (isinstance(value.value, str) and value.value):
            if value.value in columns.values():
                problems.add(value, f"data.columns.{key} is column {show(value)}, which another key has already")
            columns[key] = value.value
        else:
            allowed = "a column's name, or its position from 0 in a file without header"
            problems.add(value, f"data.columns.{key} must be {allowed}; found {show(value)}")
    if len({type(value) for value in columns.values()}) > 1:
        problems.add(node, "data.columns mixes names and positions: give all names (header) or all positions (none)")
    return columns


def _stages(node: Node, task: Task | None, problems: Problems) -> tuple[Stage | None, ...]:
    """One entry per stage written; None stands for one with a mistake, so that indices stay those of the file."""
    if node.value == "none":
        return ()
    if not isinstance(node.value, list):
        example = "- quantize: {method: dynamic-int8}"
        problems.add(node, f"compress must be a list of stages such as `{example}`, or none; found {show(node)}")
        return ()
    return tuple(_stage(item, f"compress.{index}", task, problems) for index, item in enumerate(node.value))


def _stage(node: Node, what: str, task: Task | None, problems: Problems) -> Stage | None:
    example = "`quantize: {method: dynamic-int8}`"
    if not isinstance(node.value, dict) or len(node.value) != 1:
        found = f"{len(node.value)} keys" if isinstance(node.value, dict) else show(node)
        problems.add(node, f"{what} must be one verb with its options, such as {example}; found {found}")
        return None
    verb, body = next(iter(node.value.items()))
    where, order = node.keys[verb]
    if verb not in METHODS:
        hint = suggestion(verb, METHODS)
        problems.add_at(where, order, f"{what}: unknown verb {verb!r}{hint}; allowed: {', '.join(METHODS)}")
        return None
    methods = METHODS[verb]
    if not isinstance(body.value, dict):
        problems.add(body, f"{what}.{verb} must be a mapping such as {example}; found {show(body)}")
        return None
    if "method" in body.value:
        method = choice(body.value["method"], f"{verb} method", methods, problems)
    elif len(methods) == 1 or verb in methods:
        method = verb if verb in methods else next(iter(methods))
    else:
        problems.add_at(where, order, f"{what}.{verb} lacks the key 'method'; allowed: {', '.join(methods)}")
        return None
    if method is None:
        return None
    options_class = methods[method].options
    allowed = ("method", *options_of(options_class), "max_drop", "max_increase", "measure")
    entries = mapping(body, f"{verb} {method}", allowed, problems) or {}
    options = read_options(options_class, entries, f"{what}.{verb}.", problems)
    drops, increases = (
        _bounds(entries, key, f"{what}.{verb}.", task, problems) for key in ("max_drop", "max_increase")
    )
    measure = entries.get("measure")
    measured = read_value(measure, f"{what}.{verb}.measure", Allowed("boolean"), problems) if measure else False
    if options is None or measured is None:
        return None
    # What several options say together: each dataclass knows its own.
    bounded = any(_given(entries, key) for key in ("max_drop", "max_increase"))
    for mistake in getattr(options, "mistakes", lambda bounded: ())(bounded):
        problems.add_at(where, order, f"{what}: {verb}/{method}: {mistake}")
    return Stage(verb, method, options, drops, increases, measured)


def _gate(node: Node, task: Task | None, problems: Problems) -> GateSpec | None:
    entries = mapping(node, "gate", _SECTIONS["gate"], problems)
    if entries is None:
        return None
    drops, increases, floors = (
        _bounds(entries, key, "gate.", task, problems) for key in ("max_drop", "max_increase", "min")
    )
    if not entries:
        problems.add(node, "gate has no bound: add one, or remove the key gate")
    numbers = read_options(GateSpec, entries, "gate.", problems)
    if numbers is None:
        return None
    return dataclasses.replace(numbers, max_drop=drops, max_increase=increases, min=floors)


_BOUND_KINDS: dict[str, Callable[[float], Allowed]] = {
    "max_drop": lambda lowest: Allowed("number", minimum=0, maximum=0.99),
    "max_increase": lambda lowest: Allowed("number", minimum=0, maximum=100),
    "min": lambda lowest: Allowed("number", minimum=lowest, maximum=1),
}


def _bounds(entries: dict[str, Node], key: str, prefix: str, task: Task | None, problems: Problems) -> dict[str, float]:
    """{metric: bound} of max_drop, max_increase or min; metrics are those of the task."""
    if not _given(entries, key):
        return {}
    what, node = prefix + key, entries[key]
    if not isinstance(node.value, dict):
        metrics = ", ".join(task.metrics) if task else "a metric"
        problems.add(node, f"{what} must be a mapping {{metric: number}} of {metrics}; found {show(node)}")
        return {}
    if task is None:  # Its unknown task is a problem already; without it no metric can be judged.
        return {}
    if not node.value:
        problems.add(node, f"{what} is empty: name a metric ({', '.join(task.metrics)}), or remove the key")
    bounds: dict[str, float] = {}
    for name, value in node.value.items():
        where, order = node.keys[name]
        if name not in task.metrics:
            hint = suggestion(name, task.metrics)
            allowed = ", ".join(task.metrics)
            problems.add_at(where, order, f"{what}: unknown metric {name!r} for this task{hint}; allowed: {allowed}")
            continue
        metric = task.metrics[name]
        if metric.higher_is_better == (key == "max_increase"):
            right = "max_drop or min" if metric.higher_is_better else "max_increase"
            better = "higher" if metric.higher_is_better else "lower"
            problems.add_at(where, order, f"{what}: {name} is better when {better}: bound it with {right}")
            continue
        number = read_value(value, f"{what}.{name}", _BOUND_KINDS[key](metric.lowest), problems)
        if number is not None:
            bounds[name] = number
    return bounds


def _serve(node: Node, task: Task | None, problems: Problems) -> ServeSpec:
    entries = mapping(node, "serve", _SECTIONS["serve"], problems) or {}
    examples = entries.get("examples")
    file = None
    if examples is not None and isinstance(examples.value, str):
        file = check_file(examples, "serve.examples", problems, _kinds(task))
        entries = {key: value for key, value in entries.items() if key != "examples"}
    draft = check_draft(entries["draft"], problems) if "draft" in entries else None
    adapters = check_adapters(entries["adapters"], problems) if _given(entries, "adapters") else {}
    entries = {key: value for key, value in entries.items() if key not in ("draft", "adapters")}
    runtimes = Allowed("string", choices=("auto", *RUNTIMES))
    if "runtime" in entries and read_value(entries["runtime"], "serve.runtime", runtimes, problems) is None:
        entries = {key: value for key, value in entries.items() if key != "runtime"}
    entries = _without_unknown(entries, problems)
    serve = read_options(ServeSpec, entries, "serve.", problems) or ServeSpec()
    if serve.precision == "bf16" and (serve.runtime not in ("auto", "openvino") or serve.device != "cpu"):
        problems.add(
            entries["precision"],
            f"serve.precision is bf16, which OpenVINO alone computes with, and the runtime is {serve.runtime} on "
            f"{serve.device}: remove it, or name openvino",
        )
    stored = serve.examples if file is None else file
    return dataclasses.replace(serve, draft=draft, adapters=adapters, examples=stored)


def _without_unknown(entries: dict[str, Node], problems: Problems) -> dict[str, Node]:
    """`entries` without `runtimes` where that names one that there is not."""
    node = entries.get("runtimes")
    listed = node.value if node is not None and isinstance(node.value, list) else []
    allowed = Allowed("string", choices=tuple(RUNTIMES))
    named = [read_value(item, f"serve.runtimes.{index}", allowed, problems) for index, item in enumerate(listed)]
    return {key: value for key, value in entries.items() if key != "runtimes" or None not in named}
