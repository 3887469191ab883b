"""A text-generation handler over a tiny llama on torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generating import SERVING, TASK
from task_models import load_model

from archiver.export.torch_packed import export_packed
from archiver.packaging.entry import make_handler
from handlers.inputs.text import Encoder, Text
from handlers.tasks.text.generation import TextGenerationHandler


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory) -> Path:
    """An archive's model files."""
    folder = tmp_path_factory.mktemp("exported")
    source = tiny_model("llama", TASK)
    export_packed(load_model(source, TASK), None, folder)
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def make(exported) -> Iterator[Callable[..., TextGenerationHandler]]:
    made: list[TextGenerationHandler] = []

    def build(**serving: Any) -> TextGenerationHandler:
        handler: Any = make_handler(
            "handlers.tasks.text.generation:TextGenerationHandler", "handlers.runtimes.torch_generation:TorchBackend"
        )
        handler.serving = SERVING | serving
        handler.input = Text(Encoder(exported / "tokenizer.json", max_length=32, pad_id=1))
        handler.load(exported, threads=1)
        made.append(handler)
        return handler

    yield build
    for handler in made:
        handler.engine.close()


@pytest.fixture
def handler(make) -> TextGenerationHandler:
    return make()
