"""inspect: the archive's account of itself, as JSON and as a page of text."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest
from built import small_archive

from archiver.errors import PackagingError
from archiver.report.inspection import inspect_mar
from archiver.report.summary import _assistance, summarize


@pytest.fixture
def built(tiny_model, tmp_path_factory):
    return small_archive(tiny_model, tmp_path_factory)


def test_every_key_of_the_contract(built):
    report = inspect_mar(built.path)
    for key in ["name", "version", "task", "runtime", "content_sha256", "created_by", "gate", "files"]:
        assert key in report
    assert report["model"].keys() == {"source", "sha256"}
    assert report["stages"][0].keys() >= {"method", "options", "parameters", "weight_bytes", "notes", "metrics"}
    assert report["size"].keys() == {"original_bytes", "weight_bytes", "archive_bytes"}
    assert report["original_dtype"] == "float32"
    assert report["metrics"].keys() == {"original", "compressed"}
    assert report["metrics"]["original"].keys() == {"accuracy", "agreement", "f1", "cross_entropy"}
    peaks = report["timings"]["peak_memory"]
    # The build has torch and a runtime in memory, the worker a runtime without torch.
    assert 5e8 > peaks["worker_bytes"] > 2e7 and peaks["build_bytes"] > peaks["worker_bytes"]
    assert report["timings"].keys() >= {"original_per_s", "compressed_per_s", "speedup", "host", "stage_seconds"}
    assert all(entry.keys() == {"path", "sha256", "bytes"} for entry in report["files"])
    assert (report["name"], report["version"], report["runtime"]) == ("tiny", "v1", "onnxruntime")
    assert report["size"]["archive_bytes"] == built.path.stat().st_size


def test_digests_are_those_of_the_files(built):
    report = inspect_mar(built.path)
    listed = {entry["path"]: entry for entry in report["files"]}
    with zipfile.ZipFile(built.path) as archive:
        assert set(archive.namelist()) == {*listed, "marpress.json", "timings.json"}
        for name, entry in listed.items():
            content = archive.read(name)
            assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        # No path of the host and no folder beyond its base name.
        for name in archive.namelist():
            assert str(built.path.parent.parent).encode() not in archive.read(name), name
    assert "/" not in report["model"]["source"]
    assert report["recipe"]["data"]["validation"] == "data.tsv"


def test_the_page_holds_the_numbers(built):
    report = inspect_mar(built.path)
    page = summarize(report, built.path)
    for piece in (
        report["content_sha256"],
        "runs on onnxruntime",
        "quantize/dynamic-int8",
        "PyTorch eager fp32",
        "size    fp32 weights",
        "memory  the build ",
        "gate    none",
        "accuracy",
        "gate    none",
        "alone and in a batch",
    ):
        assert piece in page
    gated = report | {"gate": {"max_drop": {"accuracy": 0.01}, "max_size_mb": 25}}
    assert "gate    passed: max_drop accuracy 0.01, max_size_mb 25" in summarize(gated, built.path)
    slow = report | {"timings": report["timings"] | {"speedup": 0.9}, "stages": []}
    assert "nothing is faster on this host: what was won is bytes" in summarize(slow, built.path)
    assert "none: packaged as it is" in summarize(slow, built.path)
    assert "size    bf16 weights" in summarize(report | {"original_dtype": "bfloat16"}, built.path)
    before = {key: value for key, value in report.items() if key != "original_dtype"}
    assert "size    original weights" in summarize(before, built.path)


def test_what_is_no_archive(tmp_path, built):
    path = tmp_path / "x.mar"
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*x.mar"):
        inspect_mar(path)
    path.write_bytes(built.path.read_bytes()[:-30])
    with pytest.raises(PackagingError, match="x.mar is no sound archive"):
        inspect_mar(path)
    forged = [
        ({}, "no marpress archive: .*marpress.json"),
        ({"marpress.json": "{}", "timings.json": "{}"}, "has format None"),
        ({"marpress.json": '{"format": 1, "files": []}', "timings.json": "{}"}, "no marpress archive: timings"),
        ({"marpress.json": '{"format": 1, "files": []}', "timings.json": "[]"}, "no marpress archive"),
        ({"marpress.json": '{"format": 1, "files": []}', "timings.json": "{"}, "no sound archive"),
        (
            {"marpress.json": '{"format": 1, "files": []}', "timings.json": json.dumps({"timings": {}})},
            "no marpress archive: size",
        ),
    ]
    for files, message in forged:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        with pytest.raises(PackagingError, match=message):
            inspect_mar(path)


def test_guessing_ahead_is_reported_with_what_it_did() -> None:
    measured = {"kind": "prompt lookup", "speedup_by_streams": {"1": 1.5, "2": 0.9}, "used_up_to_streams": 1}
    assert _assistance(measured) == [
        "          prompt lookup, tokens/s by streams written at once 1: 1.50 ×, 2: 0.90 ×: used while at most 1 run"
    ]
    assert _assistance(measured | {"used_up_to_streams": 0})[0].endswith(": left out")
    assert _assistance(None) == []


def test_the_page_names_the_gpu_and_what_the_original_ran_on(built):
    report = inspect_mar(built.path)
    host = report["timings"]["host"] | {"gpu": "NVIDIA H100"}
    on_gpu = report | {"timings": report["timings"] | {"host": host, "original_on": "cuda"}}
    assert " on NVIDIA H100; " in summarize(on_gpu, built.path)
    assert "PyTorch eager fp32\n" in summarize(on_gpu, built.path)
    apart = report | {"timings": report["timings"] | {"host": host, "original_on": "cpu"}}
    assert "PyTorch eager fp32 on the CPU\n" in summarize(apart, built.path)
    assert report["timings"]["original_on"] == "cpu" and "gpu" not in report["timings"]["host"]
