"""What is compiled is kept between starts, and taken only whole, from a folder of this user alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from handlers.storage import compiled as module
from handlers.storage.compiled import compiled


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MARPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(content: bytes = b"blob", digest: str | None = "d" * 64, **made_of: object) -> bytes | None:
    """A start of a worker: what it finds, else it makes `content`. None: there is nothing to keep it in."""
    with compiled(digest, **({"version": "1"} | made_of)) as folder:
        if folder is None:
            return None
        file = folder / "1234.blob"
        if file.exists():
            return file.read_bytes()
        file.write_bytes(content)
        return b"made"


def entries(base: Path) -> list[Path]:
    return sorted(path for path in base.iterdir())


def test_it_is_made_once(base: Path) -> None:
    assert [start(), start(), start()] == [b"made", b"blob", b"blob"]
    assert base.stat().st_mode & 0o777 == 0o700
    (entry,) = entries(base)
    assert entry.stat().st_mode & 0o777 == 0o700


def test_a_umask_that_lets_the_group_write(base: Path) -> None:
    before = os.umask(0o002)
    try:
        assert [start(), start()] == [b"made", b"blob"]
    finally:
        os.umask(before)


def test_what_decides_has_entries_of_its_own(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start() == start(digest="e" * 64) == start(version="2") == start(config={"NUM_STREAMS": 2}) == b"made"
    monkeypatch.setattr(module, "host_isa", lambda: ["another"])
    assert start() == b"made"
    assert len(entries(base)) == 5


def test_what_was_changed_is_made_anew(base: Path) -> None:
    start()
    (entry,) = entries(base)
    (entry / "1234.blob").write_bytes(b"blub")
    assert [start(b"right"), start()] == [b"made", b"right"]
    (entry / "more.blob").write_bytes(b"more")
    assert [start(b"again"), start()] == [b"made", b"again"]
    (entry / "marpress-seal.json").write_text("[")
    assert [start(b"last"), start()] == [b"made", b"last"]
    assert entries(base) == [entry]


def test_what_others_may_write_is_not_looked_at(base: Path) -> None:
    start()
    (entry,) = entries(base)
    entry.chmod(0o770)
    assert [start(b"mine"), start()] == [b"made", b"mine"]
    (entry / "1234.blob").chmod(0o666)
    assert [start(b"mine again"), start()] == [b"made", b"mine again"]
    base.chmod(0o777)
    assert start() is None
    base.chmod(0o700)
    assert start() == b"mine again"


def test_links_are_not_followed(base: Path, tmp_path: Path) -> None:
    start()
    (entry,) = entries(base)
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert start() == b"made"
    assert (tmp_path / "elsewhere/1234.blob").exists() and not entry.is_symlink()
    base.rename(tmp_path / "moved")
    base.symlink_to(tmp_path / "moved")
    assert start() is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_what_belongs_to_another_is_not_looked_at(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    assert start() is None


def test_nothing_is_kept_where_nothing_was_checked_or_asked_for(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(digest=None) is None
    monkeypatch.setenv("MARPRESS_CACHE", "")
    assert start() is None
    assert not base.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MARPRESS_CACHE", str(tmp_path / "file/cache"))
    assert start() is None


def test_a_start_that_fails_keeps_nothing(base: Path) -> None:
    with pytest.raises(RuntimeError, match="no such operation"), compiled("d" * 64) as folder:
        assert folder is not None
        (folder / "half.blob").write_bytes(b"half")
        raise RuntimeError("no such operation")
    assert entries(base) == []
    with compiled("d" * 64):  # a runtime that writes nothing
        pass
    assert entries(base) == []


def test_the_oldest_go_first(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    found = []
    for number in range(3):
        start(bytes(300), digest=f"{number}" * 64)
        (new,) = set(entries(base)) - set(found)
        found.append(new)
        os.utime(new, (time.time() - 100 + number,) * 2)
    start(digest="0" * 64)  # a use makes it new again
    stale = base / ".part-stale"
    stale.mkdir()
    os.utime(stale, (1, 1))
    (base / ".part-running").mkdir()
    start(bytes(200), digest="3" * 64)
    left = set(entries(base))
    assert found[0] in left and found[1] not in left
    assert stale not in left and base / ".part-running" in left
    assert start(bytes(2000), digest="4" * 64) == start(bytes(2000), digest="4" * 64) == b"made"
