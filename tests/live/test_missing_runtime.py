"""A host that lacks an archive's runtime, or has an old one: the worker says in one sentence what to install."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from places import ROOT
from served import Served

from archiver.torchserve import logs
from archiver.torchserve import server as server_module
from archiver.torchserve.server import ServerError, TorchServe


def test_the_worker_names_the_package_the_version_and_the_command(
    archives: dict[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "site-packages"
    for package, source in {
        "openvino": 'raise ImportError("libopenvino.so: cannot open shared object file")\n',
        "onnxruntime": '__version__ = "1.2.0"\n',
        "tokenizers": 'raise ImportError("No module named tokenizers")\n',
    }.items():
        (host / package).mkdir(parents=True)
        (host / package / "__init__.py").write_text(source)
    store = tmp_path / "store"
    store.mkdir()
    paths = {name: Path(shutil.copy(archives[name].path, store)) for name in ("vectors", "films")}

    # The environment's own PYTHONPATH is what comes first in a worker; TorchServe() keeps ours away from it.
    monkeypatch.setattr(server_module, "_NOT_INHERITED", ())
    monkeypatch.setenv("PYTHONPATH", str(host))
    shutil.move(host / "tokenizers", host / "absent")
    said = _said(paths)
    assert re.search(
        r"^this archive needs openvino>=\d+\.\d+, which this host's Python cannot import "
        r"\(libopenvino\.so: cannot open shared object file\): "
        r'run `pip install "openvino>=\d+\.\d+"` for the Python that runs TorchServe$',
        said["vectors"],
    ), said["vectors"]
    assert re.search(
        r"^this archive needs onnxruntime>=1\.\d+, this host has 1\.2\.0: "
        r'run `pip install "onnxruntime>=1\.\d+"` for the Python that runs TorchServe$',
        said["films"],
    ), said["films"]

    shutil.move(host / "absent", host / "tokenizers")
    said = _said({"films": paths["films"]})
    assert re.search(
        r'^this archive needs tokenizers>=\d+\.\d+, .*run `pip install "tokenizers>=\d+\.\d+"`', said["films"]
    ), said["films"]


def _said(archives: dict[str, Path]) -> dict[str, str]:
    """What wait_ready reports for the first archive that fails, and what the log says of each."""
    with TorchServe(list(archives.values()), config=ROOT / "config.properties") as server:
        with pytest.raises(ServerError, match="this archive needs") as failed:
            server.wait_ready(120)
        deadline = time.monotonic() + 60
        while not all(logs.worker_failure(server.folder, name) for name in archives):
            assert time.monotonic() < deadline, logs.last_lines(server.folder)
            time.sleep(0.1)
        said = {name: str(logs.worker_failure(server.folder, name)) for name in archives}
        assert str(failed.value) in [f"{name}: {sentence}" for name, sentence in said.items()]
        return said
