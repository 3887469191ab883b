"""Folders that are kept for the next time, where nobody else may write: sealed with their files' digests, taken only whole.

MARPRESS_CACHE names the folder of all that is kept; empty, nothing is. Where it cannot be written, or is not this user's
alone, nothing is kept either.
"""

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from handlers.manifest import canonical_json, file_sha256

PART = ".part-"  # what the name of a folder begins with that is not finished
_SEAL = "marpress-seal.json"
_STALE_SECONDS = 3600  # after which what was begun will not be finished


def cache_folder() -> Path | None:
    """The folder of all that is kept, made where it is missing; None where there is none to trust."""
    named = os.environ.get("MARPRESS_CACHE")
    if named == "" or not hasattr(os, "geteuid"):
        return None
    return own_folder(Path(named) if named else Path(tempfile.gettempdir()) / f"marpress-cache-{os.geteuid()}")


def own_folder(path: Path) -> Path | None:
    """The folder, made where it is missing; None where it is not this user's alone to write."""
    with suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path if is_ours(path, stat.S_ISDIR) else None


def begin(base: Path) -> Path:
    """A new folder beside those that are kept, to make one in. Raises: OSError."""
    return Path(tempfile.mkdtemp(prefix=PART, dir=base))


def keep(part: Path, entry: Path) -> None:
    """Seal what was made and move it to its place, unless another process was faster. Raises: OSError."""
    seal = {path.name: file_sha256(path) for path in part.iterdir()}
    (part / _SEAL).write_bytes(canonical_json(seal))
    for path in part.iterdir():
        path.chmod(0o600)  # whatever the umask made of them
    if not is_whole(entry):
        remove(entry)
        part.rename(entry)


def is_whole(entry: Path) -> bool:
    """Whether folder and files are this user's alone, and every file has the digest that was noted."""
    if not is_ours(entry, stat.S_ISDIR) or not is_ours(entry / _SEAL, stat.S_ISREG):
        return False
    try:
        seal = json.loads((entry / _SEAL).read_bytes())
        files = [path for path in entry.iterdir() if path.name != _SEAL]
        return (
            isinstance(seal, dict)
            and seal.keys() == {path.name for path in files}
            and all(is_ours(path, stat.S_ISREG) and seal[path.name] == file_sha256(path) for path in files)
        )
    except (OSError, ValueError):
        return False


def is_ours(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether it is of the kind, no link, this user's, and not for others to write."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def remove(entry: Path) -> None:
    """Remove a folder, a file or a link, whatever lies there."""
    if entry.is_symlink() or entry.is_file():
        entry.unlink()
    else:
        shutil.rmtree(entry, ignore_errors=True)


def remove_stale(base: Path) -> None:
    """Remove what was begun long ago and not finished. Raises: OSError."""
    for path in base.glob(f"{PART}*"):
        if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
            remove(path)
