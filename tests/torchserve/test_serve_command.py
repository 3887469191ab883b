"""`python -m archiver.torchserve.serve` as a process, over an archive that the pipeline built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from built import small_archive
from places import ROOT
from serving_mar import echo_mar

from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import free_ports


def test_start_tells_how_to_ask_and_stop_ends_that_server_alone(
    tiny_model: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "model_store").mkdir()
    shutil.copy(small_archive(tiny_model, tmp_path_factory).path, tmp_path / "model_store")
    _config(tmp_path)
    with TorchServe([echo_mar(tmp_path, "bystander")]) as bystander:
        try:
            started = _serve(tmp_path, "start")
            assert started.returncode == 0, started.stdout + started.stderr
            _check_said(tmp_path, started.stdout)
            running = psutil.Process(int((tmp_path / ".torchserve" / ".model_server.pid").read_text()))
            processes = [running, *running.children(recursive=True)]
            assert len(processes) >= 2  # the frontend and its worker

            again = _serve(tmp_path, "start")
            assert again.returncode == 2
            assert again.stderr.startswith(f"TorchServe is already running from .torchserve (PID {running.pid})")
            assert running.is_running()
            bystander.wait_ready(120)
            others = bystander.processes()
        finally:
            stopped = _serve(tmp_path, "stop")
        assert (stopped.returncode, stopped.stdout) == (0, "TorchServe has stopped\n")
        assert not [process for process in processes if process.is_running()]
        assert all(process.is_running() for process in others)
        answer = predict_rest(
            bystander.prediction_url("bystander"), b"still here", "text/plain", token=bystander.inference_key
        )
        assert (answer.status, answer.body) == (200, b"still here")
    idle = _serve(tmp_path, "stop")
    assert (idle.returncode, idle.stdout) == (0, "no TorchServe runs from .torchserve\n")


def _check_said(folder: Path, said: str) -> None:
    """The URLs, an answer, and a curl line that works as it stands."""
    lines = said.splitlines()
    assert lines[0].startswith("ready in ") and lines[0].endswith("tiny")
    assert 'tiny: {"inputs": "this film is very good , this film is very good"} → [{"label":"LABEL_' in said
    config = (folder / "config.properties").read_text()
    for key in ("inference_address=", "management_address="):
        assert next(line for line in config.splitlines() if line.startswith(key)).removeprefix(key) in said
    (line,) = [line.removeprefix("try").strip() for line in lines if line.startswith("try")]
    key = json.loads((folder / ".torchserve" / "key_file.json").read_text())["inference"]["key"]
    assert key not in said
    if shutil.which("curl"):
        typed = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
        assert [set(item) for item in json.loads(typed.stdout)] == [{"label", "score"}]


def _serve(folder: Path, verb: str) -> subprocess.CompletedProcess[str]:
    # Files, not pipes: the server outlives the command, and would keep a pipe open that it inherited.
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        done = subprocess.run(
            [sys.executable, "-m", "archiver.torchserve.serve", verb],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=180,
            check=False,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


def _config(folder: Path) -> None:
    """The project's config.properties with ports that are free now."""
    rest, management, metrics, grpc, grpc_management = free_ports(5)
    text = (ROOT / "config.properties").read_text()
    for key, old, new in (
        ("inference_address", "http://127.0.0.1:8080", f"http://127.0.0.1:{rest}"),
        ("management_address", "http://127.0.0.1:8081", f"http://127.0.0.1:{management}"),
        ("metrics_address", "http://127.0.0.1:8082", f"http://127.0.0.1:{metrics}"),
        ("grpc_inference_port", "7070", str(grpc)),
        ("grpc_management_port", "7071", str(grpc_management)),
    ):
        assert f"\n{key}={old}\n" in text
        text = text.replace(f"\n{key}={old}\n", f"\n{key}={new}\n")
    (folder / "config.properties").write_text(text)
