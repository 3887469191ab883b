"""verify: a sound archive passes; whatever is changed, missing, added or of a forbidden kind is named."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from built import small_archive

from archiver.packaging import verify as verify_module
from archiver.packaging.layout import seal
from archiver.packaging.mar import extract, write_mar
from archiver.packaging.verify import verify, verify_folder
from archiver.pipeline.build import build
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from handlers.examples import read_examples
from handlers.manifest import MANIFEST, TIMINGS, canonical_json, content_sha256, read_manifest, read_timings


@pytest.fixture
def mar(tiny_model, tmp_path_factory) -> Path:
    return small_archive(tiny_model, tmp_path_factory).path


@pytest.fixture
def folder(mar, tmp_path) -> Path:
    extract(mar, tmp_path / "open")
    return tmp_path / "open"


def check(folder: Path) -> list[str]:
    target = folder.parent / "changed.mar"
    write_mar(folder, target)
    return verify(target)


def reseal(folder: Path, change: Callable[[list[dict[str, Any]]], None] = lambda examples: None) -> None:
    """Write a manifest that fits the files as they are now: what a forger would do."""
    facts = {k: v for k, v in read_manifest(folder).items() if k not in ("format", "files", "content_sha256")}
    examples = read_examples(folder)
    change(examples)
    seal(folder, facts, examples, read_timings(folder))


def test_a_sound_archive(mar):
    assert verify(mar) == []


def test_an_archive_for_torch_in_a_python_of_its_own(tiny_model, tmp_path, monkeypatch):
    """Elsewhere in the tests such archives are verified by a Python that has imported torch already."""
    monkeypatch.setattr(verify_module, "subprocess", subprocess)
    recipe = {
        "name": "plain",
        "task": "text-classification",
        "model": str(tiny_model("bert", "text-classification")),
        "data": {"validation": "dev.tsv", "columns": {"text": 0, "label": 1}},
        "serve": {"max_length": 32, "runtime": "torch"},
    }
    (tmp_path / "dev.tsv").write_text("a dull film\t0\na fine film\t1\n")
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(recipe))
    built = build(load_recipe(tmp_path / "plain.yaml"), tmp_path / "store", Progress(quiet=True))
    assert verify(built.path) == []


def test_the_handler_comes_from_the_archive_whatever_the_host_has(mar, tmp_path, monkeypatch):
    """A broken `handlers` in the way of Python's own path changes nothing."""
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers/__init__.py").write_text("raise RuntimeError('the wrong handlers')")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the wrong numpy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert verify(mar) == []


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "serving.json",
        "tokenizer.json",
        "examples.json",
        "marpress_entry.py",
        "sitecustomize.py",
        "handlers/base.py",
        "model-config.yaml",
        "requirements.txt",
        "MAR-INF/MANIFEST.json",
        TIMINGS,
        MANIFEST,
    ],
)
def test_a_changed_byte_names_its_file(folder, name):
    content = bytearray((folder / name).read_bytes())
    place = content.index(b"0") if name in (MANIFEST, TIMINGS) else len(content) // 2
    content[place] ^= 1
    (folder / name).write_bytes(content)
    problems = check(folder)
    assert problems
    assert problems[0].startswith(name)


def test_missing_and_extra_files(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "handlers/extra.py").write_text("")
    assert check(folder) == ["tokenizer.json: missing", f"handlers/extra.py: not listed in {MANIFEST}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.pkl", b"anything", "can hold a pickle or machine code"),
        ("model.PT", b"anything", "can hold a pickle or machine code"),
        ("handlers/fast.so", b"\x7fELF", "can hold a pickle or machine code"),
        ("cache.dat", pickle.dumps({"a": 1}), "begins like a pickle"),
        ("weights.bin.txt", pickle.dumps([1], protocol=2), "begins like a pickle"),
        ("inner.dat", b"PK\x03\x04rest", "a zip inside the archive"),
    ],
)
def test_pickles_are_refused_even_when_listed(folder, name, content, message):
    (folder / name).write_bytes(content)
    reseal(folder)
    problems = check(folder)
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: ")
    assert message in problems[0]


def test_an_answer_that_differs_is_noticed(folder):
    def change(examples):
        for answer in examples[1]["answer"]:
            answer["score"] = 1 - answer["score"] / 2

    reseal(folder, change)
    (problem,) = check(folder)
    assert "the archive's own examples are answered wrongly here: example 1 alone differs by" in problem


def test_a_handler_that_cannot_be_loaded(folder):
    (folder / "handlers/batching.py").write_text("import a_package_nobody_has\n")
    reseal(folder)
    (problem,) = check(folder)
    assert "cannot be loaded from the archive alone" in problem
    assert "a_package_nobody_has" in problem


def test_a_missing_runtime_is_named(folder):
    settings = json.loads((folder / "serving.json").read_bytes())
    settings["session"]["requirement"] = "onnxruntime>=99.0"
    (folder / "serving.json").write_bytes(canonical_json(settings))
    reseal(folder)
    (problem,) = check(folder)
    assert "this archive needs onnxruntime>=99.0, this host has" in problem


def test_torchserves_own_manifest_must_name_our_entry(folder):
    path = folder / "MAR-INF/MANIFEST.json"
    path.write_text(path.read_text().replace("marpress_entry.py", "handlers/base.py"))
    reseal(folder)
    assert check(folder) == [
        "MAR-INF/MANIFEST.json: names the handler 'handlers/base.py', expected 'marpress_entry.py'"
    ]
    path.write_text("[]")
    reseal(folder)
    assert "unreadable" in check(folder)[0]


def test_no_archive_at_all(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*absent.mar"):
        verify(tmp_path / "absent.mar")
    (tmp_path / "text.mar").write_text("no zip")
    assert "text.mar is damaged" in verify(tmp_path / "text.mar")[0]
    (folder / MANIFEST).unlink()
    assert "no marpress archive" in check(folder)[0]
    (tmp_path / "empty").mkdir()
    assert "no marpress archive" in verify_folder(tmp_path / "empty", []).problems[0]


def test_a_manifest_of_another_shape(folder):
    for files in ("x", [1], [{"path": "a"}]):
        manifest = {"format": 1, "files": files}
        manifest["content_sha256"] = content_sha256(manifest)
        (folder / MANIFEST).write_bytes(canonical_json(manifest))
        assert "lists its files wrongly" in check(folder)[0]
    shutil.rmtree(folder)
