"""YAML text to a tree whose every value knows where it stands, so that a mistake can be reported with its line.

YAML 1.2's core schema is read, not PyYAML's 1.1: `no` is a string, `1e-3` a number, `010` is ten. Only plain data:
no tags, no merge keys, a bounded size, depth and number of aliases, so that a hostile file costs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_ALIASES = 32
MAX_DEPTH = 24
MAX_VALUES = 20_000

_INTEGER = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"), ".nan": float("nan")}
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_CORE_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}


@dataclass
class Node:
    """A value of the recipe.

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    where: "recipe.yaml:7" or "--set a.b"; order: sorts problems as the reader meets them
    text: a scalar as it is written ("1.10", although its value is 1.1)
    base: the folder that a relative path in it is relative to
    keys: {key: (where, order)} of a mapping's keys
    """

    value: Any
    where: str
    order: int
    base: Path
    text: str = ""
    keys: dict[str, tuple[str, int]] = field(default_factory=dict)


class Problems:
    """Every mistake found so far; `lines()` sorts them by their place in the file."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def add(self, node: Node, message: str) -> None:
        """`message` about the value `node`."""
        self.add_at(node.where, node.order, message)

    def add_at(self, where: str, order: int, message: str) -> None:
        """`message` about the place `where`, sorted at `order`."""
        self._found.append((order, f"{where}: {message}"))

    def lines(self) -> list[str]:
        """The mistakes, each once, in the file's order; those of `--set` last."""
        return list(dict.fromkeys(line for _, line in sorted(self._found, key=lambda item: item[0])))

    def __bool__(self) -> bool:
        return bool(self._found)


# Mistakes of --set come after those of the file, in the order typed.
OVERRIDE_ORDER = 10_000_000


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that resolves no scalar by PyYAML's YAML 1.1 rules: `_scalar` does, by the core schema of 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def read_yaml(text: str, name: str, base: Path, problems: Problems, override_order: int | None = None) -> Node | None:
    """The tree of a YAML text, or None where it cannot be read at all (the reason is then in `problems`).

    name: what mistakes are reported under; with `override_order` (a `--set` value) it stands without a line number
    """
    reader = _Reader(name, base, problems, override_order)
    try:
        reader.check_bounds(text)
        root = yaml.compose(text, Loader=_PlainLoader)
    except _OutOfBounds as error:
        where, order = reader.place(error.line)
        problems.add_at(where, order, str(error))
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where, order = reader.place(mark.line if mark else 0)
        reason = "; ".join(part for part in (error.context, error.problem) if part)
        problems.add_at(where, order, f"not valid YAML: {reason}")
        return None
    except yaml.reader.ReaderError as error:
        where, order = reader.place(text.count("\n", 0, error.position))
        problems.add_at(where, order, f"character U+{int(error.character):04X} is not allowed in YAML: remove it")
        return None
    if root is None:
        where, order = reader.place(0)
        return Node(None, where, order, base)
    return reader.convert(root)


