"""Model directories that a test changes: their JSON files and tensors, and why they are then refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from task_models import inspect_model

from archiver.errors import UnsupportedModelError


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refused(path: Path, task: str | None = None) -> str:
    with pytest.raises(UnsupportedModelError, match="cannot be used:") as caught:
        inspect_model(path, task)
    assert caught.value.exit_code == 2
    return "\n".join(caught.value.problems)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
