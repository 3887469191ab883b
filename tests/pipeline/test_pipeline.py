"""build(): archives of each runtime and task, the gate that lets none through, and the same bytes again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from built import build, quantize, recipe_of, small_archive
from places import ROOT

from archiver.compression import METHODS, Method
from archiver.compression.report import StageReport
from archiver.errors import GateFailed, RecipeError
from archiver.evaluation import served_speed
from archiver.packaging.verify import verify
from archiver.pipeline import build as pipeline
from archiver.pipeline.check import check
from archiver.pipeline.stages import compress
from archiver.pipeline.workspace import workspace
from archiver.progress import Progress
from archiver.spec import Stage

MULTI = {
    "id2label": {0: "funny", 1: "dull", 2: "loud"},
    "label2id": {"funny": 0, "dull": 1, "loud": 2},
    "problem_type": "multi_label_classification",
}


def contents(mar: Path) -> dict[str, str]:
    with zipfile.ZipFile(mar) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def left_in(store: Path) -> list[str]:
    return sorted(path.name for path in store.rglob("*")) if store.exists() else []


def same_but_timings(first: pipeline.Built, second: pipeline.Built) -> None:
    assert first.manifest["content_sha256"] == second.manifest["content_sha256"]
    one, two = contents(first.path), contents(second.path)
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {"timings.json"}


def test_classifier_on_onnx_runtime_twice(tiny_model, tmp_path, tmp_path_factory):
    first = small_archive(tiny_model, tmp_path_factory)
    recipe = recipe_of(
        tmp_path, tiny_model(num_hidden_layers=1), compress=quantize("dynamic-int8"), serve={"runtime": "onnxruntime"}
    )
    second = build(recipe, tmp_path / "store")
    same_but_timings(first, second)
    assert left_in(tmp_path / "store") == ["tiny.mar"]
    assert second.manifest["tolerance"]["alone_against_in_a_batch"] <= second.manifest["tolerance"]["allowed"]
    assert second.manifest["measured_on"] == {"source": "data.tsv", "examples": 24, "max_length": 32}


def test_embeddings_on_openvino_twice(tiny_model, tmp_path):
    built = []
    for name in ("one", "two"):
        recipe = recipe_of(
            tmp_path / name,
            tiny_model("bert", "feature-extraction", num_hidden_layers=1),
            kind="scored",
            task="feature-extraction",
            compress=quantize("weight-only", bits=8),
            gate={"min": {"cosine": 0.95}},
            serve={"runtime": "openvino"},
        )
        built.append(build(recipe, tmp_path / name / "store"))
    same_but_timings(*built)
    metrics = built[0].manifest["metrics"]
    assert metrics["original"].keys() == metrics["compressed"].keys() == {"cosine", "recall@10", "spearman"}
    assert metrics["original"]["cosine"] == metrics["original"]["recall@10"] == 1.0


def test_pairs_with_several_labels(tiny_model, tmp_path):
    recipe = recipe_of(
        tmp_path,
        tiny_model("roberta", num_hidden_layers=1, **MULTI),
        kind="multi",
        compress=quantize("static-int8", samples=8),
        serve={"runtime": "onnxruntime"},
    )
    built = build(recipe, tmp_path / "store")
    assert verify(built.path) == []
    with zipfile.ZipFile(built.path) as archive:
        serving = json.loads(archive.read("serving.json"))
        examples = json.loads(archive.read("examples.json"))
    assert (serving["activation"], serving["labels"]) == ("sigmoid", ["funny", "dull", "loud"])
    assert len(examples) == 3
    assert examples[0]["input"].keys() == {"text", "text_pair"}
    assert {item["label"] for item in examples[0]["answer"]} == {"funny", "dull", "loud"}
    assert built.manifest["metrics"]["compressed"].keys() == {"agreement", "accuracy", "f1", "cross_entropy"}


def test_auto_takes_one_and_says_why_not_the_others(tiny_model, tmp_path, monkeypatch):
    for name in ("SECONDS", "_WARM"):  # which wins is not looked at
        monkeypatch.setattr(served_speed, name, 0.1)
    recipe = recipe_of(tmp_path, tiny_model(num_hidden_layers=1), compress=quantize("static-int8", samples=8))
    built = build(recipe, tmp_path / "store")
    others = built.timings["other_runtimes"]
    assert {built.manifest["runtime"], *others} == {"openvino", "onnxruntime", "torch"}
    assert all(others.values())
    names = contents(built.path)
    assert ("model.onnx" in names) + ("model.xml" in names) + ("model.safetensors" in names) == 1


def torch_recipe(tiny_model: Any, folder: Path, **more: Any):
    """The runtime that needs no export: quick, and its int8 weights still cost something."""
    more = {"serve": {"runtime": "torch"}, "compress": quantize("weight-only", bits=8)} | more
    return recipe_of(folder, tiny_model(num_hidden_layers=1), **more)


def test_classifier_on_torch(tiny_model, tmp_path):
    built = build(torch_recipe(tiny_model, tmp_path), tmp_path / "store")
    assert built.manifest["runtime"] == "torch"
    assert built.manifest["size"]["weight_bytes"] < 0.6 * built.manifest["size"]["original_bytes"]
    assert left_in(tmp_path / "store") == ["tiny.mar"]


EMBED = {"task": "feature-extraction", "kind": "scored"}


@pytest.mark.parametrize(
    ("gate", "task", "message"),
    [
        ({"min": {"cosine": 0.99999999}}, "feature-extraction", "min.cosine: 0.9"),
        ({"max_size_mb": 0.001}, "text-classification", "max_size_mb: the archive has 0."),
        ({"min_speedup": 1000}, "text-classification", "min_speedup: .* × PyTorch eager fp32 measured, 1000 × asked"),
    ],
)
def test_a_missed_bound_leaves_the_old_archive_alone(tiny_model, tmp_path, gate, task, message):
    store = tmp_path / "store"
    store.mkdir()
    (store / "tiny.mar").write_text("the old one")
    more = EMBED if task == "feature-extraction" else {}
    recipe = recipe_of(
        tmp_path,
        tiny_model("bert", task, num_hidden_layers=1),
        gate=gate,
        compress=quantize("weight-only", bits=8),
        serve={"runtime": "torch"},
        **more,
    )
    with pytest.raises(GateFailed, match="the gate is not passed") as caught:
        build(recipe, store)
    assert len(caught.value.problems) == 1
    assert re.search(message, caught.value.problems[0])
    assert (store / "tiny.mar").read_text() == "the old one"
    assert left_in(store) == ["tiny.mar"]


def test_a_bound_that_cannot_be_measured_is_missed(tiny_model, tmp_path):
    """Labels in the columns, but none in the rows of a validation file: known only once it is read."""
    recipe = torch_recipe(tiny_model, tmp_path, gate={"max_drop": {"accuracy": 0.5}})
    bare = tmp_path / "bare.txt"
    bare.write_text("a good film\na bad film\n")
    recipe = replace(recipe, data=replace(recipe.data, validation=bare, columns={}))
    with pytest.raises(GateFailed, match="the gate is not passed") as caught:
        build(recipe, tmp_path / "store")
    assert "max_drop.accuracy: could not be measured" in caught.value.problems[0]
    assert left_in(tmp_path / "store") == []


def test_a_quantize_stages_own_bound_is_looked_at_with_the_gates(tiny_model, tmp_path):
    strict = {"cosine": 0.0}
    for bound, passes in ((strict, False), ({"cosine": 0.5}, True)):
        recipe = recipe_of(
            tmp_path,
            tiny_model("bert", "feature-extraction", num_hidden_layers=1),
            compress=quantize("weight-only", bits=8, max_drop=bound),
            serve={"runtime": "torch"},
            **EMBED,
        )
        assert dict(recipe.compress[0].max_drop) == bound
        if passes:
            assert build(recipe, tmp_path / "store").manifest["recipe"]["compress"][0]["quantize"]["max_drop"] == bound
            continue
        with pytest.raises(GateFailed, match="the gate is not passed") as caught:
            build(recipe, tmp_path / "store")
        assert "quantize/weight-only: max_drop.cosine: " in caught.value.problems[0]
        assert left_in(tmp_path / "store") == []


def test_answers_that_are_no_numbers_miss_the_gate(tiny_model, tmp_path, monkeypatch):
    def overflow(model: torch.nn.Module, options: Any, examples: list[Any]) -> StageReport:
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))
        return StageReport("scale/head")

    monkeypatch.setitem(METHODS, "scale", {"head": Method(Factor, f"{__name__}:scale_head", needs_data=False)})
    monkeypatch.setattr(f"{__name__}.scale_head", overflow)
    recipe = replace(torch_recipe(tiny_model, tmp_path), compress=(Stage("scale", "head", Factor()),))
    with pytest.raises(GateFailed, match="the gate is not passed") as caught:
        build(recipe, tmp_path / "store")
    assert "not finite" in caught.value.problems[0]


@dataclass(frozen=True)
class Factor:
    """What the head's weights are multiplied with."""

    factor: float = 1.0


