"""One TorchServe with an archive of each kind, built once per session from tiny models by the pipeline itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from served import BATCH, MAX_INPUTS, MAX_LENGTH, Served

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe
from handlers.tasks.encoder import EncoderHandler

_PAIRS = (("the dog runs fast", "the cat eats"), ("a dull story", "this film is very good"), ("one man", "two dogs"))
_LABELS = {"films": ["0", "1"], "pairs": ["no", "maybe", "yes"], "tags": ["funny", "dull|größe", ""]}


@pytest.fixture(scope="package", autouse=True)
def servers_end_at_once() -> Iterator[None]:
    """Frontends take two seconds to close what is open; that they do, and leave nothing, tests/torchserve looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchServe, "__exit__", lambda server, *_: server.stop(grace=0))
        yield


@pytest.fixture(scope="session")
def archives(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Served]:
    """films, pairs, tags, vectors, plain: task, method and runtime differ, so that together they cover all of them."""
    folder = tmp_path_factory.mktemp("live")
    multi = {
        "id2label": {0: "funny", 1: "dull", 2: "größe"},
        "label2id": {"funny": 0, "dull": 1, "größe": 2},
        "problem_type": "multi_label_classification",
    }
    three = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
    classify, embed = "text-classification", "feature-extraction"
    static, dynamic = [{"quantize": {"method": "static-int8"}}], [{"quantize": {"method": "dynamic-int8"}}]
    weights = [{"quantize": {"method": "weight-only", "bits": 8}}]
    slow = {"batch_size": BATCH, "max_batch_delay_ms": 100}
    small = {"num_hidden_layers": 1}
    kinds: list[tuple[str, str, Path, list[dict[str, Any]], dict[str, Any]]] = [
        ("films", classify, tiny_model("bert", classify, **small), static, {"runtime": "onnxruntime"}),
        (
            "pairs",
            classify,
            tiny_model("bert", classify, **small, **three),
            dynamic,
            {"runtime": "onnxruntime", **slow},
        ),
        ("tags", classify, tiny_model("roberta", classify, **small, **multi), dynamic, {"runtime": "openvino"}),
        ("vectors", embed, tiny_model("bert", embed, **small), weights, {"runtime": "openvino", "workers": 2}),
        ("plain", classify, tiny_model("distilbert", classify), weights, {"runtime": "torch"}),
    ]
    built = {}
    for name, task, model, compress, serve in kinds:
        data = folder / f"{name}.tsv"
        data.write_text("".join(_rows(name, sentences)), encoding="utf-8")
        columns = {"text": 0, "text_pair": 1, "label": 2} if name == "pairs" else {"text": 0, "label": 1}
        recipe = {
            "name": name,
            "task": task,
            "model": str(model),
            "data": {"train": str(data), "validation": str(data), "columns": columns},
            "compress": compress,
            "serve": {"workers": 1, "max_length": MAX_LENGTH, "max_inputs": MAX_INPUTS, **serve},
        }
        if task == embed:
            recipe["data"]["columns"] = {"text": 0}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        path = pipeline.build(load_recipe(folder / f"{name}.yaml"), folder / "store", Progress(quiet=True)).path
        built[name] = Served(name, path, _open(path, folder / "extracted" / name))
    return built


@pytest.fixture(scope="session")
def server(archives: dict[str, Served]) -> Iterator[TorchServe]:
    """A TorchServe over all archives, with the settings of `make serve` on ports of its own."""
    with TorchServe([served.path for served in archives.values()], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


def _rows(name: str, sentences: tuple[str, ...]) -> Iterator[str]:
    for index in range(12):
        label = _LABELS.get(name, ["0", "1"])
        texts = _PAIRS[index % 3] if name == "pairs" else (sentences[index % len(sentences)],)
        yield "\t".join([*texts, label[index % len(label)]]) + "\n"


def _open(path: Path, folder: Path) -> EncoderHandler:
    folder.mkdir(parents=True)
    extract(path, folder)
    handler = handler_of(folder)
    assert isinstance(handler, EncoderHandler)
    handler.open(folder, threads=1)
    return handler
