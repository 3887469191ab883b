"""The .mar file: the same bytes for the same content, and what no archive may hold."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from archiver.errors import PackagingError
from archiver.packaging.mar import extract, extracted, list_files, replace_file, write_mar

FILES = {"MAR-INF/MANIFEST.json": b"{}", "b.txt": b"b" * 5000, "a/z.bin": bytes(range(256)), "a.txt": b""}


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[name])
    return folder


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    write_mar(fill(tmp_path / "one", list(FILES)), tmp_path / "one.mar")
    return tmp_path / "one.mar"


def forge(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def test_same_bytes_twice_and_from_another_folder(tmp_path, mar):
    other = fill(tmp_path / "else/where", list(FILES)[::-1])
    for name in FILES:
        os.utime(other / name, (1e9, 1e9))
        (other / name).chmod(0o600)
    write_mar(other, tmp_path / "other.mar")
    write_mar(tmp_path / "one", tmp_path / "again.mar")
    assert (tmp_path / "other.mar").read_bytes() == mar.read_bytes() == (tmp_path / "again.mar").read_bytes()


def test_sorted_names_fixed_times_and_rights(mar):
    with zipfile.ZipFile(mar) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(FILES)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}
    assert {(entry.create_system, entry.compress_type) for entry in entries} == {(3, zipfile.ZIP_DEFLATED)}


def test_unpacked_as_packed(tmp_path, mar):
    with extracted(mar) as (folder, names):
        assert names == sorted(FILES) == list_files(folder)
        assert {name: (folder / name).read_bytes() for name in names} == FILES
    assert not folder.exists()


def test_replaced_in_one_step(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    with (tmp_path / "old").open() as reader:
        replace_file(tmp_path / "new", tmp_path / "old")
        assert reader.read() == "old"
    assert (tmp_path / "old").read_text() == "new"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "a\\..\\out.txt"])
def test_names_that_leave_the_folder(tmp_path, name):
    path = forge(tmp_path / "slip.mar", ("fine.txt", b""), (name, b"gotcha"))
    (tmp_path / "in").mkdir()
    with pytest.raises(PackagingError, match="slip.mar is unsound") as caught:
        extract(path, tmp_path / "in")
    assert "leaves the archive's folder" in caught.value.problems[0]
    assert list_files(tmp_path / "in") == []
    assert not list(tmp_path.rglob("out.txt"))


def problems_of(path: Path, folder: Path) -> list[str]:
    folder.mkdir()
    with pytest.raises(PackagingError, match="is unsound") as caught:
        extract(path, folder)
    assert list_files(folder) == []
    return caught.value.problems


def test_links_doubles_and_files_that_are_folders(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert problems_of(forge(tmp_path / "l.mar", (link, b"/etc/passwd")), tmp_path / "l") == ["'link' is a link"]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = forge(tmp_path / "d.mar", ("x", b"1"), ("x", b"2"))
    assert problems_of(path, tmp_path / "d") == ["'x' comes twice"]
    path = forge(tmp_path / "f.mar", ("x", b"1"), ("x/y", b"2"))
    assert problems_of(path, tmp_path / "f") == ["'x' is a file and a folder"]
    assert problems_of(forge(tmp_path / "dot.mar", (".", b"1")), tmp_path / "dot") == [
        "'.' leaves the archive's folder"
    ]


def test_only_what_torchserve_can_unpack(tmp_path):
    entry = zipfile.ZipInfo("x")
    entry.compress_type = zipfile.ZIP_BZIP2
    assert "compressed by method 12" in problems_of(forge(tmp_path / "b.mar", (entry, b"1")), tmp_path / "b")[0]


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr("archiver.packaging.mar._MAX_FILES", 2)
    path = forge(tmp_path / "m.mar", *((f"{i}", b"") for i in range(3)))
    assert "unpacks to more than 2 files" in problems_of(path, tmp_path / "m")[0]


def test_files_that_are_no_sound_zip(tmp_path, mar):
    whole = mar.read_bytes()
    broken = {
        "empty": b"",
        "text": b"this is no zip at all",
        "truncated": whole[: len(whole) // 2],
        "no end": whole[:-10],
        "a byte of the content": whole[:52] + bytes([whole[52] ^ 0xFF]) + whole[53:],
    }
    for name, content in broken.items():
        path = tmp_path / "broken.mar"
        path.write_bytes(content)
        with pytest.raises(PackagingError, match="broken.mar is"):
            extract(path, tmp_path / name)


def test_no_changed_byte_gets_through_or_breaks_out(tmp_path, mar):
    """Each byte of the file changed in turn: the same content, or a PackagingError, never another error."""
    whole = bytearray(mar.read_bytes())
    path = tmp_path / "changed.mar"
    for place in range(0, len(whole), 3):
        for flip in (0xFF, 0x01):
            changed = whole.copy()
            changed[place] ^= flip
            path.write_bytes(changed)
            try:
                with extracted(path) as (folder, names):
                    contents = {(folder / name).read_bytes() for name in names}
            except PackagingError:
                continue
            assert contents <= set(FILES.values())
