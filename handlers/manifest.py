"""`marpress.json`, the archive's own manifest: every file's digest, and one digest over all of them.

Two files stay outside the content digest's reach: `marpress.json` itself enters without its `content_sha256` field, and
`timings.json`, which holds what was measured on one host in one minute and carries a digest of its own.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from handlers.errors import UnsoundArchive

MANIFEST = "marpress.json"
ENTRY = "marpress_entry.py"
BEGINNING = "sitecustomize.py"  # what Python reads before TorchServe's worker begins
TIMINGS = "timings.json"
EXAMPLES = "examples.json"
SERVING = "serving.json"
TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
FORMAT = 1

_CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Bytes of `value` that are the same whenever the value is: sorted keys, no spaces, UTF-8, one final newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_sha256(manifest: dict[str, Any]) -> str:
    """The digest over the whole archive but its timings: `manifest` lists every other file's digest."""
    return hashlib.sha256(canonical_json({k: v for k, v in manifest.items() if k != "content_sha256"})).hexdigest()


def seal_timings(timings: dict[str, Any]) -> bytes:
    """`timings.json`: the measured values and a digest of their own."""
    return canonical_json({"timings": timings, "sha256": hashlib.sha256(canonical_json(timings)).hexdigest()})


def is_safe_name(name: str) -> bool:
    """Whether a path found in an archive stays inside the folder it is extracted to."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an extracted archive; UnsoundArchive when it is missing, unreadable or of another format."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsoundArchive(f"{MANIFEST} cannot be read ({error}); this is no marpress archive") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UnsoundArchive(f"{MANIFEST} has format {found!r}; this code reads format {FORMAT}: rebuild the archive")
    files = manifest.get("files")
    if not isinstance(files, list) or not all(isinstance(entry, dict) and _is_entry(entry) for entry in files):
        raise UnsoundArchive(f"{MANIFEST} lists its files wrongly; each needs path, sha256 and bytes")
    checked: dict[str, Any] = manifest
    return checked


def _is_entry(entry: dict[str, Any]) -> bool:
    kinds = {"path": str, "sha256": str, "bytes": int}
    return all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def find_damage(folder: Path, manifest: dict[str, Any], present: Iterable[str] | None = None) -> list[str]:
    """Every file that is missing, changed or not listed, one sentence each; empty when the archive is whole.

    present: names of the files that came with the archive. None: only listed files are looked at, since TorchServe's
    own folder may hold more (installed packages, byte code).
    """
    damage = []
    if content_sha256(manifest) != manifest.get("content_sha256"):
        damage.append(f"{MANIFEST}: its content_sha256 does not match what it lists")
    listed = {entry["path"]: entry for entry in manifest["files"]}
    for name, entry in sorted(listed.items()):
        path = folder / name
        if not is_safe_name(name):
            damage.append(f"{name}: a path that leaves the archive")
        elif not path.is_file():
            damage.append(f"{name}: missing")
        elif path.stat().st_size != entry["bytes"]:
            damage.append(f"{name}: {path.stat().st_size} bytes, {entry['bytes']} expected")
        elif file_sha256(path) != entry["sha256"]:
            damage.append(f"{name}: its sha256 differs from the one in {MANIFEST}")
    for name in sorted(set(present or ()) - set(listed) - {MANIFEST, TIMINGS}):
        damage.append(f"{name}: not listed in {MANIFEST}")
    return damage


def timings_damage(folder: Path) -> list[str]:
    """What is wrong with timings.json, which carries its own digest."""
    try:
        sealed = json.loads((folder / TIMINGS).read_bytes())
        intact = hashlib.sha256(canonical_json(sealed["timings"])).hexdigest() == sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{TIMINGS}: unreadable ({type(error).__name__}: {error})"]
    return [] if intact else [f"{TIMINGS}: its sha256 differs from the one it carries"]


def read_timings(folder: Path) -> dict[str, Any]:
    """The measured timings of an extracted archive."""
    timings: dict[str, Any] = json.loads((folder / TIMINGS).read_bytes())["timings"]
    return timings
