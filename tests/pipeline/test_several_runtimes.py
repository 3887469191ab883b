"""`serve.runtimes`: an archive of several, of which the worker takes the fastest that stands on its host."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from built import build, quantize, recipe_of
from once import once

from archiver.bench.bodies import bodies_of
from archiver.errors import GateFailed
from archiver.packaging.entry import handler_of
from archiver.packaging.layout import seal
from archiver.packaging.mar import extract, write_mar
from archiver.packaging.verify import verify
from archiver.report.inspection import inspect_mar
from archiver.report.summary import summarize
from archiver.spec import GateSpec
from handlers.choosing import ChoosingHandler
from handlers.errors import UnsoundArchive
from handlers.examples import read_examples
from handlers.manifest import read_manifest, read_timings

BOTH = ["openvino", "onnxruntime"]
Tiny = Callable[..., Path]


@pytest.fixture
def mar(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def fill(folder: Path) -> None:
        more = {"compress": quantize("static-int8"), "serve": {"runtimes": BOTH}}
        build(recipe_of(folder, tiny_model(num_hidden_layers=1), **more), folder / "store")

    return once(tmp_path_factory, "several-runtimes", fill) / "store" / "tiny.mar"


@pytest.fixture
def folder(mar: Path, tmp_path: Path) -> Path:
    extract(mar, tmp_path / "open")
    return tmp_path / "open"


def opened(folder: Path, **more: Any) -> ChoosingHandler:
    handler: Any = handler_of(folder)
    handler.streams = 2
    handler.open(folder, threads=1, **more)
    return handler


def reseal(folder: Path, change: Callable[[dict[str, Any], list[dict[str, Any]]], None]) -> None:
    """Change serving.json and the examples, and write a manifest that fits."""
    facts = {k: v for k, v in read_manifest(folder).items() if k not in ("format", "files", "content_sha256")}
    serving, examples = json.loads((folder / "serving.json").read_text()), read_examples(folder)
    change(serving, examples)
    (folder / "serving.json").write_text(json.dumps(serving))
    seal(folder, facts, examples, read_timings(folder))


def test_both_are_in_it_and_reported(mar: Path, folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"openvino/model.xml", "onnxruntime/model.onnx", "tokenizer.json", "handlers/choosing.py"} <= names
    assert not {"model.xml", "model.onnx"} & names
    required = (folder / "requirements.txt").read_text()
    assert "openvino>=" in required and "onnxruntime>=" in required

    report = inspect_mar(mar)
    assert report["runtime"] == "openvino"
    assert [part["runtime"] for part in report["runtimes"]] == BOTH
    assert report["size"]["weight_bytes"] == sum(part["weight_bytes"] for part in report["runtimes"])
    listed = [one["bytes"] for one in report["files"] if one["path"].startswith(("openvino/", "onnxruntime/"))]
    assert report["size"]["weight_bytes"] == sum(listed)
    assert report["recipe"]["serve"]["runtimes"] == BOTH and "runtime" not in report["recipe"]["serve"]
    assert "onnxruntime " in report["created_by"] and "openvino " in report["created_by"]
    assert set(report["timings"]["served_per_s"]) == set(report["timings"]["speedups"]) == set(BOTH)
    text = summarize(report, mar)
    assert "the faster of openvino and onnxruntime where it is loaded" in text
    assert all(f"  {name}: weights " in text for name in BOTH)


def test_verify_opens_each(mar: Path, folder: Path) -> None:
    assert verify(mar) == []

    def change(serving: dict[str, Any], examples: list[dict[str, Any]]) -> None:
        for example in examples:
            example["answers"]["onnxruntime"] = [{"label": "LABEL_0", "score": 0.123}]

    reseal(folder, change)
    write_mar(folder, folder.parent / "changed.mar")
    (problem,) = verify(folder.parent / "changed.mar")
    assert problem.startswith("runtime onnxruntime: the archive's own examples are answered wrongly here")


def test_bench_finds_its_requests(mar: Path) -> None:
    bodies, content = bodies_of(mar, None)
    assert len(bodies) == 3 and content == "text/plain"


def test_the_faster_serves_and_the_numbers_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "handlers.choosing"):
        handler = opened(folder)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "handlers.choosing"]
    assert line.startswith(f"runtime {handler.session.name} is taken: {handler.session.name} ")
    assert all(f"{name} " in line for name in BOTH) and "in 2 streams of 1 thread" in line
    # What runs is cut as its runtime wants it.
    alone = opened(folder, only=handler.session.name)
    assert handler.serving == alone.serving
    assert ("row_sizes" in handler.serving["batching"]) == (handler.session.name == "openvino")


@pytest.mark.parametrize("fastest", BOTH)
def test_whichever_is_faster(folder: Path, monkeypatch: pytest.MonkeyPatch, fastest: str) -> None:
    monkeypatch.setattr(
        ChoosingHandler, "_tried", lambda self, place, name, threads: {"rate": 2.0 if name == fastest else 1.0}
    )
    handler = opened(folder)
    assert handler.session.name == fastest
    first = read_examples(folder)[0]
    right = first["answer"] if fastest == "openvino" else first["answers"][fastest]
    (found,) = handler.respond([handler.input.from_stored(first["input"])], handler.full_parameters)
    assert handler.compare(right, found) <= handler.serving["tolerance"]


def test_nothing_is_measured_where_the_recipe_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChoosingHandler, "_tried", None)
    reseal(folder, lambda serving, examples: serving.update(choose_at_load=False))
    with caplog.at_level(logging.INFO, "handlers.choosing"):
        assert opened(folder).session.name == "openvino"
    assert "runtime openvino is taken: the recipe turns the measurement off" in caplog.text


def break_examples(serving: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    for example in examples:
        example["answer"] = [{"label": "LABEL_0", "score": 0.123}]


@pytest.mark.parametrize("measured", [True, False])
def test_one_that_answers_wrongly_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture, measured: bool) -> None:
    def change(serving: dict[str, Any], examples: list[dict[str, Any]]) -> None:
        break_examples(serving, examples)
        serving["choose_at_load"] = measured

    reseal(folder, change)
    assert opened(folder).session.name == "onnxruntime"
    assert "runtime openvino is left out: the archive's own examples are answered wrongly here" in caplog.text


def test_one_whose_package_is_missing_is_left_out(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host/openvino").mkdir(parents=True)
    (tmp_path / "host/openvino/__init__.py").write_text('raise ImportError("no libopenvino.so")\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path / "host"), *sys.path])
    assert opened(folder).session.name == "onnxruntime"
    assert "runtime openvino is left out: this archive needs openvino>=" in caplog.text
    assert "(no libopenvino.so)" in caplog.text


def test_one_that_crashes_is_left_out(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host/onnxruntime").mkdir(parents=True)
    (tmp_path / "host/onnxruntime/__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "host"), *sys.path])
    assert opened(folder).session.name == "openvino"
    assert "runtime onnxruntime is left out: its process ended with status -4" in caplog.text


def test_none_that_is_left_is_an_error(folder: Path) -> None:
    def change(serving: dict[str, Any], examples: list[dict[str, Any]]) -> None:
        break_examples(serving, examples)
        for example in examples:
            example["answers"]["onnxruntime"] = example["answer"]

    reseal(folder, change)
    with pytest.raises(UnsoundArchive, match=r"none of the archive's runtimes \(openvino, onnxruntime\) serves"):
        opened(folder)


def test_a_damaged_file_of_either_stops_the_load(folder: Path) -> None:
    with (folder / "onnxruntime/model.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UnsoundArchive, match=r"the archive is damaged: onnxruntime/model\.onnx"):
        opened(folder, only="openvino")


def test_what_was_measured_leaves_no_module_behind(folder: Path) -> None:
    """The runtime that was not taken was never in the memory of the process that serves."""
    import subprocess

    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import marpress_entry\n"
        "handler = marpress_entry.Handler(); handler.open(Path(sys.argv[1]), threads=1)\n"
        "print(handler.session.name, 'openvino' in sys.modules, 'onnxruntime' in sys.modules)\n"
    )
    command = [sys.executable, "-P", "-s", "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["openvino", "True", "False"], ["onnxruntime", "False", "True"])


def test_the_gate_looks_at_each(tiny_model: Tiny, tmp_path: Path) -> None:
    """Bounds of quality by each runtime; that of speed by the fastest."""
    more = {"compress": quantize("static-int8"), "serve": {"runtimes": BOTH}}
    recipe = recipe_of(tmp_path, tiny_model(num_hidden_layers=1), **more)
    with pytest.raises(GateFailed, match="the gate is not passed") as failed:
        build(replace(recipe, gate=GateSpec(min={"agreement": 1.01})), tmp_path / "store")
    assert [line.partition(":")[0] for line in failed.value.problems] == BOTH
    with pytest.raises(GateFailed, match="the gate is not passed") as failed:
        build(replace(recipe, gate=GateSpec(min_speedup=900.0)), tmp_path / "store")
    assert len(failed.value.problems) == 1 and "min_speedup" in failed.value.problems[0]
    assert not (tmp_path / "store/tiny.mar").exists()


def test_the_same_bytes_again(mar: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    more = {"compress": quantize("static-int8"), "serve": {"runtimes": BOTH}}
    second = build(recipe_of(tmp_path, tiny_model(num_hidden_layers=1), **more), tmp_path / "store")
    assert second.manifest["content_sha256"] == inspect_mar(mar)["content_sha256"]
    shutil.rmtree(tmp_path / "store")
