"""What a runtime has compiled, kept between starts: its own cache files, in a folder that nobody else may write to.

It is used only if it belongs to this user and every digest is right, else made anew (see kept.py, which also says where
all of it lies).
"""

import hashlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from handlers.cpu import host_isa
from handlers.manifest import canonical_json
from handlers.storage.kept import begin, cache_folder, is_ours, is_whole, keep, remove, remove_stale

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 30  # of all entries; the oldest go first
_ENTRY = re.compile(r"[0-9a-f]{64}")  # other names are of what others keep there


@contextmanager
def compiled(digest: str | None, **made_of: Any) -> Iterator[Path | None]:
    """A folder that a runtime keeps what it compiles in, while the context lasts.

    Args:
        digest: of the archive; None: its files were not checked, and nothing is kept of it.
        made_of: what else decides what is compiled: versions, settings; as JSON values.
    Returns: the folder, with what was kept or empty; None where nothing is.
    """
    base = cache_folder() if digest else None
    if base is None:
        yield None
        return
    key = {"digest": digest, "isa": host_isa(), **made_of}
    entry = base / hashlib.sha256(canonical_json(key)).hexdigest()
    if is_whole(entry):
        with suppress(OSError):
            os.utime(entry)
        yield entry
        return
    try:
        part = begin(base)
    except OSError:
        yield None
        return
    try:
        yield part
        _keep(part, entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _keep(part: Path, entry: Path) -> None:
    """Move what was made to its place, and make room for it."""
    try:
        if not 0 < sum(path.stat().st_size for path in part.iterdir()) <= MOST_BYTES:
            return
        keep(part, entry)
        _make_room(entry)
    except OSError as error:  # a full disk, or another worker that was faster: the model is compiled in any case
        logger.debug("what was compiled is not kept: %s", error)


def _make_room(kept: Path) -> None:
    """Remove the oldest entries beyond MOST_BYTES, never `kept`, and what was begun long ago and not finished."""
    remove_stale(kept.parent)
    others = []
    room = MOST_BYTES - _bytes(kept)
    for path in kept.parent.iterdir():
        if path != kept and _ENTRY.fullmatch(path.name):
            others.append((time.time() - path.lstat().st_mtime, path))
    for _, path in sorted(others):
        room -= _bytes(path)
        if room < 0:
            remove(path)


def _bytes(entry: Path) -> int:
    return sum(path.lstat().st_size for path in entry.iterdir()) if is_ours(entry, stat.S_ISDIR) else 0
