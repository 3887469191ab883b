"""A dead worker is replaced by the process that stands by: what was read is answered 503, what was not is answered."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from places import ROOT
from torchserve_side import request_message

from handlers.torchserve.frames import loaded_message, lost_message
from handlers.torchserve.standby.process import Standby
from handlers.torchserve.standby.unanswered import Unanswered

# A worker that answers with its process id, unless it is asked to wait.
_SCRIPT = """
import os, signal, socket, sys, time
sys.path[:0] = [{root!r}, {support!r}]
sys.argv = ["worker", "--sock-type", "unix", "--sock-name", {name!r}]
from torchserve_side import request_message, responses
from handlers.torchserve.frames import Answers
from handlers.torchserve.standby.process import Standby

class Deadly:
    def sendall(self, message):
        os.kill(os.getpid(), signal.SIGKILL)

theirs, ours = socket.socketpair()

def worker():
    theirs.close()
    standby = Standby(ours)

    def load():
        standby.unanswered.take()
        while os.path.exists({stuck!r}):
            time.sleep(0.1)
        if os.path.exists({broken!r}):
            os._exit(3)

    def serve():
        standby.serves()
        while True:
            for one in standby.inbox.requests(ours, lambda: True, lambda one: standby.unanswered.begin(one.id, one.rest)):
                while one.row["body"] == b"wait":
                    time.sleep(0.1)
                answers = Answers()
                answers.add(one.id, True, str(os.getpid()).encode(), "text/plain")
                if one.row["body"] == b"die":
                    standby.outbox._push = lambda link, left: os.kill(os.getpid(), signal.SIGKILL)
                if one.row["body"] == b"die unknown":
                    standby.outbox._most, standby.link = 0, Deadly()
                standby.send(answers)

    standby.fork(load, serve)
    load()
    serve()

pid = os.fork()
if pid == 0:
    try:
        worker()
    finally:
        os._exit(0)
ours.close()
theirs.settimeout(20)

def ask(name, body=b""):
    theirs.sendall(request_message([(name, {{"Host": "x"}}, [("body", "", body)])]))

def answers(count):
    found, wire = {{}}, b""
    while len(found) < count:
        part = theirs.recv(1 << 16)
        if not part:
            return None
        wire += part
        try:
            found = {{}}
            for one in responses(wire):
                found.setdefault(one.request_id, one)
        except AssertionError:
            continue
    return {{name: (one.status, one.body) for name, one in found.items()}}
"""
_CASES = {
    "read and unread": """
ask("a")
first = int(answers(1)["a"][1])
assert first != pid  # that one stands by
for _ in range(3):
    ask("busy", b"wait")
    time.sleep(0.3)
    ask("unread")
    os.kill(first, signal.SIGKILL)
    found = answers(2)
    assert found["busy"][0] == 503 and b"the worker died" in found["busy"][1], found
    second = int(found["unread"][1])
    assert second != first, found
    first = second
theirs.close()
""",
    "while it sends": """
ask("a")
first = answers(1)["a"][1]
ask("sent", b"die")
assert answers(1)["sent"] == (200, first)  # another process has sent it, once
ask("next")
assert answers(1)["next"][0] == 200
theirs.close()
""",
    "while it sends what nobody can follow": """
ask("sent", b"die unknown")
assert theirs.recv(1) == b""  # the connection closes, and TorchServe starts a worker itself
""",
    "successors that do not load": """
ask("a")
first = int(answers(1)["a"][1])
open({broken!r}, "w").close()
time.sleep(0.2)  # it has noted by then that the answer is sent
os.kill(first, signal.SIGKILL)
theirs.settimeout(60)
assert theirs.recv(1) == b""  # in the end the connection closes, and TorchServe starts a worker itself
""",
    "before it has loaded": """
assert answers(1) is None
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3  # as the one that loaded
""",
    "killed before it has loaded": """
until = time.monotonic() + 10
while not (below := open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()):
    assert time.monotonic() < until
os.kill(int(below[0]), signal.SIGKILL)
assert answers(1) is None
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL  # TorchServe says that memory was short
""",
    "the one that stands by": """
ask("a")
first = int(answers(1)["a"][1])
os.kill(pid, signal.SIGKILL)
ask("b")
assert int(answers(1)["b"][1]) == first
theirs.close()
until = time.monotonic() + 10
while os.path.exists(f"/proc/{{first}}"):
    assert time.monotonic() < until, "it outlives the frontend"
    time.sleep(0.05)
""",
}

# Files that are there from the start.
_FIRST = {"before it has loaded": ("broken",), "killed before it has loaded": ("stuck",)}


@pytest.mark.skipif(sys.platform != "linux", reason="processes stand by on Linux alone")
@pytest.mark.parametrize("case", _CASES)
def test_a_dead_worker(tmp_path: Path, case: str) -> None:
    places = {
        "root": str(ROOT),
        "support": str(ROOT / "tests/support"),
        "name": str(tmp_path / "s.sock"),
        "broken": str(tmp_path / "broken"),
        "stuck": str(tmp_path / "stuck"),
    }
    begin = "".join(f"open({places[file]!r}, 'w').close()\n" for file in _FIRST.get(case, ()))
    script = begin + (_SCRIPT + _CASES[case]).format(**places)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_that_died_with_its_standby_is_followed_by_one_that_tells_all_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The frontend forgets none that it tells so, and closes the connection at a gRPC call that it has told before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["worker", "--sock-type", "unix", "--sock-name", "/run/.ts.sock.9000"])
    loaded, lost = loaded_message(), lost_message("")[:4]

    def restarted(tells: bool, closes: bool) -> tuple[list[tuple[str, bytes]], bytes]:
        """One more worker; returns what it left noted and what the frontend got."""
        theirs, ours = socket.socketpair()
        with theirs, ours:
            one = Standby(ours)
            theirs.sendall(request_message([("since", {"Host": "x"}, [("body", "", b"")])]))
            if closes:
                theirs.shutdown(socket.SHUT_WR)
                with pytest.raises(SystemExit):
                    one.restart()
            else:
                one.restart()
            ours.shutdown(socket.SHUT_WR)
            got = theirs.makefile("rb").read()
        assert got.startswith(loaded) and (lost in got) == tells
        if not closes:
            one.serves()
        return Unanswered().take(), got

    mine = Unanswered()
    mine.take()
    mine.begin("read", rest=False)
    _, got = restarted(tells=True, closes=False)
    assert b"read" in got and b"since" in got  # each by its id, too: so it is forgotten
    noted, _ = restarted(tells=True, closes=True)
    assert noted == [("since", b"w")]  # for the next one
    _, got = restarted(tells=False, closes=False)
    assert b"since" not in got  # it is still to be read
    restarted(tells=False, closes=False)


def test_one_that_died_between_an_answer_and_its_note_keeps_nobody_from_being_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The frontend closes the connection at the second answer to a request, and reads no more of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["worker", "--sock-type", "unix", "--sock-name", "/run/.ts.sock.9000"])
    mine = Unanswered()
    mine.take()
    mine.begin("answered", rest=True)
    for knows in (False, True):
        theirs, ours = socket.socketpair()
        with theirs, ours:
            worker = Standby(ours)
            if knows:
                worker.restart()
            else:
                theirs.shutdown(socket.SHUT_WR)
                with pytest.raises(SystemExit):
                    worker.restart()
            ours.shutdown(socket.SHUT_WR)
            got = theirs.makefile("rb").read()
        assert (b"answered" in got) == (not knows)
        assert (b"the worker died; another one" in got) == knows
