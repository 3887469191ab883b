"""`make serve` and `make stop`: one server at the fixed ports of config.properties, in the run folder .torchserve/.

python -m archiver.torchserve.serve start [--model-store DIR] [--config FILE] [--folder DIR]
python -m archiver.torchserve.serve stop [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from archiver.errors import ArchiverError
from archiver.torchserve.client import predict_rest
from archiver.torchserve.processes import end_processes, is_frontend, session_of, session_processes
from archiver.torchserve.server import ServerError, TorchServe
from archiver.torchserve.settings import SAFE, fixed_properties, read_properties, taken
from handlers.manifest import MANIFEST

FOLDER = Path(".torchserve")
_LIMIT = "max_request_size"
_LONGEST = 2000  # characters of a body that stands in the curl line itself
_READ_KEY = """sed -n '/"inference"/,/}/s/.*"key": "\\(.*\\)".*/\\1/p'"""


class NothingToDo(ArchiverError):
    """The server is already there (start), or the model store is empty or missing."""

    exit_code = 2


def start(model_store: Path, config: Path, folder: Path, timeout: float = 300.0) -> None:
    """Start a server that keeps running, wait until it answers a real request per model, and print how to reach it.

    model_store: its *.mar files are all loaded; config: used with the ports it names; folder: logs, keys and the PID
    file
    raises NothingToDo (exit code 2) when it already runs, a port is taken or there is nothing to serve; ServerError
    when it does not come up (it is then stopped again)
    """
    running = frontend(folder)
    if running:
        raise NothingToDo(f"TorchServe is already running from {folder} (PID {running.pid}); `make stop` stops it")
    archives = sorted(model_store.glob("*.mar"))
    if not archives:
        raise NothingToDo(f"{model_store}: no .mar file to serve; `make archive` builds one")
    if not config.is_file():
        raise NothingToDo(f"{config}: no such file; name a config.properties with --config")
    properties = fixed_properties({**SAFE, **read_properties(config)})
    properties |= smaller_bodies(archives, properties)
    busy = taken(properties)
    if busy:
        raise NothingToDo(f"another process listens on {', '.join(busy)}; stop it, or change the address in {config}")
    server = TorchServe(archives, model_store=model_store, properties=properties, folder=folder)
    try:
        seconds = server.start().wait_ready(timeout)
        print(f"ready in {seconds:.1f} s: {', '.join(server.models)}")
        for archive, model in zip(server.archives, server.models, strict=True):
            _ask(server, archive, model)
    except BaseException:
        server.stop()
        raise
    _tell(server, folder)


def stop(folder: Path, grace: float = 30.0) -> bool:
    """Stop the server that was started from this run folder, its workers included; False when none runs."""
    running = frontend(folder)
    if running is None:
        return False
    session = session_of(running)
    end_processes(lambda: session_processes(session), grace)
    for left in (".model_server.pid", "key_file.json"):
        (folder / left).unlink(missing_ok=True)
    return True


def frontend(folder: Path) -> psutil.Process | None:
    """The Java process that TorchServe's PID file in `folder` names, if it is one that was started from there."""
    try:
        process = psutil.Process(int((folder / ".model_server.pid").read_text(encoding="utf-8")))
        command = process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    # PIDs are used again: only a TorchServe whose temp folder is this one is ours.
    ours = is_frontend(process) and f"-Djava.io.tmpdir={folder.resolve()}" in command
    return process if ours else None


def example_body(archive: Path) -> bytes | None:
    """A request that the archive itself brings (examples.json), None where it has none."""
    with zipfile.ZipFile(archive) as contents:
        if "examples.json" not in contents.namelist():
            return None
        example = json.loads(contents.read("examples.json"))[0]
    request: dict[str, Any] = {"inputs": example["input"]}
    if example.get("parameters"):
        request["parameters"] = example["parameters"]
    return json.dumps(request, ensure_ascii=False).encode()


def smaller_bodies(archives: Sequence[Path], properties: Mapping[str, str]) -> dict[str, str]:
    """What the frontend holds in memory of one request, by what the archives take; never more than was set.

    Twice the most that any of them takes: their own 413, which tells the numbers, is not to be cut short.

    Args:
        properties: as config.properties has them.
    Returns: max_request_size in bytes, or nothing where an archive does not say what it takes, or takes as much as was set.
    """
    taken_by = [_max_body(archive) for archive in archives]
    limit = 2 * max((size for size in taken_by if size is not None), default=0)
    allowed = properties.get(_LIMIT, "6553500")  # TorchServe's default
    lower = allowed.isdecimal() and None not in taken_by and limit < int(allowed)
    return {_LIMIT: str(limit)} if lower else {}


def _max_body(archive: Path) -> int | None:
    """Bytes of the largest body that an archive takes; None where it does not say, as those from elsewhere."""
    try:
        with zipfile.ZipFile(archive) as contents:
            found = json.loads(contents.read(MANIFEST))["max_body_bytes"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, int) else None


def _ask(server: TorchServe, archive: Path, model: str) -> None:
    body = example_body(archive)
    if body is None:
        print(f"{model}: the archive holds no example, so nothing was asked")
        return
    url = server.prediction_url(model)
    answer = predict_rest(url, body, token=server.inference_key, cacert=server.cacert)
    if not answer.ok:
        raise ServerError(f"{model}: {_shown(body.decode(), 1000)} was answered {answer.status}: {answer.text[:500]}")
    print(f"{model}: {_shown(body.decode(), 1000)} → {_shown(answer.text, 200)}")


def _tell(server: TorchServe, folder: Path) -> None:
    print(f"inference  {server.inference_url}   gRPC {server.grpc_target}")
    print(f"management {server.management_url}")
    print(f"logs       {folder / 'logs'}")
    header = ""
    if server.inference_key:
        print(f'key        {folder / "key_file.json"} (the one under "inference")')
        # Read when it is typed, so that no token lies in a terminal's history.
        header = f' -H "Authorization: Bearer $({_READ_KEY} {shlex.quote(str(folder / "key_file.json"))})"'
    for archive, model in zip(server.archives, server.models, strict=True):
        body = (example_body(archive) or b'{"inputs": "a fine film"}').decode()
        if len(body) > _LONGEST:  # an image or a recording: no terminal takes that
            (folder / f"{model}.json").write_text(body, encoding="utf-8")
            body = f"@{folder / f'{model}.json'}"
        trust = f" --cacert {shlex.quote(str(server.cacert))}" if server.cacert else ""
        print(
            f"try        curl -s{trust}{header} -H 'Content-Type: application/json' "
            f"-d {shlex.quote(body)} {server.prediction_url(model)}"
        )


def _shown(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " …"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m archiver.torchserve.serve", description=(__doc__ or "").split("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("start", help="start the server, wait until it answers")
    starting.add_argument("--model-store", type=Path, default=Path("model_store"))
    starting.add_argument("--config", type=Path, default=Path("config.properties"))
    stopping = verbs.add_parser("stop", help="stop that server and no other")
    for verb in (starting, stopping):
        verb.add_argument("--folder", type=Path, default=FOLDER, help="run folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "start":
            start(given.model_store, given.config, given.folder)
        else:
            print("TorchServe has stopped" if stop(given.folder) else f"no TorchServe runs from {given.folder}")
    except ArchiverError as failed:
        print(failed, file=sys.stderr)
        return failed.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
