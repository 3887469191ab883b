"""The files of a model directory: which hold weights, which go with the tokenizer, and reading JSON among them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from archiver.models.safetensors_header import TensorInfo, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# tokenizer.json alone encodes; the other two say its model_max_length and special tokens.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer files of a model directory that travel in the archive, those that exist."""
    return [path / name for name in TOKENIZER_FILES if (path / name).is_file()]


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


def weight_files(path: Path, problems: list[str]) -> list[Path]:
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
        convert = (
            "from transformers import AutoModelForSequenceClassification as M; M.from_pretrained(D).save_pretrained(D)"
        )
        problems.append(
            f"its weights are {', '.join(pickles)} only: a pickle can run code and is never loaded. If you trust its "
            f"source, convert it with: python -c \"D = 'DIR'; {convert}\" (AutoModel for feature-extraction)"
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
