"""Where a build works: a private folder beside the archives, gone at the end however the build ends."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def workspace(model_store: Path) -> Iterator[Path]:
    """A private folder on the model store's own disk, so that the finished archive moves in with one rename.

    It goes away at the end, also on Ctrl-C and SIGTERM; what a SIGKILL left is cleared by the next build.
    """
    model_store.mkdir(parents=True, exist_ok=True)
    hidden = model_store / ".building"
    hidden.mkdir(exist_ok=True)
    _clear_abandoned(hidden)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=hidden))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread: signals are its caller's business
        previous = None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(hidden.iterdir()):
            hidden.rmdir()
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _clear_abandoned(hidden: Path) -> None:
    """Remove the folders of builds whose process is gone."""
    for folder in hidden.iterdir():
        owner = folder.name.partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