class _OutOfBounds(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Reader:
    def __init__(self, name: str, base: Path, problems: Problems, override_order: int | None) -> None:
        self.name, self.base, self.problems, self.override_order = name, base, problems, override_order

    def place(self, line: int) -> tuple[str, int]:
        """(where, order) of a zero-based line."""
        if self.override_order is not None:
            return self.name, OVERRIDE_ORDER + self.override_order
        return f"{self.name}:{line + 1}", line + 1

    def check_bounds(self, text: str) -> None:
        """Walk the events before anything recursive does: aliases that multiply and deep nesting stop here."""
        depth = aliases = values = documents = 0
        for event in yaml.parse(text, Loader=_PlainLoader):
            line = event.start_mark.line if event.start_mark else 0
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            values += isinstance(event, yaml.NodeEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > MAX_DEPTH:
                raise _OutOfBounds(line, f"nested deeper than {MAX_DEPTH} levels, which no recipe needs")
            if aliases > MAX_ALIASES:
                raise _OutOfBounds(line, f"more than {MAX_ALIASES} aliases (*name), which no recipe needs")
            if values > MAX_VALUES:
                raise _OutOfBounds(line, f"more than {MAX_VALUES} values, which no recipe needs")
            if documents > 1:
                raise _OutOfBounds(line, "a second document begins here ('---'): a recipe is one document")

    def convert(self, root: yaml.Node) -> Node:
        self._left = MAX_VALUES
        return self._convert(root, ())

    def _convert(self, node: yaml.Node, parents: tuple[int, ...]) -> Node:
        where, order = self.place(node.start_mark.line)
        self._left -= 1
        if id(node) in parents or self._left < 0:
            self.problems.add_at(where, order, "aliases that contain themselves or multiply are not allowed")
            return Node(None, where, order, self.base)
        if node.tag not in _CORE_TAGS:
            self.problems.add_at(where, order, f"tag {node.tag!r} is not allowed: a recipe is plain data, remove it")
        parents = (*parents, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where, order, parents)
        if isinstance(node, yaml.SequenceNode):
            return Node([self._convert(item, parents) for item in node.value], where, order, self.base)
        text = str(node.value)
        value = _scalar(text) if isinstance(node, yaml.ScalarNode) and node.style is None else text
        return Node(value, where, order, self.base, text=text)

    def _mapping(self, node: yaml.MappingNode, where: str, order: int, parents: tuple[int, ...]) -> Node:
        result = Node({}, where, order, self.base)
        for key_node, value_node in node.value:
            key_where, key_order = self.place(key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add_at(key_where, key_order, "a key must be a word, not a list or a mapping")
                continue
            key = str(key_node.value)
            if key in result.value:
                first = result.keys[key][0]
                message = f"duplicate key {key!r}: it stands already at {first}; keep one"
                self.problems.add_at(key_where, key_order, message)
                continue
            value = self._convert(value_node, parents)
            # An alias is reported where it is used, not where its anchor stands.
            if value_node.start_mark.line < key_node.start_mark.line:
                value.where, value.order = key_where, key_order
            result.value[key] = value
            result.keys[key] = (key_where, key_order)
        return result


def _scalar(text: str) -> Any:
    """A plain scalar's value by the core schema of YAML 1.2 (octal and hexadecimal left out: nothing needs them)."""
    lowered = text.lower()
    if lowered in _WORDS and text in (lowered, lowered.title(), lowered.upper()):
        return _WORDS[lowered]
    if lowered in _SPECIAL:
        return _SPECIAL[lowered]
    # Python refuses to convert integers of thousands of digits; no number of a recipe has more than 20.
    if len(text) <= 20 and _INTEGER.match(text):
        return int(text)
    if len(text) <= 40 and _FLOAT.match(text):
        return float(text)
    return text


_MISSING_LINE = "must be KEY.KEY=VALUE, for example --set serve.batch_size=16"


def apply_override(root: Node, override: str, index: int, problems: Problems) -> None:
    """Set one `a.b.0.c=value` in the tree; its value is YAML, and paths in it are relative to the current directory."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    where = f"--set {path.strip()}"
    order = OVERRIDE_ORDER + index
    if not equals or not all(keys):
        problems.add_at(f"--set {override}", order, _MISSING_LINE)
        return
    value = read_yaml(text, where, Path.cwd(), problems, override_order=index)
    if value is None:
        return
    here = root
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if here.value is None and (depth == 0 or not _is_index(key)):
            here.value = {}
        if isinstance(here.value, dict):
            if last:
                here.value[key] = value
                here.keys[key] = (where, order)
                return
            if key not in here.value:
                here.value[key] = Node({}, where, order, Path.cwd())
                here.keys[key] = (where, order)
            here = here.value[key]
        elif isinstance(here.value, list):
            size = len(here.value)
            if not _is_index(key) or int(key) > size or (int(key) == size and not last):
                parent = ".".join(keys[:depth])
                allowed = f"0 to {size - 1}, or {size} to append" if size else "0, to append"
                problems.add_at(where, order, f"{parent} is a list of {size}; {key!r} is no place in it: {allowed}")
                return
            if last:
                here.value[int(key) : int(key) + 1] = [value]
                return
            here = here.value[int(key)]
        else:
            parent = ".".join(keys[:depth])
            problems.add_at(where, order, f"{parent} is {here.text or here.value!r}: {key!r} cannot be set in it")
            return


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 6


def plain(node: Node) -> Any:
    """The tree as plain Python data, without its places."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value
