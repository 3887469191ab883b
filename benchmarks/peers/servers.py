"""Starting a server for a benchmark, asking it, and ending it with all its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from archiver.bench.load import Load, generate
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import addresses
from benchmarks.table import ROOT

PLACE = Path(".bench-peers")  # of the peers' environments, in the current directory
READY_SECONDS = 180.0


class Unstarted(Exception):
    """A server that does not answer; with what it said last."""


@dataclass(frozen=True)
class Running:
    """A server.

    Args:
        path: behind /predictions/. body: a text → what is sent for it, as JSON.
        pids: its processes. ended: whether it has ended by itself, and what it said last.
    """

    host: str
    port: int
    path: str
    body: Callable[[str], object]
    pids: Callable[[], Sequence[int]]
    token: str | None = None
    ended: Callable[[], str | None] = lambda: None

    def bodies(self, texts: Sequence[str]) -> list[bytes]:
        return [json.dumps(self.body(text)).encode() for text in texts]

    def wait(self, body: bytes) -> None:
        """Until it answers. Raises: Unstarted."""
        until, refused = time.monotonic() + READY_SECONDS, ""
        while time.monotonic() < until:
            if (said := self.ended()) is not None:
                raise Unstarted(said)
            first = Load("rest", self.host, self.port, self.path, [body], token=self.token, seconds=0.1, warmup=0.0)
            with suppress(Exception):  # it does not listen yet
                found = generate(first)
                if found.count and not found.errors:
                    return
                refused = f"; what came were {found.errors}" if found.errors else ""
            time.sleep(0.1)
        raise Unstarted(f"no answer within {READY_SECONDS:.0f} s{refused}")


@contextmanager
def torchserve(archive: Path, path: str, body: Callable[[str], object]) -> Iterator[Running]:
    """Of TorchServe's processes the worker's count."""
    with TorchServe([archive], config=ROOT / "config.properties") as server:
        server.wait_ready(READY_SECONDS)
        host, port = addresses(server.properties)["inference_address"]

        def pids() -> list[int]:
            return [pid for worker in server.workers(server.models[0]) for pid in tree(worker.pid)]

        yield Running(host, port, path, body, pids, server.inference_key)


@contextmanager
def process(
    command: Sequence[str], place: Path, path: str, body: Callable[[str], object], surroundings: Mapping[str, str]
) -> Iterator[Running]:
    """A program in a process group of its own, in the folder `place`; "{port}" in its command becomes a free one."""
    port = free_port()
    log = place / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            cwd=place,
            env={**os.environ, **surroundings},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

        def ended() -> str | None:
            if process.poll() is None:
                return None
            lines = log.read_text(errors="replace").strip().splitlines()
            return f"it ended with {process.returncode}: {lines[-1] if lines else 'without a word'}"

        try:
            yield Running("127.0.0.1", port, path, body, lambda: tree(process.pid), ended=ended)
        finally:
            with suppress(psutil.NoSuchProcess):
                for pid in tree(process.pid)[::-1]:  # some start sessions of their own
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()


def environment(name: str, packages: Sequence[str]) -> Path:
    """The Python of a peer's own environment, made when it is not there. packages: with their versions."""
    python = (PLACE / name / "bin" / "python").absolute()
    whole = python.with_name(".installed")
    if not whole.exists():
        print(f"installing {', '.join(packages)} into {PLACE / name}", file=sys.stderr, flush=True)
        venv.create(PLACE / name, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        whole.touch()
    return python


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    parent = psutil.Process(pid)
    return [pid, *(child.pid for child in parent.children(recursive=True))]
