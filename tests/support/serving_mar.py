"""Tiny archives for the tests of archiver.serving: a handler of some lines and its settings, written with zipfile."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

# Sends every body back, as it came. `{delay}` is in seconds, per batch.
ECHO = """
import time

class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep({delay})
        return [as_text(item.get("data") or item.get("body")) for item in data]

def as_text(body):
    if isinstance(body, (bytes, bytearray)):
        return bytes(body)
    import json
    return body if isinstance(body, str) else json.dumps(body)
"""

FAILS = """
class Fails:
    def initialize(self, context):
        raise {error}

    def handle(self, data, context):
        return data
"""


def write_mar(
    folder: Path,
    name: str,
    handler: str,
    *,
    batch_size: int = 1,
    workers: int = 1,
    examples: list[dict[str, object]] | None = None,
) -> Path:
    """folder/NAME.mar with the source `handler` as its entry module."""
    model = {"modelName": name, "handler": "entry.py", "modelVersion": "1.0", "configFile": "model-config.yaml"}
    manifest = {"createdOn": "", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
    settings = f"minWorkers: {workers}\nmaxWorkers: {workers}\nbatchSize: {batch_size}\nmaxBatchDelay: 1\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model-config.yaml", settings)
        archive.writestr("entry.py", handler)
        if examples is not None:
            archive.writestr("examples.json", json.dumps(examples))
    return path


def echo_mar(folder: Path, name: str = "echo", *, delay: float = 0.0, batch_size: int = 1) -> Path:
    return write_mar(folder, name, ECHO.replace("{delay}", repr(delay)), batch_size=batch_size)
