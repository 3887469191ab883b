"""What a recipe names outside itself: the model, the data files, a file of example texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from archiver.models.pypi import FORM, PREFIX, PackagedModel
from archiver.models.source import EMBEDDED_MODELS, HUB_ID
from archiver.recipe.yaml_tree import Node, Problems

DATA_SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson", ".txt")
EMBEDDED_TEXT = "embedded:cpython"
MAX_ADAPTERS = 64
ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
SPLITS = ("train", "validation")

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
HUB_DATA = re.compile(rf"hub://({_PART}(?:/{_PART}){{0,2}}):([A-Za-z0-9_.]+(?:\[[0-9:%]+\])?)\Z")


def local_path(node: Node) -> Path:
    """The node's string as a path: relative to the recipe's folder, or to the current one when it came by --set."""
    return node.base / Path(node.value).expanduser()


def check_model(node: Node, problems: Problems) -> Path | str | None:
    """A directory that exists, a hub id, an embedded model's id, or a package on PyPI."""
    hub = "a hub id (org/name, or org/name@revision)"
    text = node.value
    if not isinstance(text, str) or not text.strip():
        problems.add(node, f"model must be a string: a directory, or {hub}; found {node.text or text!r}")
        return None
    if text.startswith("embedded:"):
        if text in EMBEDDED_MODELS:
            return text
        problems.add(node, f"model: {text} is not embedded; allowed: {', '.join(EMBEDDED_MODELS)}")
        return None
    if text.startswith(PREFIX):
        if PackagedModel.read(text):
            return text
        problems.add(node, f"model: {text} is not {FORM}, with the wheel's digest as PyPI shows it")
        return None
    path = local_path(node)
    if _is(path, Path.is_dir):
        return path
    if _is(path, Path.is_file):
        problems.add(node, f"model: {text} is a file; name the directory that holds config.json and model.safetensors")
        return None
    if HUB_ID.match(text) and ".." not in text and "--" not in text:
        return text
    problems.add(node, f"model: {text} is neither an existing directory nor {hub}")
    return None


@dataclass(frozen=True)
class DataKinds:
    """What a task reads. suffixes: of files; folders: whether a folder is data, too."""

    suffixes: tuple[str, ...] = DATA_SUFFIXES
    folders: bool = False


def check_data_source(node: Node, what: str, split: str, problems: Problems, kinds: DataKinds) -> Path | str | None:
    """A data file that exists, "hub://…", or "embedded:cpython:SPLIT" (SPLIT defaults to the key's own)."""
    text = node.value
    if isinstance(text, str) and text.startswith("hub://"):
        if HUB_DATA.match(text):
            return text
        problems.add(node, f"{what}: {text} is not hub://name[/config]:split, for example hub://glue/sst2:validation")
        return None
    if isinstance(text, str) and text.startswith("embedded:"):
        if text == EMBEDDED_TEXT:
            return f"{text}:{split}"
        allowed = [f"{EMBEDDED_TEXT}:{name}" for name in SPLITS]
        if text in allowed:
            return text
        problems.add(node, f"{what}: {text} is not embedded; allowed: {', '.join([EMBEDDED_TEXT, *allowed])}")
        return None
    return check_file(node, what, problems, kinds)


def check_file(node: Node, what: str, problems: Problems, kinds: DataKinds) -> Path | None:
    """A file of examples that exists, by a suffix that says its format."""
    text = node.value
    formats = ", ".join(kinds.suffixes)
    if not isinstance(text, str) or not text.strip():
        problems.add(node, f"{what} must be a file's path ({formats}); found {node.text or text!r}")
        return None
    path = local_path(node)
    if kinds.folders and _is(path, Path.is_dir):
        return path
    if _is(path, Path.is_dir):
        problems.add(node, f"{what}: {text} is a directory; name one file in it ({formats})")
    elif not _is(path, Path.is_file):
        problems.add(node, f"{what}: {text} does not exist (looked in {node.base.resolve()})")
    elif path.suffix.lower() not in kinds.suffixes:
        problems.add(node, f"{what}: {text} has the suffix {path.suffix!r}; allowed: {formats}")
    else:
        return path
    return None


def check_draft(node: Node, problems: Problems) -> Path | None:
    """The folder of a draft model."""
    if node.value is None:
        return None
    folder = (node.base / node.value) if isinstance(node.value, str) else None
    if folder is None or not folder.is_dir():
        problems.add(
            node, f"serve.draft is {node.value!r}: a folder with a smaller model of the same tokens is expected"
        )
        return None
    return folder


def check_adapters(node: Node, problems: Problems) -> dict[str, Path]:
    """{name: folder of a LoRA adapter}; what lies in the folders is looked at with the model."""
    if not isinstance(node.value, dict) or not 0 < len(node.value) <= MAX_ADAPTERS:
        problems.add(
            node,
            f"serve.adapters must be a mapping {{name: folder}} of 1 to {MAX_ADAPTERS} LoRA adapters as peft saves them",
        )
        return {}
    found = {}
    for name, folder in node.value.items():
        if not (isinstance(name, str) and ADAPTER.match(name)):
            problems.add(
                folder,
                f"serve.adapters: the name {name!r} is not allowed; allowed: letters, digits, '.', '_' and '-', the first "
                "a letter or digit, at most 64",
            )
        elif not isinstance(folder.value, str) or not folder.value.strip() or not _is(local_path(folder), Path.is_dir):
            problems.add(
                folder,
                f"serve.adapters.{name} is {folder.text or folder.value!r}: a folder with a LoRA adapter is expected",
            )
        else:
            found[name] = local_path(folder)
    return found


def _is(path: Path, question: object) -> bool:
    """Path.is_dir / is_file, False for strings that no file system accepts (too long, a NUL in them)."""
    try:
        return bool(question(path))  # type: ignore[operator]
    except (OSError, ValueError):
        return False
