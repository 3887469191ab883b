"""inspect: the report that an archive carries, as one JSON-able dict. Nothing in the archive is executed."""

import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archiver.errors import PackagingError
from archiver.packaging.mar import UNREADABLE
from handlers.errors import UnsoundArchive
from handlers.manifest import MANIFEST, TIMINGS, read_manifest, read_timings

_MAX_MANIFEST = 16 << 20


def inspect_mar(mar: Path) -> dict[str, Any]:
    """What `inspect --json` prints. OSError when there is no such file, PackagingError when it is no marpress archive.

    Only the manifest and the timings are read; whether the files are what the manifest says is `verify`'s question.
    """
    with tempfile.TemporaryDirectory(prefix="marpress-") as temporary:
        folder = Path(temporary)
        try:
            with zipfile.ZipFile(mar) as archive:
                for name in (MANIFEST, TIMINGS):
                    if archive.getinfo(name).file_size > _MAX_MANIFEST:
                        raise PackagingError(f"{mar.name}: {name} is larger than {_MAX_MANIFEST} bytes")
                    (folder / name).write_bytes(archive.read(name))
            return _report(read_manifest(folder), read_timings(folder), mar.stat().st_size)
        except (KeyError, TypeError) as error:
            raise PackagingError(f"{mar.name} is no marpress archive: {error.args[0]}") from error
        except (*UNREADABLE, UnsoundArchive, json.JSONDecodeError) as error:
            raise PackagingError(f"{mar.name} is no sound archive: {error}") from error


def _report(manifest: Mapping[str, Any], timings: Mapping[str, Any], archive_bytes: int) -> dict[str, Any]:
    size = {**manifest["size"], "archive_bytes": archive_bytes}
    order = ["name", "version", "task", "runtime", "content_sha256", "created_by", "model", "stages"]
    report = {key: manifest[key] for key in order}
    if "original_dtype" in manifest:  # absent from archives of before
        report["original_dtype"] = manifest["original_dtype"]
    report |= {"size": size, "metrics": manifest["metrics"], "timings": timings, "gate": manifest["gate"]}
    report |= {key: manifest[key] for key in ("measured_on", "tolerance", "recipe")}
    if "runtimes" in manifest:  # of an archive of several, of which the worker takes one
        report["runtimes"] = manifest["runtimes"]
    if "intervals" in manifest:  # of language models: where each metric's change lies
        report["intervals"] = manifest["intervals"]
    if "adapters" in manifest:  # of language models with LoRA adapters
        report["adapters"] = manifest["adapters"]
    return report | {"files": manifest["files"]}
