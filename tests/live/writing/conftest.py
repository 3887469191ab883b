"""One TorchServe with a tiny language model, for all that is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_writer import ROOM, build_writer
from places import ROOT

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.torchserve.server import TorchServe
from handlers.tasks.text.generation import TextGenerationHandler


@pytest.fixture(scope="package")
def archive(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    llama = tiny_model("llama", "text-generation", max_position_embeddings=ROOM, eos_token_id=None)
    return build_writer(tmp_path_factory.mktemp("generation"), llama, sentences)


@pytest.fixture(scope="package")
def writer(archive: Path) -> Iterator[TorchServe]:
    with TorchServe([archive], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="package")
def handler(archive: Path) -> Iterator[TextGenerationHandler]:
    """The archive's handler in this process, which says what is right."""
    with extracted(archive) as (folder, _):
        found: Any = handler_of(folder)
        found.open(folder, threads=1)
        yield found
        found.engine.close()
