"""The `.mar` file: a zip that TorchServe unpacks. Written so that the same content gives the same bytes.

torch-model-archiver stages in a shared folder, stores the current time and walks unsorted; the format itself is simple.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from archiver.errors import PackagingError
from handlers.manifest import is_safe_name

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time a zip can hold
_MAX_FILES = 10_000
_MAX_BYTES = 64 << 30
_CHUNK = 1 << 20

# What zipfile raises on files that are damaged, encrypted (RuntimeError), or not named in UTF-8.
UNREADABLE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)


def list_files(folder: Path) -> list[str]:
    """Names of all files below `folder`, sorted, with forward slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_mar(folder: Path, target: Path) -> None:
    """Pack `folder` into `target`: sorted names, fixed times and rights; on disk when this returns."""
    with target.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name in list_files(folder):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                entry.create_system = 3  # Unix, whatever the host
                with archive.open(entry, "w", force_zip64=(folder / name).stat().st_size > 1 << 31) as out:
                    with (folder / name).open("rb") as source:
                        while chunk := source.read(_CHUNK):
                            out.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def replace_file(source: Path, target: Path) -> None:
    """Put `source` in the place of `target` in one step; a reader sees the old file or the new one, never a part."""
    os.replace(source, target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def extracted(mar: Path) -> Iterator[tuple[Path, list[str]]]:
    """The archive's files in a temporary folder, and their names. PackagingError when it is no sound zip."""
    with TemporaryDirectory(prefix="marpress-") as temporary:
        folder = Path(temporary)
        yield folder, extract(mar, folder)


def extract(mar: Path, folder: Path) -> list[str]:
    """Unpack into `folder`; no name may leave it, no entry be a link, no name come twice. Returns the file names."""
    try:
        with zipfile.ZipFile(mar) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(mar, entries)
            for entry in entries:
                path = folder / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, path.open("wb") as out:
                    while chunk := source.read(_CHUNK):
                        out.write(chunk)
            return sorted(entry.filename for entry in entries)
    except UNREADABLE as error:
        raise PackagingError(f"{mar.name} is damaged: {error}") from error


def _check_entries(mar: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = Counter(entry.filename for entry in entries)
    problems = [f"{name!r} leaves the archive's folder" for name in names if not is_safe_name(name)]
    problems += [f"{name!r} comes twice" for name in sorted(names) if names[name] > 1]
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    problems += [f"{name!r} is a file and a folder" for name in sorted(folders & set(names))]
    problems += [f"{entry.filename!r} is a link" for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]
    problems += [f"{entry.filename!r} begins outside the file" for entry in entries if entry.header_offset < 0]
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    problems += [
        f"{entry.filename!r} is compressed by method {entry.compress_type}, which TorchServe cannot unpack"
        for entry in entries
        if entry.compress_type not in methods
    ]
    if len(entries) > _MAX_FILES or sum(entry.file_size for entry in entries) > _MAX_BYTES:
        problems.append(f"it unpacks to more than {_MAX_FILES} files or {_MAX_BYTES >> 30} GiB")
    if problems:
        raise PackagingError(f"{mar.name} is unsound", problems)
