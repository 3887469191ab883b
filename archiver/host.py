"""The machine that a measurement was taken on: processor, cores and instruction sets, no host name."""

import ctypes
import gc
import mmap
import os
import platform
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from handlers.cpu import container_cores, host_isa

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


def describe_host(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores of the container, and the instruction sets that fast kernels look for.

    Args:
        device: what an archive computes on; for "cuda" the GPU is named too, as torch knows it.
    """
    found = {"processor": _processor(), "cores": container_cores(), "isa": host_isa(), "system": platform.system()}
    return found if device == "cpu" else {**found, "gpu": _gpu()}


def peak_memory() -> int | None:
    """Bytes: the most memory that this process has had resident, mapped files included; None where the host does not tell.

    Not getrusage's ru_maxrss, which begins with what the parent process had.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def give_back_memory() -> None:
    """Hand what this process has freed back to the host, where the C library keeps it (glibc): a heap of gigabytes else."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, what is freed of blocks beyond a megabyte goes back to the host at once (glibc), which takes time.

    Else the C library keeps up to all that was freed of blocks below 32 MB: half a gigabyte after reading a large model.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        # The most that both come to by themselves; set once, they stay.
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


def map_file(path: Path) -> np.ndarray:
    """A file's bytes [n] uint8, in memory as far as they were looked at since the last `drop_mapped`.

    What is written into them stays in this process, until then.
    """
    mapped = np.memmap(path, np.uint8, "c")
    _mapped.add(mapped._mmap)  # type: ignore[attr-defined]  # the array keeps it alive, as its base
    return mapped


def unnamed_file(size: int, folder: Path) -> np.ndarray:
    """Bytes [size] uint8 that lie in a file without a name: whatever end this process finds, nothing is left behind.

    They are in memory as far as they were looked at or written since the last `drop_mapped`, which loses nothing of them.

    Raises: OSError where the folder has no such room: it is taken before anything is written, since a write to a mapped
        file on a full disk would end the process.
    """
    handle, name = tempfile.mkstemp(dir=folder, prefix="marpress-")
    try:
        os.posix_fallocate(handle, 0, size)
        mapped = np.memmap(name, np.uint8, "r+", shape=(size,))
    finally:
        os.close(handle)
        os.unlink(name)
    _mapped.add(mapped._mmap)  # type: ignore[attr-defined]
    return mapped


def drop_mapped() -> None:
    """The pages of mapped files leave this process's memory; they are read again where they are looked at again."""
    for one in list(_mapped):
        one.madvise(mmap.MADV_DONTNEED)


_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "a GPU that torch does not see"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