def scale_head(model: torch.nn.Module, options: Factor, examples: list[Any]) -> StageReport:
    with torch.no_grad():
        model.classifier.weight.mul_(options.factor)
        model.classifier.bias.mul_(options.factor)
    return StageReport("scale/head")


def test_another_stages_bound_is_measured_after_it_and_before_the_next(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "scale", {"head": Method(Factor, f"{__name__}:scale_head", needs_data=False)})
    plain = torch_recipe(tiny_model, tmp_path, compress=[])
    kept = Stage("scale", "head", Factor(3.0), {"agreement": 0.0})
    turned = Stage("scale", "head", Factor(-1.0), {"agreement": 0.1})
    free = Stage("scale", "head", Factor(-1.0))

    def run(*stages: Stage) -> list[StageReport]:
        recipe = replace(plain, compress=stages)
        return compress(check(recipe).load(), Progress(quiet=True)).reports

    assert len(run(kept, kept)) == 2
    with pytest.raises(GateFailed, match="the gate is not passed") as caught:
        run(kept, turned, kept)
    assert "scale/head: max_drop.agreement: 1 measured, 0.1 allowed" in caught.value.problems[0]
    # Turned and turned back: right in the end, and only a bound in between would have noticed.
    assert len(run(free, replace(kept, options=Factor(-1.0)))) == 2
    with pytest.raises(GateFailed, match="the gate is not passed"):
        run(turned, free)


