"""The command line: verbs, exit codes, and messages that go to the right stream."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from built import heed_interrupts, quantize, small_archive, write_recipe
from places import ROOT

from archiver import __version__
from archiver.cli import main


@pytest.fixture
def mar(tiny_model, tmp_path_factory) -> Path:
    return small_archive(tiny_model, tmp_path_factory).path


def recipe_at(folder: Path, model: Path, **more) -> Path:
    settings = {"serve": {"runtime": "torch"}, "compress": quantize("weight-only", bits=8)} | more
    return write_recipe(folder, model, **settings)


def test_usage(capsys):
    for arguments, code in (([], 2), (["nonsense"], 2), (["build"], 2), (["--help"], 0), (["build", "--help"], 0)):
        with pytest.raises(SystemExit, match=f"^{code}$"):
            main(arguments)
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out.strip().endswith(f"marpress {__version__}")


def test_init_then_check(tiny_model, tmp_path, capsys):
    model = shutil.copytree(tiny_model(), tmp_path / "model")
    assert main(["init", str(model)]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["task"] == "text-classification"
    target = tmp_path / "recipe.yaml"
    assert main(["init", str(model), "--output", str(target)]) == 0
    assert main(["init", str(model), "--output", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "absent")]) == 2


def test_check_finds_mistakes_and_builds_nothing(tiny_model, tmp_path, capsys):
    path = recipe_at(tmp_path, tiny_model())
    store = tmp_path / "store"
    assert main(["build", str(path), "--check", "--model-store", str(store)]) == 0
    assert "no mistakes found" in capsys.readouterr().out
    overrides = ["--set", "serve.batch_size=0", "--set", "data.train=absent.tsv", "--set", "nonsense=1"]
    assert main(["build", str(path), "--check", *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for piece in ("has 3 mistakes", "serve.batch_size", "absent.tsv", "nonsense"):
        assert piece in captured.err
    assert not store.exists()


@pytest.mark.parametrize("kind", ["no weights", "bin only", "bad row", "no recipe"])
def test_what_is_the_users_fault_exits_2(tiny_model, tmp_path, capsys, kind):
    model = Path(shutil.copytree(tiny_model(), tmp_path / "model"))
    path = recipe_at(tmp_path, model)
    expected = "no weights"
    if kind in ("no weights", "bin only"):
        (model / "model.safetensors").unlink()
    if kind == "bin only":
        (model / "pytorch_model.bin").write_bytes(b"x")
        expected = "never loaded"
    if kind == "bad row":
        with (tmp_path / "data.tsv").open("a") as data:
            data.write("a text without a label\na text\t9\n")
        expected = "data.tsv:26: label '9'"
    if kind == "no recipe":
        path, expected = tmp_path / "absent.yaml", "does not exist"
    assert main(["build", str(path), "--model-store", str(tmp_path / "store")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_the_gate_exits_3(tiny_model, tmp_path, capsys):
    path = recipe_at(tmp_path, tiny_model(), gate={"min_speedup": 900})
    assert main(["build", str(path), "--model-store", str(tmp_path / "store"), "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the gate is not passed" in captured.err
    assert "900 × asked for" in captured.err
    assert list((tmp_path / "store").iterdir()) == []


def test_inspect(mar, tmp_path, capsys):
    assert main(["inspect", str(mar), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"
    assert main(["inspect", str(mar)]) == 0
    assert "sentences/s" in capsys.readouterr().out
    (tmp_path / "text.mar").write_text("no zip")
    for path in (tmp_path / "absent.mar", tmp_path / "text.mar", tmp_path):
        assert main(["inspect", str(path)]) == 2
        assert f"error: {path} cannot be inspected" in capsys.readouterr().err


def test_verify(mar, tmp_path, capsys):
    assert main(["verify", str(mar)]) == 0
    assert "sound" in capsys.readouterr().out
    broken = tmp_path / "broken.mar"
    content = bytearray(mar.read_bytes())
    with zipfile.ZipFile(mar) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.compress_size)
    content[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 0xFF
    broken.write_bytes(content)
    assert main(["verify", str(broken)]) == 1
    assert "broken.mar" in capsys.readouterr().err
    for path in (tmp_path / "absent.mar", tmp_path):
        assert main(["verify", str(path)]) == 2
        assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "0"], "whole numbers from 1 to 1024"),
        (["--clients", "1,,2"], "whole numbers from 1 to 1024"),
        (["--seconds", "nan"], "seconds between 0 and 600"),
        (["--seconds", "-1"], "seconds between 0 and 600"),
        (["--protocols", "soap"], "rest, grpc or both"),
    ],
)
def test_bench_refuses_before_it_starts_anything(capsys, arguments, message):
    with pytest.raises(SystemExit, match="^2$"):
        main(["bench", "some.mar", *arguments])
    assert message in capsys.readouterr().err


def test_a_recipe_is_refused_without_waiting_for_torch(tmp_path):
    """A mistake of a few letters must not cost the seconds that importing torch takes."""
    (tmp_path / "recipe.yaml").write_text("name: x\ntask: text-clasification\nmodel: nowhere/there\n")
    code = (
        "import sys; from archiver.cli import main; code = main(['build', 'recipe.yaml']);"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "text-classification" in done.stderr  # what was meant
    assert "Traceback" not in done.stderr


def test_an_interrupted_build_leaves_the_old_archive_whole(tiny_model, tmp_path):
    """By Ctrl-C as soon as there is something to clear away; the other signals: tests/pipeline/test_build_process.py."""
    path = recipe_at(tmp_path, tiny_model())
    store = tmp_path / "store"
    store.mkdir()
    (store / "tiny.mar").write_text("the old one")
    command = [sys.executable, "-m", "archiver", "build", str(path), "--model-store", str(store)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    try:
        deadline = time.monotonic() + 60
        while not list(store.glob(".building/*/*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (store / "tiny.mar").read_text() == "the old one"
    assert process.returncode == 130
    assert "interrupted; nothing was left half-written" in errors
    assert [entry.name for entry in store.iterdir()] == ["tiny.mar"]
