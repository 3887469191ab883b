"""A task, and a runtime, added as a contributor adds them: one file in each package and one row.

The files lie in tests/support/additions where they would lie in the project, and are found there while these tests run.
"""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from built import quantize, recipe_of, write_recipe
from live_client import Rest
from places import ROOT
from served import Served

import archiver
from archiver import RecipeError, UnsupportedModelError, cli
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.progress import Progress
from archiver.runtimes import RUNTIMES, Runtime, Way
from archiver.tasks import FORWARD, TASKS
from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput
from handlers.tasks.encoder import EncoderHandler

ADDITIONS = ROOT / "tests" / "support" / "additions"
TASK_FILES = ("archiver.tasks.text.scores", "handlers.tasks.text.scores")
RUNTIME_FILES = ("archiver.runtimes.onnx_reference", "handlers.runtimes.onnx_reference")
TEXTS = ["this film is very good", "dull", "the man plays music, not one dog sings in the warm scene!"]
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(num_hidden_layers=1, **LABELS)


@pytest.fixture(scope="module")
def task() -> Iterator[str]:
    """text-scores, with its row in TASKS."""
    with pytest.MonkeyPatch.context() as patch, _in_place(TASK_FILES):
        scores = importlib.import_module(TASK_FILES[0])
        patch.setitem(TASKS, "text-scores", scores.TextScores())
        yield "text-scores"


@pytest.fixture(scope="module")
def runtime() -> Iterator[str]:
    """onnx-reference, with its row in RUNTIMES."""
    with pytest.MonkeyPatch.context() as patch, _in_place(RUNTIME_FILES):
        row = Runtime(
            name="onnx-reference",
            devices=("cpu",),
            ways={
                FORWARD: Way(
                    session="handlers.runtimes.onnx_reference:OnnxReferenceSession",
                    export="archiver.runtimes.onnx_reference:export",
                    packages=("onnx",),
                    built_with=("onnx", "onnxscript"),
                )
            },
            automatic=False,
        )
        patch.setitem(RUNTIMES, "onnx-reference", row)
        yield "onnx-reference"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("additions")


@pytest.fixture(scope="module")
def scores(task: str, model: Path, folder: Path) -> Served:
    """The added task, on ONNX Runtime."""
    return _built(folder, model, "scores", task=task, runtime="onnxruntime")


@pytest.fixture(scope="module")
def reference(runtime: str, model: Path, folder: Path) -> Served:
    """The added runtime, for text-classification."""
    return _built(folder, model, "reference", task="text-classification", runtime=runtime)


@pytest.fixture(scope="module")
def rest(scores: Served, reference: Served) -> Iterator[Rest]:
    """A client of one TorchServe with both archives."""
    with TorchServe([scores.path, reference.path], config=ROOT / "config.properties") as server:
        server.wait_ready(120)
        with Rest(server) as client:
            yield client


def test_a_task_is_one_file_in_each_package_and_one_row(scores: Served, rest: Rest, model: Path) -> None:
    assert archiver.verify(scores.path) == []
    names = _names(scores.path)
    assert {"handlers/tasks/text/scores.py", "handlers/tasks/encoder.py"} <= names
    assert not [name for name in names if name.startswith("archiver") or "feature_extraction" in name]

    reply = rest.post("scores", {"inputs": TEXTS})
    assert reply.status == 200, reply.body
    assert reply.value == [pytest.approx(answer, abs=1e-4) for answer in _probabilities(model)]
    assert _differences(scores, reply.value) <= scores.tolerance
    assert rest.post("scores", {"inputs": TEXTS[0]}).value == pytest.approx(reply.value[0], abs=1e-4)
    refused = rest.post("scores", {"inputs": TEXTS, "parameters": {"top_k": 2}})
    assert refused.status == 400 and "top_k" in refused.message


