"""Unanswered requests are noted, and the next worker answers them in the form that each client still understands."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from torchserve_side import Response, Wire, responses

from handlers.torchserve.standby import unanswered
from handlers.torchserve.standby.unanswered import Unanswered, tell_lost


@pytest.fixture
def worker(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["worker", "--sock-type", "unix", "--sock-name", "/run/.ts.sock.9000"])
    return tmp_path


def test_noted_until_it_is_answered(worker) -> None:
    mine = Unanswered()
    assert mine.take() == []
    mine.begin("a", rest=True)
    mine.begin("b", rest=True)
    mine.streams("b")
    mine.begin("c", rest=False)
    mine.end("b")
    mine.streams("b")
    mine.end("never there")
    mine.begin("d" * 100, rest=True)  # longer than any of the frontend's
    mine.begin("e", rest=True)
    mine.streams("e")
    assert sorted(Unanswered().take()) == [("a", b"w"), ("c", b"g"), ("d" * 62, b"w"), ("e", b"s")]
    assert Unanswered().take() == []


def test_more_than_there_are_places_for_are_not_noted(worker, monkeypatch) -> None:
    monkeypatch.setattr(unanswered, "_PLACES", 2)
    mine = Unanswered()
    mine.take()
    for name in ("a", "b", "c"):
        mine.begin(name, rest=True)
    mine.end("c")
    mine.end("a")
    mine.begin("d", rest=False)
    assert sorted(mine.take()) == [("b", b"w"), ("d", b"g")]


def test_without_a_torchserve_nothing_is_noted(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    mine = Unanswered()
    mine.begin("a", rest=True)
    assert not list(tmp_path.iterdir())


def test_a_dead_frontend_s_folder_goes(worker) -> None:
    old = worker / "marpress-unanswered-999999999-1"
    old.mkdir()
    Unanswered()
    assert not old.exists()
    assert (worker / f"marpress-unanswered-{os.getppid()}-{_started(os.getppid())}").is_dir()


def test_the_next_worker_answers(worker) -> None:
    before = Unanswered()
    before.take()
    before.begin("whole", rest=True)
    before.begin("stream", rest=True)
    before.streams("stream")
    before.begin("grpc", rest=False)
    wire = Wire()
    tell_lost(wire.link, Unanswered().take())
    found: dict[str, list[Response]] = {}
    for answer in responses(wire.written):
        found.setdefault(answer.request_id, []).append(answer)
    assert [(a.status, a.headers) for a in found["whole"]] == [(503, {}), (200, {"ts_stream_next": "false"})]
    assert b"the worker died" in found["whole"][0].body and found["whole"][1].body == b""
    assert len(found["stream"]) == len(found["grpc"]) == 1
    assert found["stream"][0].body.startswith(b"data: {") and found["stream"][0].headers == {"ts_stream_next": "false"}
    assert found["grpc"][0].body.startswith(b'{"error"') and found["grpc"][0].headers == {"ts_stream_next": "false"}
    assert Unanswered().take() == []


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
