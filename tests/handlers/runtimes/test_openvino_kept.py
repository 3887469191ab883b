"""OpenVINO's session from what was kept: made by the first start, taken by the second, the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built import build, quantize, recipe_of
from once import once

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.packaging.verify import verify
from handlers.examples import read_examples

Tiny = Callable[..., Path]


@pytest.fixture(params=["plain", "packed"])
def mar(request: pytest.FixtureRequest, tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = {
        "plain": quantize("static-int8"),
        "packed": [{"prune": {"method": "l1", "sparsity": 0.9}}],
    }[request.param]

    def fill(folder: Path) -> None:
        more = {"compress": stages, "serve": {"runtime": "openvino"}}
        build(recipe_of(folder, tiny_model(num_hidden_layers=1), **more), folder / "store")

    return once(tmp_path_factory, f"openvino-kept-{request.param}", fill) / "store" / "tiny.mar"


def outputs(folder: Path) -> list[np.ndarray]:
    handler: Any = handler_of(folder)
    handler.streams = 2
    handler.open(folder, threads=1)
    values = [handler.input.from_stored(one["input"]) for one in read_examples(folder)]
    return [output for found in handler.find(values, {}) for output in found.outputs]


def test_the_second_start_takes_it(mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "open", tmp_path / "cache"
    extract(mar, folder)
    assert ("weights" in json.loads((folder / "serving.json").read_text())["session"]) == ("packed" in str(mar))
    without = outputs(folder)
    monkeypatch.setenv("MARPRESS_CACHE", str(cache))
    first = outputs(folder)
    (entry,) = cache.iterdir()
    (blob,) = entry.glob("*.blob")
    made = blob.stat()
    again = outputs(folder)
    assert (blob.stat().st_ino, blob.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert [path.name for path in cache.iterdir()] == [entry.name] and len(list(entry.iterdir())) == 2
    for one, two, three in zip(without, first, again, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)

    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    outputs(folder)
    assert blob.read_bytes() != bytes(content)


def test_what_verify_opens_is_not_kept(mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARPRESS_CACHE", str(tmp_path / "cache"))
    assert verify(Path(shutil.copy(mar, tmp_path))) == []
    assert not (tmp_path / "cache").exists()
