"""One stock TorchServe as a child process: start, wait, inspect, stop with all its processes and files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from archiver.errors import ArchiverError
from archiver.torchserve import logs
from archiver.torchserve.client import Answer, get_rest, read_key
from archiver.torchserve.java import java_environment
from archiver.torchserve.processes import ask_to_end, children, end_processes, is_alive, session_processes
from archiver.torchserve.settings import SAFE, addresses, private_properties, read_properties, write_properties

_POLL_SECONDS = 0.05
# What would change the server behind our back, or put another `handlers` package in front of the archive's.
_NOT_INHERITED = ("TS_CONFIG_FILE", "PYTHONPATH", "LOG_LOCATION", "METRICS_LOCATION", "TS_DISABLE_TOKEN_AUTHORIZATION")


class ServerError(ArchiverError):
    """TorchServe did not start, a worker could not load its model, or the server went away."""


@dataclass(frozen=True)
class Worker:
    """One backend worker as the management API shows it. pid: of its Python process, 0 before it runs."""

    pid: int
    status: str


class TorchServe:
    """A TorchServe of its own: own session, temp folder, PID file, keys, logs and ports.

    archives: the .mar files to load; all lie in `model_store` (default: the first one's folder)
    config: the config.properties to start from (default: ./config.properties if there is one, else safe settings);
        ports and addresses are replaced by free loopback ports
    properties: given instead of `config`, these are used exactly as they stand (the fixed ports of `make serve`)
    folder: the run folder, kept after stop() when given; default: a private temporary folder, removed by stop()
    """

    def __init__(
        self,
        archives: Sequence[Path],
        *,
        model_store: Path | None = None,
        config: Path | None = None,
        properties: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        if not archives:
            raise ServerError("no archive to serve: name at least one .mar file")
        self.archives = [Path(archive).resolve() for archive in archives]
        self.model_store = (model_store or self.archives[0].parent).resolve()
        self.models = [model_name(archive) for archive in self.archives]
        if properties is None:
            config = config or Path("config.properties")
            properties = private_properties(read_properties(config) if config.is_file() else SAFE)
        self.properties = properties
        self._own_folder = folder is None
        self.folder = folder.resolve() if folder else Path(tempfile.mkdtemp(prefix="marpress-serve-"))
        self._launcher: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> TorchServe:
        """Start the server and return at once; wait_ready() waits for the workers."""
        outside = [str(archive) for archive in self.archives if archive.parent != self.model_store]
        if outside:
            raise ServerError(
                f"TorchServe loads from one folder, {self.model_store}; outside of it: {', '.join(outside)}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for stale in ("logs", "models"):
            shutil.rmtree(self.folder / stale, ignore_errors=True)
        (self.folder / "key_file.json").unlink(missing_ok=True)
        write_properties(self.properties, self.folder / "config.properties")
        (self.folder / "log4j2.xml").write_text(logs.LOG4J, encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        environment.update(java_environment(), TMPDIR=str(self.folder), TEMP=str(self.folder))
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--ts-config", str(self.folder / "config.properties"), "--model-store", str(self.model_store)]
        command += ["--log-config", str(self.folder / "log4j2.xml")]
        command += ["--models", *[archive.name for archive in self.archives]]
        with (self.folder / "console.log").open("wb") as console:
            self._launcher = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches us alone, and every process of the server can be told by it.
                start_new_session=True,
            )
        return self

    def wait_ready(self, timeout: float = 180.0) -> float:
        """Wait until every model has as many READY workers as it asks for; returns the seconds waited.

        raises ServerError at once when the server ends or a worker cannot load its model (with the worker's own
        sentence), and after `timeout` seconds
        """
        begin = time.monotonic()
        while True:
            if self._launcher is not None and self._launcher.poll() is not None:
                raise ServerError(f"TorchServe ended while it started. It said last:\n{logs.last_lines(self.folder)}")
            waiting = [name for name in self.models if not self._is_ready(name)]
            if not waiting:
                return time.monotonic() - begin
            for name in waiting:
                if logs.worker_failure(self.folder, name):
                    time.sleep(0.2)  # for the rest of a message of several lines
                    raise ServerError(f"{name}: {logs.worker_failure(self.folder, name)}")
            if time.monotonic() - begin > timeout:
                raise ServerError(
                    f"{', '.join(waiting)}: not ready after {timeout:g} s. The server said last:\n"
                    f"{logs.last_lines(self.folder)}"
                )
            time.sleep(_POLL_SECONDS)

    def terminate(self) -> None:
        """Ask the server to end, and return without waiting; stop() does the rest."""
        ask_to_end(self.processes())

    def stop(self, grace: float = 15.0) -> None:
        """End the server and every process it started; after `grace` seconds by SIGKILL. Safe to call twice."""
        end_processes(self.processes, grace)
        if self._launcher is not None:
            self._launcher.wait()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> TorchServe:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what is in it ----------------------------------------------------------------------------------------------

    @property
    def inference_url(self) -> str:
        return self.properties["inference_address"]

    @property
    def management_url(self) -> str:
        return self.properties["management_address"]

    @property
    def grpc_target(self) -> str:
        """host:port of the gRPC inference listener."""
        host, port = addresses(self.properties)["grpc_inference_port"]
        return f"{host}:{port}"

    @property
    def cacert(self) -> Path | None:
        """What a client has to trust: the configured certificate, None without TLS."""
        certificate = self.properties.get("certificate_file")
        return Path(certificate) if certificate else None

    def prediction_url(self, name: str) -> str:
        return f"{self.inference_url}/predictions/{name}"

    @property
    def key_file(self) -> Path:
        return self.folder / "key_file.json"

    @property
    def inference_key(self) -> str | None:
        """The token of the inference API, None when token authorization is off."""
        return read_key(self.key_file, "inference") if self._keys_wanted else None

    @property
    def management_key(self) -> str | None:
        return read_key(self.key_file, "management") if self._keys_wanted else None

    def workers(self, name: str) -> list[Worker]:
        """The workers of every served version of a model.

        raises ServerError when the server does not know the model, or does not answer
        """
        answer = self._manage(f"/models/{name}/all")
        if answer.status != 200:
            raise ServerError(f"{name}: the management API answered {answer.status}: {answer.text}")
        described = json.loads(answer.body)
        return [
            Worker(worker.get("pid", 0), worker["status"]) for version in described for worker in version["workers"]
        ]

    def memory_per_worker(self, name: str | None = None) -> list[int]:
        """Bytes of each worker of a model (default: the first), its child processes included.

        What several processes share counts once, divided among them (PSS); where the kernel does not tell, resident bytes.
        """
        sizes = []
        for worker in self.workers(name or self.models[0]):
            process = psutil.Process(worker.pid)
            sizes.append(sum(map(_memory, [process, *process.children(recursive=True)])))
        return sizes

    def processes(self) -> list[psutil.Process]:
        """Every living process of this server's session: launcher, frontend, workers and their children."""
        if self._launcher is None:
            return []
        for process in session_processes(self._launcher.pid):
            # A child may leave the session and outlive its parent: remembered from when it was seen below it.
            for member in (process, *children(process)):
                self._seen[member.pid] = member
        return [process for process in self._seen.values() if is_alive(process)]

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _keys_wanted(self) -> bool:
        return self.properties.get("disable_token_authorization", "false").lower() != "true"

    def _manage(self, path: str) -> Answer:
        return get_rest(self.management_url + path, token=self.management_key, cacert=self.cacert, timeout=10)

    def _is_ready(self, name: str) -> bool:
        if self._keys_wanted and not self.key_file.exists():
            return False
        try:
            answer = self._manage(f"/models/{name}/all")
        except (OSError, ArchiverError):
            return False  # not listening yet, or the key file is half written; wait_ready bounds the time
        if answer.status == 404:
            raise ServerError(f"{name}: TorchServe refused the archive. It said last:\n{logs.last_lines(self.folder)}")
        if answer.status != 200:
            return False
        return all(
            sum(worker["status"] == "READY" for worker in version["workers"]) >= max(1, version["minWorkers"])
            for version in json.loads(answer.body)
        )


def model_name(archive: Path) -> str:
    """The name under which TorchServe serves an archive.

    raises ServerError when the file is missing or no archive
    """
    if not archive.is_file():
        raise ServerError(f"{archive}: no such file; build it first, or name another .mar")
    try:
        with zipfile.ZipFile(archive) as contents:
            return str(json.loads(contents.read("MAR-INF/MANIFEST.json"))["model"]["modelName"])
    except (zipfile.BadZipFile, KeyError, ValueError) as broken:
        raise ServerError(f"{archive}: not a TorchServe archive ({broken}); build it again") from broken


def _memory(process: psutil.Process) -> int:
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return int(process.memory_info().rss)
