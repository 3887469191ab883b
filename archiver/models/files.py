"""The files of a model directory: config.json and the weights, read as far as that needs neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.errors import UnsupportedModelError
from archiver.models.tensors import TensorInfo, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelDirectory:
    """config: config.json as it stands. weights: the file, or the shards in sorted order. tensors: what they hold."""

    path: Path
    config: dict[str, Any]
    weights: list[Path]
    tensors: dict[str, TensorInfo]


def read_directory(path: Path) -> ModelDirectory:
    """What a model directory holds, whatever its task: nothing is loaded.

    Raises: UnsupportedModelError that lists every problem: missing or damaged files, pickles, remote code, a model
    that is quantized already.
    """
    problems: list[str] = []
    directory = look_into(path, problems)
    if problems:
        raise unusable(path, problems)
    return directory


def look_into(path: Path, problems: list[str]) -> ModelDirectory:
    """As `read_directory`; what is wrong is added to `problems`. Raises: UnsupportedModelError for no directory."""
    if not path.is_dir():
        raise UnsupportedModelError(f"model {path.name} is no directory: name one with config.json and its weights")
    config: dict[str, Any] = {}
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", problems)
    else:
        problems.append("it has no config.json: name the directory that save_pretrained wrote")
    if config.get("auto_map"):
        problems.append(
            "config.json names remote code (auto_map), which is never run: use a model that transformers knows"
        )
    if config.get("quantization_config"):
        problems.append("it is quantized already (quantization_config): give the original fp32, fp16 or bf16 model")
    weights = weight_files(path, architecture_of(config), problems)
    return ModelDirectory(path, config, weights, read_tensors(weights, problems))


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The class of transformers that config.json names; None where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def unusable(path: Path, problems: list[str]) -> UnsupportedModelError:
    """The error that lists what keeps a model directory from being used."""
    return UnsupportedModelError(f"model directory {path.absolute().name!r} cannot be used:", problems)


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; {} with a problem added when the file holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} is not readable JSON: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} must hold a JSON object; found {type(value).__name__}")
        return {}
    return value


def weight_files(path: Path, architecture: str | None, problems: list[str]) -> list[Path]:
    """model.safetensors, or the shards of its index in sorted order; what is missing becomes a problem."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        weight_map = read_json(path / INDEX, problems).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            problems.append(f"{INDEX} must map tensors to files beside it under weight_map: it names none, or others")
            return []
        shards = [path / name for name in sorted(names)]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            problems.append(f"{INDEX} names {', '.join(missing)}, which is missing: copy all shards")
            return []
        return shards
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(pattern))
    if pickles:
        name = architecture if architecture and architecture.isidentifier() else "AutoModel"
        convert = f"from transformers import {name} as M; M.from_pretrained(D).save_pretrained(D)"
        problems.append(
            f"its weights are {', '.join(pickles)} only: a pickle can run code and is never loaded. If you trust its "
            f"source, convert it with: python -c \"D = 'DIR'; {convert}\""
        )
    else:
        problems.append(f"it has no weights: {WEIGHTS}, or {INDEX} with its shards")
    return []


def read_tensors(files: list[Path], problems: list[str]) -> dict[str, TensorInfo]:
    """{tensor name: TensorInfo} over all weight files; an unreadable file becomes a problem."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            tensors.update(read_header(file))
        except (OSError, ValueError) as error:
            problems.append(f"{file.name} cannot be read: {error}")
    return tensors


def digest(files: list[Path]) -> str:
    """sha256 of a single weight file; of the lines "sha256  name" in sorted order where there are shards."""
    if len(files) == 1:
        return _sha256(files[0])
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
