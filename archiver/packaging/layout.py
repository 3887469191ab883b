"""What lies in an archive: the handler package, its settings, TorchServe's own files, and our manifest over them all."""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from archiver.packaging.closure import import_closure
from archiver.packaging.entry import entry_source, named_in, split_name
from archiver.packaging.mar import list_files
from archiver.requirements import requirement
from archiver.version import __version__
from handlers.manifest import (
    BEGINNING,
    ENTRY,
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
from handlers.torchserve import beginning

CONFIG = "model-config.yaml"
REQUIREMENTS = "requirements.txt"


def write_code(
    folder: Path,
    *,
    name: str,
    version: str,
    handler: str,
    session: str | Mapping[str, str],
    modules: Sequence[str] = (),
    requirements: Sequence[str],
    config: Mapping[str, Any],
) -> None:
    """Write an archive's code: the entry module and what it imports, what Python reads before, TorchServe's manifest and
    settings, the requirements.

    Args:
        folder: where the archive is staged. name, version: the model's.
        handler: `module:Class` of the task's handler. session: of the runtime's session, or of several runtimes' by their
            names, see archiver.packaging.entry.
        modules: more names of that form, whose modules travel too.
        requirements: lines of requirements.txt. config: TorchServe's settings for the model.
    Raises: PackagingError when a module is not one of `handlers`, or cannot be found.
    """
    needed = [split_name(name)[0] for name in (*named_in(handler, session), *modules)]
    for path, source in import_closure(*needed).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(beginning.__file__, folder / BEGINNING)
    (folder / ENTRY).write_text(entry_source(handler, session), encoding="utf-8")
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    (folder / REQUIREMENTS).write_text("".join(f"{line}\n" for line in sorted(requirements)), encoding="utf-8")
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


def add_requirements(folder: Path, packages: Sequence[str]) -> None:
    """Add the installed versions of more packages to the staged requirements.txt."""
    path = folder / REQUIREMENTS
    lines = {*path.read_text(encoding="utf-8").splitlines(), *map(requirement, packages)}
    path.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def created_by(built_with: Sequence[str]) -> str:
    """marpress and everything whose version can change the content, by name and version.

    Args:
        built_with: the runtime's packages.
    """
    packages = ["torch", "transformers", "tokenizers", *built_with]
    versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in packages]
    return f"marpress {__version__} (python {platform.python_version()}, {', '.join(versions)})"


def seal(folder: Path, facts: Mapping[str, Any], examples: list[Any], timings: Mapping[str, Any]) -> dict[str, Any]:
    """Write the examples, the timings and, last, the manifest over all files; returns the manifest."""
    (folder / EXAMPLES).write_bytes(canonical_json(examples))
    write_timings(folder, timings)
    files = [
        {"path": name, "sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in list_files(folder)
        if name not in (MANIFEST, TIMINGS)
    ]
    manifest = {"format": FORMAT, **facts, "files": files}
    manifest["content_sha256"] = content_sha256(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    return manifest


def write_timings(folder: Path, timings: Mapping[str, Any]) -> None:
    """timings.json, with its digest. It may be written anew: the manifest does not list it."""
    (folder / TIMINGS).write_bytes(seal_timings(dict(timings)))


def write_serving(folder: Path, serving: Mapping[str, Any]) -> None:
    """serving.json: everything that the worker must know beside the model's files."""
    (folder / SERVING).write_bytes(canonical_json(dict(serving)))
