"""verify: whether an archive is complete and unchanged, and answers as it did when it was built.

Every digest; no pickle; then, in a process that sees the archive and not this repository, the handler is loaded and the
stored examples are answered.
"""

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from archiver.errors import PackagingError
from archiver.packaging.mar import extracted
from handlers.errors import UnsoundArchive
from handlers.manifest import ENTRY, TORCHSERVE_MANIFEST, find_damage, read_manifest, timings_damage

_LOAD_SECONDS = 300
_PICKLE_NAMES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".pyc", ".so")

# Runs with -P and -s: neither the current folder nor the user's packages are looked at. `sys.path[0]` is the archive.
_PROBE = """
import sys, types
sys.path.insert(0, sys.argv[1])
import importlib
from pathlib import Path
module = importlib.import_module(sys.argv[2])
handler = module.Handler()
from handlers.cpu import container_cores
try:
    handler.open(Path(sys.argv[1]), threads=container_cores(), **({"only": sys.argv[3]} if sys.argv[3:] else {}))
except RuntimeError as error:
    print(error)
    sys.exit(3)
loaded = Path(sys.modules["handlers"].__file__).resolve()
if Path(sys.argv[1]).resolve() not in loaded.parents:
    print(f"the handler came from {loaded.name} outside the archive")
    sys.exit(3)
status = Path("/proc/self/status")
peak = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")] if status.exists() else []
print("peak", *peak)
"""


@dataclass(frozen=True)
class Verified:
    """What was found of an archive's files.

    Args:
        problems: one sentence each. worker_bytes: the most memory that a worker which opened them and answered the examples
            had resident; None where nothing was opened, or the host does not tell.
    """

    problems: list[str]
    worker_bytes: int | None = None


def verify(mar: Path) -> list[str]:
    """Everything that is wrong with the archive, one sentence each; empty when it is sound.

    FileNotFoundError or PermissionError when it cannot be read at all.
    """
    with mar.open("rb"):
        pass
    try:
        with extracted(mar) as (folder, names):
            return verify_folder(folder, names).problems
    except PackagingError as error:
        return [error.message, *error.problems]


def verify_folder(folder: Path, names: list[str]) -> Verified:
    """The same for an archive's extracted files, `names` below `folder`, and the memory that a worker takes for them."""
    try:
        manifest = read_manifest(folder)
    except UnsoundArchive as error:
        return Verified([str(error)])
    problems = find_damage(folder, manifest, names) + timings_damage(folder) + _pickles(folder, names)
    problems += _entry_problems(folder)
    if problems:
        return Verified(problems)
    several = [one["runtime"] for one in manifest.get("runtimes", ())]
    if not several:
        return _load(folder)
    loaded = {name: _load(folder, name) for name in several}
    found = [f"runtime {name}: {problem}" for name, one in loaded.items() for problem in one.problems]
    peaks = [one.worker_bytes for one in loaded.values() if one.worker_bytes is not None]
    return Verified(found, max(peaks, default=None))


def _pickles(folder: Path, names: list[str]) -> list[str]:
    """Files that are, or would be loaded through, a pickle or machine code: by name and by their first bytes."""
    found = []
    for name in names:
        with (folder / name).open("rb") as stream:
            head = stream.read(4)
        if name.lower().endswith(_PICKLE_NAMES):
            found.append(f"{name}: this kind of file can hold a pickle or machine code, which no archive may carry")
        elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not name.endswith(".bin"):
            found.append(f"{name}: begins like a pickle, which no archive may carry")
        elif head == b"PK\x03\x04":
            found.append(f"{name}: a zip inside the archive (torch.save writes pickles so), which none may carry")
    return found


def _entry_problems(folder: Path) -> list[str]:
    """TorchServe's manifest must name our entry module, and that one must be Python that parses."""
    try:
        named = json.loads((folder / TORCHSERVE_MANIFEST).read_bytes())["model"]["handler"]
        ast.parse((folder / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        return [f"{TORCHSERVE_MANIFEST} or {ENTRY}: unreadable ({type(error).__name__}: {error})"]
    return [] if named == ENTRY else [f"{TORCHSERVE_MANIFEST}: names the handler {named!r}, expected {ENTRY!r}"]


def _load(folder: Path, *runtime: str) -> Verified:
    """Load the handler and answer the examples in a process of its own, in an empty working folder.

    runtime: the one to open, where the archive holds several.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["MARPRESS_CACHE"] = ""  # what is in the archive is opened, and nothing is left behind
    command = [sys.executable, "-P", "-s", "-B", "-c", _PROBE, str(folder.resolve()), ENTRY.removesuffix(".py")]
    command += runtime
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verified([f"the handler did not answer its examples within {_LOAD_SECONDS} s"])
    if done.returncode == 0:
        word, _, kilobytes = done.stdout.strip().rpartition("\n")[2].partition(" ")
        return Verified([], int(kilobytes) * 1024 if word == "peak" and kilobytes.isdigit() else None)
    if done.returncode == 3:
        return Verified([done.stdout.strip().splitlines()[-1]])
    last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return Verified([f"the handler cannot be loaded from the archive alone: {last}"])
