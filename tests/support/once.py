"""What several tests need and takes seconds to build: built once per test run, whichever xdist worker asks first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A folder that is filled once per test run; the workers that come later wait for it and read the same files.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: what the folder holds, unique in the whole suite; may have slashes.
        build: fills the empty folder that it is given. Nothing that it makes in memory is kept: read it from the folder.
    Returns: the folder. Tests must not change what lies in it: copy it before.
    Raises: what `build` raises; the next that asks tries again.
    """
    base = factory.getbasetemp()
    # A worker's own temporary folder lies in the one of the whole run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "once" / name
    done = folder.with_name(f"{folder.name}.done")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            done.touch()
    return folder
