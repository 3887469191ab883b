"""An archive of several runtimes in TorchServe: one line says which was taken and why; who takes a dead worker's place
takes the same one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from built import SENTENCES, build, quantize, recipe_of
from live_client import Rest
from places import ROOT

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.torchserve.server import TorchServe


def test_served(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    serve = {"runtimes": ["onnxruntime", "openvino"], "workers": 1}
    recipe = recipe_of(tmp_path, tiny_model(num_hidden_layers=1), compress=quantize("dynamic-int8"), serve=serve)
    mar = build(recipe, tmp_path / "store").path
    extract(mar, tmp_path / "open")
    with TorchServe([mar], config=ROOT / "config.properties") as server:
        server.wait_ready(180)
        (line,) = _taken(server)
        found = re.search(
            r"runtime (\w+) is taken: (\w+) [\d.]+, (\w+) [\d.]+ items/s here, in \d+ streams? of 1 thread\b", line
        )
        assert found is not None, line
        assert {found[2], found[3]} == {"openvino", "onnxruntime"} and found[1] == found[2]

        right: Any = handler_of(tmp_path / "open")
        right.open(tmp_path / "open", threads=1, only=found[1])
        with Rest(server) as client:
            _answers(client, right)
            (standby,) = server.workers("tiny")
            (serving,) = psutil.Process(standby.pid).children()
            serving.kill()
            deadline = time.monotonic() + 60
            while len(_taken(server)) < 2:
                assert time.monotonic() < deadline, _taken(server)
                time.sleep(0.1)
            assert f"runtime {found[1]} is taken: the process before this one took it" in _taken(server)[1]
            _answers(client, right)


def _taken(server: TorchServe) -> list[str]:
    log = (server.folder / "logs/model_log.log").read_text(encoding="utf-8")
    return [line for line in log.splitlines() if "is taken: " in line]


def _answers(client: Rest, right: Any) -> None:
    for text in SENTENCES[:4]:
        reply = client.post("tiny", {"inputs": text})
        assert reply.status == 200, reply.body
        (expected,) = right.respond([right.input.decode(text, "")])
        assert right.compare(expected, reply.value) <= right.serving["tolerance"]
