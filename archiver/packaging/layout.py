"""What lies in an archive: the handler package, its settings, TorchServe's own files, and our manifest over them all."""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import handlers
from archiver import __version__
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

ENTRY = "marpress_entry.py"
CONFIG = "model-config.yaml"
REQUIREMENTS = "requirements.txt"

HANDLERS = {
    "text-classification": ("handlers.tasks.text.classification", "TextClassificationHandler"),
    "feature-extraction": ("handlers.tasks.text.feature_extraction", "FeatureExtractionHandler"),
    "text-generation": ("handlers.tasks.text.generation", "TextGenerationHandler"),
}

# Modules of `handlers` that only one runtime needs.
TORCH_ONLY = {
    "anatomy.py",
    "conv1d.py",
    "experts.py",
    "factored.py",
    "linear_layers.py",
    "structure.py",
    "torch_decoder.py",
    "torch_encoder.py",
}
# What only text-generation needs, and of that what only one runtime does.
GENERATION = {
    "chat.py",
    "decoding.py",
    "engine.py",
    "frontend.py",
    "generation_answer.py",
    "generation_request.py",
    "owed.py",
    "text_generation.py",
    "text_stream.py",
}
GENERATION_RUNTIMES = {
    "openvino_generation.py": "openvino",
    "sampling.py": "torch",
    "torch_generation.py": "torch",
    "vllm_generation.py": "vllm",
}

_ENTRY = '''"""TorchServe looks for `handle` in the archive's root: it is one instance of the class named here."""

import os
import sys

# Another `handlers` package on the host must not hide the one in this archive.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

try:
    from {module} import {name}
except ImportError as error:  # an ImportError would send TorchServe to its built-in handlers and hide the cause
    raise RuntimeError(
        f"the archive's handler cannot be imported: {{error}}; install what requirements.txt in the archive lists"
    ) from error


class Handler({name}):
    pass
'''


def write_code(folder: Path, recipe: Recipe, runtime: str) -> None:
    """The handler package, the entry module, TorchServe's manifest and settings, and the requirements."""
    source = Path(handlers.__file__).parent
    for path in sorted(source.rglob("*.py")):
        target = folder / "handlers" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    module, name = HANDLERS[recipe.task]
    (folder / ENTRY).write_text(_ENTRY.format(module=module, name=name), encoding="utf-8")
    (folder / CONFIG).write_text(yaml.safe_dump(serving_config(recipe), sort_keys=False), encoding="utf-8")
    (folder / REQUIREMENTS).write_text(
        "".join(f"{line}\n" for line in requirements(runtime, recipe.task)), encoding="utf-8"
    )
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": recipe.name,
            "modelVersion": recipe.version,
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
    (folder / SERVING).write_bytes(canonical_json(dict(serving)))
