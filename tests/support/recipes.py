"""The contract's recipe and the least one, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.errors import RecipeError
from archiver.recipe.load import load_recipe
from archiver.spec import Recipe

CONTRACT = """\
name: sst2                                # archive and model name
version: "1.0"
task: text-classification                 # a transformers task name
model: ./minilm-sst2                      # a directory if it exists, else org/name[@revision] from the hub
data:
  train: sst2/train.tsv                   # for what retrains or calibrates
  validation: sst2/dev.tsv                # what the gate is measured on
  columns: {text: 0, label: 1}            # names, or positions where the file has no header
compress:
  - quantize: {method: static-int8}
gate:
  max_drop: {accuracy: 0.01}
  min_speedup: 2.0
  max_size_mb: 25                         # of the archive, 10⁶ bytes
serve:
  runtime: auto                           # onnxruntime · openvino · torch
  device: cpu
  workers: auto
  batch_size: 32
  max_batch_delay_ms: 2
  max_length: 128
  max_inputs: 64
  examples: 4
"""
LEAST = "name: tiny\ntask: text-classification\nmodel: ./minilm-sst2\n"


def load(folder: Path, text: str | bytes, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides)


def mistakes(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The problems of a bad recipe, the file's folder cut off."""
    with pytest.raises(RecipeError, match=r"has \d+ mistakes?:") as caught:
        load(folder, text, *overrides)
    assert caught.value.exit_code == 2
    assert str(caught.value).count("\n") == len(caught.value.problems)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]
