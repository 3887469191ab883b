"""The build of a language model on the texts of data/docs, as the command that a user would type."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import SHARED

CONTEXT = 256


def build_command(
    name: str,
    model: Path,
    stages: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    data: Mapping[str, Any],
    gate: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write folder/NAME.yaml; the command that builds folder/store/NAME.mar from it and prints the report.

    Args:
        data: what is said of the data beside texts and context, or instead of them. gate: the recipe's, if any.
    """
    recipe: dict[str, Any] = {
        "name": name,
        "task": "text-generation",
        "model": str(model.resolve()),
        "data": {
            "train": str(SHARED / "data/docs/train.txt"),
            "validation": str(SHARED / "data/docs/validation.txt"),
            "context": CONTEXT,
            **data,
        },
        "compress": list(stages),
        "gate": gate,
        "serve": {"max_length": 512, "runtime": "openvino"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return [sys.executable, "-m", "archiver", "build", str(path), "--model-store", str(folder / "store"), "--json"]
