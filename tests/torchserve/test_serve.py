"""`make serve` and `make stop`: one server per run folder, found again by it, and a curl line that works as typed."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from serving_mar import ECHO, echo_mar, write_mar

from archiver.torchserve import serve
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import free_ports

TEXT = 'it\'s a "fine" film — 100 %'


def _config(folder: Path) -> Path:
    """A config.properties with fixed ports that are free now."""
    rest, management, metrics, grpc, grpc_management = free_ports(5)
    path = folder / "config.properties"
    path.write_text(
        f"inference_address=http://127.0.0.1:{rest}\nmanagement_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc}\ngrpc_management_port={grpc_management}\n"
    )
    return path


# The server outlives the command that started it, and here that command is this process.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_start_answers_and_stop_ends_that_server_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _config(tmp_path)
    handler = ECHO.replace("{delay}", "0")
    write_mar(tmp_path / "model_store", "echo", handler, examples=[{"input": TEXT, "answer": 0}])
    with TorchServe([echo_mar(tmp_path, "bystander")]) as bystander:
        try:
            assert serve.main(["start"]) == 0
            said = capsys.readouterr().out
            running = serve.frontend(serve.FOLDER)
            assert running is not None
            (line,) = [line for line in said.splitlines() if line.startswith("try ")]
            if shutil.which("curl"):
                typed = line.removeprefix("try").strip()
                done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, timeout=60, check=True)
                assert json.loads(done.stdout) == {"inputs": TEXT}
            assert "echo: {" in said and ".torchserve/key_file.json" in said

            assert serve.main(["start"]) == 2
            assert "already running from .torchserve" in capsys.readouterr().err
            assert serve.main(["start", "--folder", "second"]) == 2
            assert "another process listens on inference_address" in capsys.readouterr().err
            assert serve.main(["stop", "--folder", "second"]) == 0
            assert "no TorchServe runs from second" in capsys.readouterr().out
            bystander.wait_ready(120)
            others = bystander.processes()
            processes = [running, *running.children(recursive=True)]
            assert len(processes) >= 2
        finally:
            assert serve.main(["stop"]) == 0
        assert "TorchServe has stopped" in capsys.readouterr().out
        assert not [process for process in processes if process.is_running()]
        assert not (serve.FOLDER / "key_file.json").exists()
        assert all(process.is_running() for process in others)


def test_a_pid_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / ".model_server.pid").write_text(str(sleeper.pid))
        assert serve.frontend(tmp_path) is None
        assert serve.stop(tmp_path) is False
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_nothing_to_serve_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert serve.main(["start"]) == 2
    assert "model_store: no .mar file to serve" in capsys.readouterr().err
    echo_mar(tmp_path / "model_store")
    assert serve.main(["start"]) == 2
    assert "config.properties: no such file" in capsys.readouterr().err
    assert not serve.FOLDER.exists()


def test_the_frontend_takes_no_larger_bodies_than_the_archives(tmp_path: Path) -> None:
    """A store of texts alone stays at 4 MiB of memory for a request; what says nothing leaves the setting as it is."""
    sizes = {"texts": 2 << 20, "sounds": 32 << 20, "tiny": 1 << 20}
    archives = {name: tmp_path / f"{name}.mar" for name in (*sizes, "foreign", "older")}
    for name, path in archives.items():
        with zipfile.ZipFile(path, "w") as contents:
            if name != "foreign":
                facts = {"max_body_bytes": sizes[name]} if name in sizes else {}
                contents.writestr("marpress.json", json.dumps(facts))
    allowed = {"max_request_size": str(32 << 20)}

    def found(*names: str) -> dict[str, str]:
        return serve.smaller_bodies([archives[name] for name in names], allowed)

    assert found("texts", "tiny") == {"max_request_size": str(4 << 20)}
    assert found("texts", "sounds") == found("texts", "foreign") == found("older") == {}
    assert serve.smaller_bodies([archives["texts"]], {"max_request_size": "1000"}) == {}
