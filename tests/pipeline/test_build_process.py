"""`python -m archiver` as a process: exit codes, messages, and what an interrupted build leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from built import heed_interrupts
from places import ROOT

KEYS = {
    "": "name version task runtime content_sha256 created_by model stages size metrics timings gate files",
    "model": "source sha256",
    "size": "original_bytes weight_bytes archive_bytes",
    "metrics": "original compressed",
    "timings": "original_per_s compressed_per_s speedup host stage_seconds",
}


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "archiver", *map(str, arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module")
def place(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with model/, dev.tsv, recipe.yaml and model_store/tiny.mar, built by the command."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(tiny_model("bert", "text-classification"), folder / "model")
    rows = [f"{sentence}\t{index % 2}\n" for index, sentence in enumerate(sentences)]
    (folder / "dev.tsv").write_text("".join(rows))
    recipe = {
        "name": "tiny",
        "task": "text-classification",
        "model": "model",
        "data": {"train": "dev.tsv", "validation": "dev.tsv", "columns": {"text": 0, "label": 1}},
        "compress": [{"quantize": {"method": "static-int8"}}],
        "gate": {"max_drop": {"accuracy": 0.5}},
        "serve": {"runtime": "onnxruntime", "max_length": 32},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    built = _run(folder, "build", "recipe.yaml", "--json")
    assert built.returncode == 0, built.stderr
    (folder / "built.json").write_text(built.stdout)
    return folder


def _left(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


def test_build_prints_what_inspect_prints(place: Path) -> None:
    report = json.loads((place / "built.json").read_text())
    for section, keys in KEYS.items():
        assert set(keys.split()) <= set(report[section] if section else report)
    assert report["name"] == "tiny" and report["runtime"] == "onnxruntime"
    assert report["model"]["source"] == "model"
    assert all({"method", "options", "parameters", "weight_bytes"} <= set(stage) for stage in report["stages"])
    assert len(report["stages"]) == 1
    assert all(set(file) == {"path", "sha256", "bytes"} for file in report["files"])
    assert str(place) not in json.dumps(report)
    assert _left(place / "model_store") == ["tiny.mar"]
    inspected = _run(place, "inspect", "model_store/tiny.mar", "--json")
    assert (inspected.returncode, json.loads(inspected.stdout)) == (0, report)
    page = _run(place, "inspect", "model_store/tiny.mar")
    assert page.returncode == 0 and report["content_sha256"] in page.stdout
    missing = _run(place, "inspect", "model_store/absent.mar")
    assert missing.returncode == 2 and "absent.mar cannot be inspected: No such file" in missing.stderr


def test_verify_ends_with_0_1_or_2(place: Path, tmp_path: Path) -> None:
    mar = place / "model_store" / "tiny.mar"
    sound = _run(tmp_path, "verify", mar)
    assert (sound.returncode, sound.stderr) == (0, "") and "tiny.mar: sound" in sound.stdout
    changed = tmp_path / "changed.mar"
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "model.onnx":
                content = content[:-1] + bytes([content[-1] ^ 1])
            target.writestr(entry, content)
    unsound = _run(tmp_path, "verify", changed)
    assert unsound.returncode == 1 and "changed.mar: model.onnx: its sha256 differs" in unsound.stderr
    raw = bytearray(mar.read_bytes())
    with zipfile.ZipFile(mar) as source:
        largest = max(source.infolist(), key=lambda entry: entry.compress_size)
    raw[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 0xFF
    (tmp_path / "flipped.mar").write_bytes(raw)
    assert _run(tmp_path, "verify", "flipped.mar").returncode == 1
    missing = _run(tmp_path, "verify", "absent.mar")
    assert missing.returncode == 2 and "absent.mar cannot be read: No such file" in missing.stderr


def test_every_mistake_of_a_recipe_is_listed_with_its_line(place: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["serve"]["runtme"] = "torch"
    recipe["modle"] = "x"
    recipe["data"]["validation"] = "absent.tsv"
    recipe["compress"] = [{"quantize": {"method": "int3"}}]
    (place / "wrong.yaml").write_text(yaml.safe_dump(recipe))
    for more in ([], ["--check"]):
        refused = _run(place, "build", "wrong.yaml", "--model-store", tmp_path / "store", *more)
        assert refused.returncode == 2 and refused.stdout == ""
        for part in ("'runtme'", "'modle'", "absent.tsv does not exist", "'int3'", "wrong.yaml:"):
            assert part in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "store").exists()
    absent = _run(place, "build", "absent.yaml")
    assert absent.returncode == 2 and "absent.yaml does not exist" in absent.stderr


def _without_weights(folder: Path) -> str:
    (folder / "other" / "model.safetensors").unlink()
    return "it has no weights"


def _bin_only(folder: Path) -> str:
    (folder / "other" / "model.safetensors").rename(folder / "other" / "pytorch_model.bin")
    return "its weights are pytorch_model.bin only"


def _bad_rows(folder: Path) -> str:
    (folder / "dev.tsv").write_text("a fine film\t1\n\t0\na dull film\t7\nno label\n")
    return "dev.tsv:2: text is empty|dev.tsv:3: label '7'|dev.tsv:4: "


@pytest.mark.parametrize("spoil", [_without_weights, _bin_only, _bad_rows])
def test_a_model_or_data_at_fault_leaves_nothing(place: Path, tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    shutil.copytree(place / "model", tmp_path / "other")
    for name in ("dev.tsv", "recipe.yaml"):
        shutil.copy(place / name, tmp_path)
    expected = spoil(tmp_path)
    refused = _run(tmp_path, "build", "recipe.yaml", "--set", "model=other")
    assert refused.returncode == 2, refused.stderr
    assert all(part in refused.stderr for part in expected.split("|")), refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "model_store").exists()


def test_the_gate_ends_with_3_and_keeps_the_old_archive(place: Path) -> None:
    before = (place / "model_store" / "tiny.mar").read_bytes()
    missed = _run(place, "build", "recipe.yaml", "--set", "gate.max_size_mb=0.001")
    assert missed.returncode == 3 and "max_size_mb" in missed.stderr and "0.001" in missed.stderr, missed.stderr
    assert (place / "model_store" / "tiny.mar").read_bytes() == before
    assert _left(place / "model_store") == ["tiny.mar"]
    fine = _run(place, "build", "recipe.yaml", "--check")
    assert (fine.returncode, fine.stdout) == (0, "recipe.yaml: no mistakes found\n")


@pytest.mark.parametrize(
    ("after", "which"),
    [
        ("check the recipe", signal.SIGINT),
        ("load the model", signal.SIGTERM),
        ("compress: quantize", signal.SIGKILL),
        ("time against", signal.SIGINT),  # it is loaded by a process of its own
        ("time against", signal.SIGKILL),
    ],
)
def test_an_interrupted_build_leaves_the_old_archive_whole(place: Path, after: str, which: signal.Signals) -> None:
    store = place / "model_store"
    before = (store / "tiny.mar").read_bytes()
    build = subprocess.Popen(
        _command("build", "recipe.yaml"),
        cwd=place,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert build.stderr is not None
    try:
        said = []
        for line in build.stderr:
            said.append(line)
            if after in line:
                break
        time.sleep(0.15)  # well into the next step
        below = psutil.Process(build.pid).children(recursive=True)
        build.send_signal(which)
        said.append(build.stderr.read())
        build.wait(timeout=60)
    finally:
        build.kill()
        build.wait()
        build.stderr.close()
    # Python ends itself by SIGINT where that came while it ran generated code (a dataclass's): to a shell both are 130.
    right = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGINT: {130, -signal.SIGINT}}.get(which, {130})
    assert build.returncode in right, "".join(said)
    assert (store / "tiny.mar").read_bytes() == before
    psutil.wait_procs(below, timeout=60)  # a killed build's own verification ends by itself
    if which == signal.SIGKILL:
        assert _left(store) in ([".building", "tiny.mar"], ["tiny.mar"])
    else:
        assert "interrupted; nothing was left half-written" in said[-1]
        assert "Traceback" not in said[-1]
        assert _left(store) == ["tiny.mar"]
        assert not any(process.is_running() for process in below)


def test_the_next_build_clears_what_a_kill_left_and_gives_the_same_content(place: Path) -> None:
    store = place / "model_store"
    abandoned = store / ".building" / "999999999-left"
    abandoned.mkdir(parents=True, exist_ok=True)
    (abandoned / "part.mar").write_bytes(b"half")
    built = _run(place, "build", "recipe.yaml", "--json")
    assert built.returncode == 0, built.stderr
    assert _left(store) == ["tiny.mar"]
    first = json.loads((place / "built.json").read_text())
    assert json.loads(built.stdout)["content_sha256"] == first["content_sha256"]


def test_what_init_writes_can_be_built(place: Path) -> None:
    written = _run(place, "init", "model", "--output", "mine.yaml")
    assert written.returncode == 0 and "wrote mine.yaml" in written.stderr
    again = _run(place, "init", "model", "--output", "mine.yaml")
    assert again.returncode == 2 and "exists already" in again.stderr
    # All three runtimes, which it tries without --set, and all of Python's sentences would only be slower.
    code = (
        "from archiver.data import embedded; embedded.VALIDATION_SENTENCES = 100;"
        "from archiver.cli import main; raise SystemExit(main())"
    )
    command = [sys.executable, "-c", code, "build", "mine.yaml", "--set", "serve.runtime=onnxruntime"]
    built = subprocess.run(
        [*command, "--model-store", "other_store"], cwd=place, env=_environment(), capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert _left(place / "other_store") == ["model.mar"]
