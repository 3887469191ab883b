"""The archive's own manifest: digests, what is named when a file changes, and what stays outside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from handlers.errors import UnsoundArchive
from handlers.manifest import (
    MANIFEST,
    TIMINGS,
    canonical_json,
    content_sha256,
    file_sha256,
    find_damage,
    is_safe_name,
    read_manifest,
    read_timings,
    seal_timings,
    timings_damage,
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers/base.py").write_text("x = 1\n")
    (tmp_path / "model.onnx").write_bytes(bytes(range(256)))
    write_manifest(tmp_path, ["handlers/base.py", "model.onnx"])
    (tmp_path / TIMINGS).write_bytes(seal_timings({"speedup": 2.5}))
    return tmp_path


def write_manifest(folder: Path, names: list[str], **more: Any) -> None:
    files = [
        {"path": name, "sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names
    ]
    manifest: dict[str, Any] = {"format": 1, "name": "m", "files": files, **more}
    manifest["content_sha256"] = content_sha256(manifest)
    (folder / MANIFEST).write_bytes(canonical_json(manifest))


def damage(folder: Path, present: list[str] | None = None) -> list[str]:
    return find_damage(folder, read_manifest(folder), present)


def test_canonical_json_by_hand():
    assert canonical_json({"b": [1, 0.5], "a": "é"}) == '{"a":"é","b":[1,0.5]}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_digests_by_hand(archive):
    assert file_sha256(archive / "model.onnx") == hashlib.sha256(bytes(range(256))).hexdigest()
    listed = {"format": 1, "files": []}
    assert content_sha256(listed) == hashlib.sha256(b'{"files":[],"format":1}\n').hexdigest()
    assert content_sha256({**listed, "content_sha256": "anything"}) == content_sha256(listed)


def test_whole(archive):
    assert damage(archive) == []
    assert damage(archive, ["handlers/base.py", "model.onnx", MANIFEST, TIMINGS]) == []
    assert timings_damage(archive) == []
    assert read_timings(archive) == {"speedup": 2.5}


def test_a_changed_byte_names_its_file(archive):
    (archive / "model.onnx").write_bytes(bytes([1, *range(1, 256)]))
    assert damage(archive) == [f"model.onnx: its sha256 differs from the one in {MANIFEST}"]


def test_missing_longer_and_extra_files_are_named(archive):
    (archive / "handlers/base.py").write_text("x = 1  # more\n")
    (archive / "model.onnx").unlink()
    (archive / "extra.txt").write_text("")
    assert damage(archive, ["handlers/base.py", "extra.txt"]) == [
        "handlers/base.py: 14 bytes, 6 expected",
        "model.onnx: missing",
        f"extra.txt: not listed in {MANIFEST}",
    ]
    # What TorchServe's folder holds beside the archive is no damage.
    assert all("extra" not in line for line in damage(archive))


def test_a_changed_manifest_is_noticed(archive):
    manifest = json.loads((archive / MANIFEST).read_bytes())
    manifest["name"] = "other"
    (archive / MANIFEST).write_bytes(canonical_json(manifest))
    assert damage(archive) == [f"{MANIFEST}: its content_sha256 does not match what it lists"]


def test_names_that_leave_the_archive(archive):
    for name in ("../x", "/etc/passwd", "a/../../x", "a\\b", "", "a\0b"):
        assert not is_safe_name(name)
    for name in ("x", "a/b.py", "MAR-INF/MANIFEST.json", "..x/y"):
        assert is_safe_name(name)
    manifest = json.loads((archive / MANIFEST).read_bytes())
    manifest["files"].append({"path": "../outside", "sha256": "", "bytes": 0})
    manifest["content_sha256"] = content_sha256(manifest)
    (archive / MANIFEST).write_bytes(canonical_json(manifest))
    assert damage(archive) == ["../outside: a path that leaves the archive"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"{MANIFEST} cannot be read .*this is no marpress archive"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "has format None; this code reads format 1: rebuild"),
        (b'{"format": 2}', "has format 2"),
        (b'{"format": 1}', "lists its files wrongly; each needs path, sha256 and bytes"),
        (b'{"format": 1, "files": [{"path": ["a"], "sha256": "", "bytes": 1}]}', "lists its files wrongly"),
    ],
)
def test_manifests_that_cannot_be_used(archive, content, message):
    (archive / MANIFEST).unlink()
    if content is not None:
        (archive / MANIFEST).write_bytes(content)
    with pytest.raises(UnsoundArchive, match=message):
        read_manifest(archive)


def test_timings_stand_outside_with_a_digest_of_their_own(archive):
    (archive / TIMINGS).write_bytes(seal_timings({"speedup": 3.5}))
    assert damage(archive) == []
    assert timings_damage(archive) == []
    (archive / TIMINGS).write_bytes(seal_timings({"speedup": 3.5}).replace(b"3.5", b"9.5"))
    assert timings_damage(archive) == [f"{TIMINGS}: its sha256 differs from the one it carries"]
    for broken in (b"", b"[]", b"{}", b'{"timings": 1}'):
        (archive / TIMINGS).write_bytes(broken)
        assert "timings.json: unreadable" in timings_damage(archive)[0]
    (archive / TIMINGS).unlink()
    assert "FileNotFoundError" in timings_damage(archive)[0]