def test_a_stage_is_measured_where_its_bounds_or_the_recipe_ask_for_it(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "scale", {"head": Method(Factor, f"{__name__}:scale_head", needs_data=False)})
    plain = torch_recipe(tiny_model, tmp_path, compress=[])
    free = Stage("scale", "head", Factor(-1.0))
    bounded = replace(free, max_drop={"agreement": 0.1})
    asked = replace(free, measure=True)

    def run(*stages: Stage) -> tuple[list[dict[str, dict[str, float]]], list[dict[str, object]]]:
        done = compress(check(replace(plain, compress=stages)).load(), Progress(quiet=True))
        return [report.metrics for report in done.reports], done.speeds

    assert run(free, free) == ([{}, {}], [])
    (first, second), speeds = run(asked, bounded)
    assert first["before"]["agreement"] == first["original"]["agreement"] == 1.0
    assert first["after"] == second["before"] and second["after"]["agreement"] == 1.0
    assert [speed.keys() for speed in speeds] == [{"method", "before", "after"}] * 2
    # What came before was not measured: nothing is said of it.
    (first, second), (speed,) = run(free, bounded)
    assert first == {} and second.keys() == {"original", "after"} and speed.keys() == {"method", "after"}


def test_all_mistakes_at_once_and_before_any_work(tiny_model, tmp_path):
    recipe = torch_recipe(tiny_model, tmp_path)
    (tmp_path / "data.tsv").write_text("fine\t1\nbad label\t7\n\t1\n")
    recipe = replace(recipe, serve=replace(recipe.serve, max_length=4000))
    with pytest.raises(RecipeError, match="does not fit its model and data") as caught:
        pipeline.check_only(recipe, Progress(quiet=True))
    text = "\n".join(caught.value.problems)
    for piece in ("serve.max_length is 4000", "data.tsv:2: label '7'", "data.tsv:3: text is empty"):
        assert piece in text
    with pytest.raises(RecipeError, match="does not fit its model and data"):
        build(recipe, tmp_path / "store")
    assert left_in(tmp_path / "store") == []


TERMINATED = """
import os, signal, sys
from pathlib import Path
from archiver.pipeline.workspace import workspace
store = Path(sys.argv[1])
try:
    with workspace(store) as folder:
        (folder / "half").write_text("written")
        print(*sorted(path.name for path in store.rglob("*")))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except KeyboardInterrupt as stopped:  # a bare one, as Ctrl-C is
    print(repr(stopped), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


def test_the_workspace_goes_away_and_abandoned_ones_too(tmp_path):
    store = tmp_path / "store"
    (store / ".building/999999999-dead").mkdir(parents=True)
    (store / f".building/{os.getpid()}-alive").mkdir()
    # In a process of its own, since it ends itself.
    command = [sys.executable, "-c", TERMINATED, str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    during, after = done.stdout.splitlines()
    names = during.split()
    assert len(names) == 4 and {".building", f"{os.getpid()}-alive", "half"} < set(names)
    assert after == "KeyboardInterrupt() True"
    assert left_in(store) == [".building", f"{os.getpid()}-alive"]
    (store / f".building/{os.getpid()}-alive").rmdir()
    with workspace(store):
        pass
    assert left_in(store) == []


def test_progress_is_one_plain_line_a_step_when_piped():
    import io

    stream = io.StringIO()
    progress = Progress(stream)
    for _ in range(2):
        with progress.step("export"):
            pass
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("  export") and line.endswith(" s") and "\r" not in line for line in lines)
    assert list(progress.seconds) == ["export"]
    with pytest.raises(ValueError, match="boom"), progress.step("fails"):
        raise ValueError("boom")
    assert "fails" not in progress.seconds
