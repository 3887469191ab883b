"""What a runtime has compiled, kept between starts: its own cache files, in a folder that nobody else may write to.

An entry is a folder with the runtime's files and their digests. It is made beside its place and moved there whole; it is
used only if it belongs to this user and every digest is right, else made anew. MARPRESS_CACHE names the folder of all
entries; empty, nothing is kept. Where it cannot be written, or is not this user's alone, nothing is kept either.
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from handlers.cpu import host_isa
from handlers.manifest import canonical_json, file_sha256

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 30  # of all entries; the oldest go first
_SEAL = "marpress-seal.json"
_PART = ".part-"
_STALE_SECONDS = 3600  # after which what was begun will not be finished


@contextmanager
def compiled(digest: str | None, **made_of: Any) -> Iterator[Path | None]:
    """A folder that a runtime keeps what it compiles in, while the context lasts.

    Args:
        digest: of the archive; None: its files were not checked, and nothing is kept of it.
        made_of: what else decides what is compiled: versions, settings; as JSON values.
    Returns: the folder, with what was kept or empty; None where nothing is.
    """
    base = _base() if digest else None
    if base is None:
        yield None
        return
    key = {"digest": digest, "isa": host_isa(), **made_of}
    entry = base / hashlib.sha256(canonical_json(key)).hexdigest()
    if _is_whole(entry):
        with suppress(OSError):
            os.utime(entry)
        yield entry
        return
    try:
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=base))
    except OSError:
        yield None
        return
    try:
        yield part
        _keep(part, entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _keep(part: Path, entry: Path) -> None:
    """Move what was made to its place, unless another worker was faster, and make room for it."""
    try:
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        if not 0 < sum(sizes.values()) <= MOST_BYTES:
            return
        seal = {name: file_sha256(part / name) for name in sizes}
        (part / _SEAL).write_bytes(canonical_json(seal))
        for path in part.iterdir():
            path.chmod(0o600)  # whatever the umask makes of a runtime's files
        if not _is_whole(entry):
            _remove(entry)
            part.rename(entry)
        _make_room(entry)
    except OSError as error:  # a full disk, or another worker that was faster: the model is compiled in any case
        logger.debug("what was compiled is not kept: %s", error)


def _base() -> Path | None:
    """The folder of all entries, made where it is missing; None where there is none to trust."""
    named = os.environ.get("MARPRESS_CACHE")
    if named == "" or not hasattr(os, "geteuid"):
        return None
    base = Path(named) if named else Path(tempfile.gettempdir()) / f"marpress-cache-{os.geteuid()}"
    with suppress(OSError):
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    return base if _is_ours(base, stat.S_ISDIR) else None


def _is_ours(path: Path, is_kind: Any) -> bool:
    """Whether it is of the kind, no link, this user's, and not for others to write."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _is_whole(entry: Path) -> bool:
    if not _is_ours(entry, stat.S_ISDIR) or not _is_ours(entry / _SEAL, stat.S_ISREG):
        return False
    try:
        seal = json.loads((entry / _SEAL).read_bytes())
        files = [path for path in entry.iterdir() if path.name != _SEAL]
        return (
            isinstance(seal, dict)
            and seal.keys() == {path.name for path in files}
            and all(_is_ours(path, stat.S_ISREG) and seal[path.name] == file_sha256(path) for path in files)
        )
    except (OSError, ValueError):
        return False


def _make_room(kept: Path) -> None:
    """Remove the oldest entries beyond MOST_BYTES, never `kept`, and what was begun long ago and not finished."""
    others = []
    room = MOST_BYTES - _bytes(kept)
    for path in kept.parent.iterdir():
        age = time.time() - path.lstat().st_mtime
        if path.name.startswith(_PART) and age > _STALE_SECONDS:
            _remove(path)
        elif path != kept and not path.name.startswith(_PART):
            others.append((age, path))
    for _, path in sorted(others):
        room -= _bytes(path)
        if room < 0:
            _remove(path)


def _bytes(entry: Path) -> int:
    return sum(path.lstat().st_size for path in entry.iterdir()) if _is_ours(entry, stat.S_ISDIR) else 0


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
