"""The processes of one TorchServe: the session they share, which of them is the frontend, and how they are ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

import psutil


def session_processes(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and is_alive(process):
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is not ours
    return found


def session_of(process: psutil.Process) -> int:
    return os.getsid(process.pid)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_frontend(process: psutil.Process) -> bool:
    """Whether this is the Java process of a TorchServe."""
    try:
        return "org.pytorch.serve.ModelServer" in process.cmdline()
    except psutil.Error:
        return False


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def ask_to_end(processes: Iterable[psutil.Process]) -> None:
    """SIGTERM for the frontend alone: it ends its workers itself, and would restart any that ended before it.
    Where it is gone (or did not come up yet), for all that is left."""
    processes = list(processes)
    frontends = [process for process in processes if is_frontend(process)]
    for process in frontends or processes:
        _signal(process, signal.SIGTERM)


def end_processes(find: Callable[[], list[psutil.Process]], grace: float) -> None:
    """End all that `find` finds, and wait until they are gone; by SIGKILL what is left after `grace` seconds."""
    found = find()
    ask_to_end(found)
    psutil.wait_procs(found, timeout=grace)
    # Asked again: the frontend may have started a worker while it was told to end.
    left = find()
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)


def _signal(process: psutil.Process, which: signal.Signals) -> None:
    try:
        process.send_signal(which)
    except psutil.NoSuchProcess:
        return  # it ended first, which is what was wanted
