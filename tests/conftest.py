"""Fixtures: the shared real data where it is present, and tiny models built from a config and a seed."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from once import once
from places import ROOT
from tiny_models import SENTENCES, build_tiny_model
from warm_worker import WARM

from archiver.packaging import verify

# Tiny models: threads that wait for each other at every operation are slower than one, and on a busy machine far slower.
os.environ.setdefault("MARPRESS_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A TorchServe of a test answers some hundred requests: the compiler for code that runs for hours would never pay.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
# What workers compile is kept where a test asks for it, not in the folder of temporary files.
os.environ.setdefault("MARPRESS_CACHE", "")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, where the files of tests/live that share one TorchServe are one file."""
    from xdist.scheduler import LoadFileScheduling

    class LiveTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return str(Path(file).parent) if _shares_a_server(file) else file

    return LiveTogether(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with files that take minutes come first: none is left to one worker while the others have nothing to do."""
    items.sort(key=lambda item: item.path.relative_to(ROOT / "tests").parts[0] not in _LONG)


_LONG = ("live", "bench", "pipeline", "torchserve", "export", "runtimes", "storage", "tasks", "test_readme.py")


@cache
def _shares_a_server(file: str) -> bool:
    """Whether a file below tests/live starts no TorchServe of its own: then it uses its folder's."""
    return "live" in Path(file).parts and "with TorchServe(" not in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def modules_out_of_the_collectors_way() -> None:
    """What imports leave lives as long as this process: looked through at every collection, it takes half a second each.

    A build collects a dozen times. What a test itself makes is collected as ever.
    """
    if len(sys.modules) > 1.05 * _FROZEN[0]:
        gc.collect()
        gc.freeze()
        # An export makes half a million objects that nothing can free before it ends.
        gc.set_threshold(10_000, 20, 20)
        _FROZEN[0] = len(sys.modules)


_FROZEN = [0]  # modules that were there when their objects were last set aside


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> Iterator[None]:
    """Torch is imported once for all archives that are verified in this process, not once for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", WARM)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data: $MARPRESS_SHARED, or ../shared beside the repository."""
    path = Path(os.environ.get("MARPRESS_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip("the shared folder of real models and data is absent (MARPRESS_SHARED, or ../shared)")
    return path


@pytest.fixture(scope="session")
def sentences() -> tuple[str, ...]:
    """English sentences whose words the tiny models' tokenizers know."""
    return SENTENCES


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """A folder with what the contract's recipe names: minilm-sst2/ (empty) and sst2/train.tsv, dev.tsv, texts.txt."""
    (tmp_path / "minilm-sst2").mkdir()
    (tmp_path / "sst2").mkdir()
    for name in ("train.tsv", "dev.tsv", "texts.txt"):
        (tmp_path / "sst2" / name).write_text("a fine film\t1\n")
    return tmp_path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory `tiny_model(kind, task, **config)` -> model directory; the same arguments give the same directory.

    kind: bert, roberta, xlm-roberta, camembert, distilbert or electra; config: overrides of its transformers config
    """

    def build(kind: str = "bert", task: str = "text-classification", **config: object) -> Path:
        key = hashlib.sha256(f"{task} {sorted(config.items())}".encode()).hexdigest()[:12]
        return once(tmp_path_factory, f"tiny/{kind}-{key}", lambda path: build_tiny_model(path, kind, task, **config))

    return build
