"""The archive of a tiny language model, for a real TorchServe: a chat template, two adapters, int8 on OpenVINO."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import yaml
from lora import write_lora
from task_models import load_model

from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe

NAME = "writer"
ADAPTERS = ("first", "second")
ROOM = 1024


def build_writer(folder: Path, llama: Path, sentences: tuple[str, ...]) -> Path:
    """llama: a tiny model without an end token that takes ROOM tokens."""
    model = folder / "model"
    shutil.copytree(llama, model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {{ m.content }} .{% endfor %}")
    (folder / "text.txt").write_text("\n".join(sentences) * 4)
    for seed, name in enumerate(ADAPTERS):
        write_lora(folder / name, load_model(model, "text-generation"), seed=seed)
    recipe = {
        "name": NAME,
        "task": "text-generation",
        "model": str(model),
        "data": {"validation": "text.txt", "context": 16},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"max_length": ROOM, "max_inputs": 8, "batch_size": 16, "runtime": "openvino"}
        | {"adapters": {name: name for name in ADAPTERS}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return pipeline.build(load_recipe(folder / "recipe.yaml"), folder / "store", Progress(quiet=True)).path


def worker_pids(server: TorchServe) -> set[int]:
    """The process that serves, which the worker's other one has forked."""
    (worker,) = server.workers(NAME)
    return {process.pid for process in psutil.Process(worker.pid).children()}