def test_the_command_line_knows_the_task(
    scores: Served, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert cli.main(["init", str(model), "--task", "text-scores", "--output", str(recipe)]) == 0
    text = recipe.read_text()
    assert "# labels: no, maybe, yes\n" in text and "\ntask: text-scores\n" in text
    (tmp_path / "dev.txt").write_text("good\n")
    recipe.write_text(re.sub(r"^# (?=data:|gate:|  )", "", text, flags=re.MULTILINE))
    gate = archiver.load_recipe(recipe).gate
    assert gate is not None and gate.max_drop == {"overlap": 0.01}
    assert cli.main(["build", str(recipe), "--check"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(scores.path)]) == 0
    said = capsys.readouterr().out
    assert "text-scores · runs on onnxruntime" in said
    assert re.search(r"overlap +1\.0000 +1\.0000", said)


def test_what_the_task_declares_is_checked(task: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model(num_labels=1)
    with pytest.raises(RecipeError, match="scores each label by itself, .*: use text-classification"):
        archiver.check(recipe_of(tmp_path, model, task=task))


def test_a_runtime_is_one_file_in_each_package_and_one_row(
    reference: Served, scores: Served, rest: Rest, model: Path
) -> None:
    assert archiver.verify(reference.path) == []
    names = _names(reference.path)
    assert {"handlers/runtimes/onnx_reference.py", "model.onnx"} <= names
    assert not {"handlers/runtimes/onnxruntime.py", "handlers/runtimes/openvino.py"} & names
    packages = [re.split("[<>=]", line)[0] for line in _text(reference.path, "requirements.txt").splitlines()]
    assert "onnx" in packages and "onnxruntime" not in packages

    every = {"inputs": TEXTS, "parameters": {"top_k": 3}}
    reply = rest.post("reference", every)
    assert reply.status == 200, reply.body
    found = [{item["label"]: item["score"] for item in answer} for answer in reply.value]
    assert found == [pytest.approx(answer, abs=1e-4) for answer in _probabilities(model)]
    assert _differences(reference, reply.value, {"top_k": 3}) <= reference.tolerance
    on_onnxruntime = rest.post("scores", {"inputs": TEXTS}).value
    assert found == [pytest.approx(answer, abs=1e-4) for answer in on_onnxruntime]


def test_a_quantized_model_is_refused_by_the_runtime(runtime: str, model: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, model, compress=quantize("weight-only", bits=8), serve={"runtime": runtime})
    with pytest.raises(UnsupportedModelError, match="^onnx-reference computes in fp32: remove the quantize stage"):
        archiver.build(recipe, tmp_path, Progress(quiet=True))
    assert not list(tmp_path.glob("*.mar"))


_MISTAKES = {
    "unknown task": ({"task": "score"}, "unknown task 'score'.* allowed: text-classification, .*, text-scores$"),
    "unknown runtime": (
        {"serve": {"runtime": "onnx"}},
        "serve.runtime must be one of auto, openvino, .*, onnx-reference; found 'onnx'",
    ),
    "another device": (
        {"serve": {"runtime": "onnx-reference", "device": "cuda"}},
        "serve.device cuda cannot be run by onnx-reference: use onnxruntime, .* or auto, or device cpu",
    ),
    "another execution": (
        {"task": "text-generation", "serve": {"runtime": "onnx-reference"}},
        "text-generation is not served with onnx-reference: use (?!.*onnx-reference)auto, openvino",
    ),
    "another metric": (
        {"task": "text-scores", "gate": {"min": {"f1": 0.5}}},
        "gate.min: unknown metric 'f1' for this task; allowed: overlap, agreement$",
    ),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_what_a_recipe_may_say_follows_from_the_rows(
    task: str, runtime: str, model: Path, tmp_path: Path, mistake: str
) -> None:
    changed, said = _MISTAKES[mistake]
    with pytest.raises(RecipeError, match=f"(?m){said}"):
        archiver.load_recipe(write_recipe(tmp_path, model, **changed))


@contextmanager
def _in_place(modules: tuple[str, ...]) -> Iterator[None]:
    """Let the packages of these modules hold what lies in the same folder of `ADDITIONS`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            package = importlib.import_module(module.rpartition(".")[0])
            folder = ADDITIONS.joinpath(*package.__name__.split("."))
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        try:
            yield
        finally:
            for module in modules:
                sys.modules.pop(module, None)


def _built(folder: Path, model: Path, name: str, *, task: str, runtime: str) -> Served:
    """An archive of the model as it is, and its handler in this process."""
    recipe = recipe_of(folder / name, model, name=name, task=task, serve={"runtime": runtime, "workers": 1})
    path = archiver.build(recipe, folder / "store", Progress(quiet=True)).path
    (folder / name / "extracted").mkdir()
    extract(path, folder / name / "extracted")
    handler = handler_of(folder / name / "extracted")
    assert isinstance(handler, EncoderHandler)
    handler.open(folder / name / "extracted", threads=1)
    return Served(name, path, handler)


def _probabilities(model: Path) -> list[dict[str, float]]:
    """What transformers says of `TEXTS`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        rows = [loaded(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist() for text in TEXTS]
    return [dict(zip(LABELS["label2id"], row, strict=True)) for row in rows]


def _differences(served: Served, answers: list[Any], parameters: Mapping[str, Any] | None = None) -> float:
    """How far answers to `TEXTS` are from those given in this process."""
    here = served.handler.respond([TextInput(text) for text in TEXTS], parameters)
    return max(served.handler.compare(*pair) for pair in zip(here, answers, strict=True))


def _names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def _text(path: Path, name: str) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode()
