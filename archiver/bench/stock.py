"""The plain archive to compare with, built by TorchServe's own torch-model-archiver."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from archiver.errors import PackagingError, UnsupportedModelError

# What from_pretrained reads. Folders (other formats' weights, checkpoints) and pickles stay outside.
_SUFFIXES = (".json", ".txt", ".model", ".safetensors")


def build_stock(
    model_dir: Path,
    task: str,
    auto_class: str,
    out_dir: Path,
    *,
    name: str = "stock",
    max_length: int = 128,
    batch_size: int = 16,
    max_batch_delay_ms: int = 20,
) -> Path:
    """Package an fp32 model with the plain transformers handler: one worker, each batch as TorchServe makes it.

    Args:
        model_dir: config.json, *.safetensors, and the files of its tokenizer or processor.
        task: one that transformers has a pipeline for, or that the plain handler answers itself.
        auto_class: the transformers class that loads the model for it.
        max_length: tokens.
    Returns: out_dir/NAME.mar, replacing an older one.
    Raises: UnsupportedModelError for another task or a directory without these files, PackagingError when the archiver
        fails.
    """
    _check_task(task)
    files = sorted(file for file in model_dir.glob("*") if file.is_file() and file.suffix in _SUFFIXES)
    if not any(file.suffix == ".safetensors" for file in files) or not (model_dir / "config.json").is_file():
        raise UnsupportedModelError(
            f"{model_dir}: needs config.json and *.safetensors, has {[file.name for file in files]}"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": batch_size,
        "maxBatchDelay": max_batch_delay_ms,
        "responseTimeout": 120,
        "handler": {"task": task, "auto_class": auto_class, "max_length": max_length},
    }
    # The archiver stages in <temp folder>/<model name> and empties it first: two builds at once need two temp folders.
    with tempfile.TemporaryDirectory(prefix="marpress-stock-") as private:
        config = Path(private) / "model-config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--force"]
        command += ["--model-name", name, "--version", "1.0", "--export-path", str(out_dir)]
        command += ["--handler", str(Path(__file__).with_name("stock_handler.py")), "--config-file", str(config)]
        command += ["--extra-files", ",".join(str(file.resolve()) for file in files)]
        environment = {**os.environ, "TMPDIR": private, "TEMP": private}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    archive = out_dir / f"{name}.mar"
    if done.returncode != 0 or not archive.is_file():
        raise PackagingError(
            f"torch-model-archiver did not write {archive}: {(done.stderr or done.stdout).strip()[-1000:]}"
        )
    return archive


def _check_task(task: str) -> None:
    from transformers.pipelines import get_supported_tasks

    from archiver.bench.stock_handler import BY_LOGITS

    allowed = {*BY_LOGITS, *get_supported_tasks()}
    if task not in allowed:
        raise UnsupportedModelError(
            f"there is no plain handler for {task}: transformers has no pipeline for it; give another archive instead"
        )
