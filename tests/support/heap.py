"""How many objects of a class live in TorchServe's frontend: the only way to see whether it forgets the jobs it answered.

Speaks the attach protocol of HotSpot (AttachListener): SIGQUIT makes the VM open a socket that takes jcmd's commands. The
histogram is taken after a collection, so what nobody holds is not counted.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path


def instances(pid: int, ending: str) -> int:
    """Live objects whose class name ends with `ending`."""
    lines = [line.split() for line in _command(pid, "GC.class_histogram").splitlines()]
    return sum(int(line[1]) for line in lines if len(line) >= 4 and line[3].endswith(ending))


def _command(pid: int, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(30)
        channel.connect(str(_socket(pid)))
        channel.sendall(b"".join(part.encode() + b"\0" for part in ("1", "jcmd", command, "", "")))
        parts = []
        while part := channel.recv(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


def _socket(pid: int) -> Path:
    found = Path(f"/tmp/.java_pid{pid}")
    if found.exists():
        return found
    ask = Path(f"/proc/{pid}/cwd/.attach_pid{pid}")
    ask.touch()
    try:
        os.kill(pid, signal.SIGQUIT)
        until = time.monotonic() + 10
        while not found.exists():
            assert time.monotonic() < until, "the Java VM opened no attach socket"
            time.sleep(0.05)
    finally:
        ask.unlink(missing_ok=True)
    return found
