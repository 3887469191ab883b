"""What lies in an archive: the handler package, its settings, TorchServe's own files, and our manifest over them all."""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from archiver import __version__
from archiver.packaging.closure import import_closure
from archiver.packaging.entry import ENTRY, entry_source, split_name
from archiver.packaging.mar import list_files
from archiver.spec import Recipe
from handlers.manifest import (
    EXAMPLES,
    FORMAT,
    MANIFEST,
    SERVING,
    TIMINGS,
    TORCHSERVE_MANIFEST,
    canonical_json,
    content_sha256,
    file_sha256,
    seal_timings,
)
from handlers.runtimes.vllm import REQUIREMENT as VLLM

CONFIG = "model-config.yaml"
REQUIREMENTS = "requirements.txt"


def write_code(
    folder: Path,
    *,
    name: str,
    version: str,
    handler: str,
    session: str,
    requirements: Sequence[str],
    config: Mapping[str, Any],
) -> None:
    """Write an archive's code: the entry module and what it imports, TorchServe's manifest and settings, the requirements.

    Args:
        folder: where the archive is staged. name, version: the model's.
        handler: `module:Class` of the task's handler. session: of the runtime's session, see archiver.packaging.entry.
        requirements: lines of requirements.txt. config: TorchServe's settings for the model.
    Raises: PackagingError when a module is not one of `handlers`, or cannot be found.
    """
    for path, source in import_closure(split_name(handler)[0], split_name(session)[0]).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (folder / ENTRY).write_text(entry_source(handler, session), encoding="utf-8")
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": ENTRY,
            "configFile": CONFIG,
            "requirementsFile": REQUIREMENTS,
        },
        "archiverVersion": f"marpress {__version__}",
    }
    (folder / "MAR-INF").mkdir()
    (folder / TORCHSERVE_MANIFEST).write_bytes(canonical_json(manifest))


def serving_config(recipe: Recipe) -> dict[str, Any]:
    """TorchServe's settings for the model. Without minWorkers it starts one worker per core of the container."""
    serve = recipe.serve
    if recipe.task == "text-generation":
        return _generation_config(recipe)
    config: dict[str, Any] = {}
    if serve.workers != "auto":
        config |= {"minWorkers": serve.workers, "maxWorkers": serve.workers}
    return config | {
        "batchSize": serve.batch_size,
        "maxBatchDelay": serve.max_batch_delay_ms,
        "responseTimeout": 60,
        "startupTimeout": 120,
        "deviceType": {"cpu": "cpu", "cuda": "gpu"}[serve.device],
    }


def _generation_config(recipe: Recipe) -> dict[str, Any]:
    """Requests reach the worker at once, and the worker batches: one a model, with all cores, as its batch fills them."""
    serve = recipe.serve
    workers = 1 if serve.workers == "auto" else serve.workers
    return {
        "minWorkers": workers,
        "maxWorkers": workers,
        "asyncCommunication": True,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "jobQueueSize": 1000,
        "responseTimeout": 600,
        "startupTimeout": 600,
        "deviceType": {"cpu": "cpu", "cuda": "gpu"}[serve.device],
    }


def requirements(runtime: str, task: str = "") -> list[str]:
    """What a host must have beside TorchServe and its torch, at least at the versions the archive was built with."""
    lines = [requirement("tokenizers"), requirement("numpy", "1.24")]
    if runtime == "vllm":
        return sorted([*lines, VLLM])
    lines.append(requirement("transformers" if runtime == "torch" else runtime))
    if runtime == "openvino" and task == "text-generation":
        lines.append(requirement("openvino-genai"))
    if runtime == "torch":
        lines.append(requirement("safetensors"))
    return sorted(lines)


def add_requirement(folder: Path, package: str) -> None:
    """Add one more line to the staged requirements.txt."""
    path = folder / REQUIREMENTS
    lines = {*path.read_text(encoding="utf-8").splitlines(), requirement(package)}
    path.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def requirement(package: str, least: str | None = None) -> str:
    """`package>=version`, the installed one's first two numbers unless `least` says otherwise."""
    installed = importlib.metadata.version(package)
    return f"{package}>={least or '.'.join(installed.split('.')[:2])}"


def created_by(runtime: str, task: str = "") -> str:
    """marpress and everything whose version can change the content, by name and version."""
    packages = ["torch", "transformers", "tokenizers", "onnx", "onnxscript"]
    packages += {"onnxruntime": ["onnxruntime"], "openvino": ["openvino", "nncf"]}.get(runtime, [])
    if runtime == "openvino" and task == "text-generation":
        packages = [name for name in packages if not name.startswith("onnx")] + ["optimum-intel", "openvino-genai"]
    versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in packages]
    return f"marpress {__version__} (python {platform.python_version()}, {', '.join(versions)})"


def seal(folder: Path, facts: Mapping[str, Any], examples: list[Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the examples, the timings and, last, the manifest over all files; returns the manifest."""
    (folder / EXAMPLES).write_bytes(canonical_json(examples))
    (folder / TIMINGS).write_bytes(seal_timings(dict(timings)))
    files = [
        {"path": name, "sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in list_files(folder)
        if name not in (MANIFEST, TIMINGS)
    ]
    manifest = {"format": FORMAT, **facts, "files": files}
    manifest["content_sha256"] = content_sha256(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return manifest


def write_serving(folder: Path, serving: Mapping[str, Any]) -> None:
    """Write serving.json, what the worker must know that is not in the model's files."""
    (folder / SERVING).write_bytes(canonical_json(dict(serving)))
