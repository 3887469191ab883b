"""A worker's process dies before any line of the code that receives, notes and sends: each request gets one answer.

That is tried for every line, one after the other: the process counts the lines that it comes by, and kills itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

_SCRIPT = """
import logging, os, signal, socket, sys, threading, time
sys.path[:0] = [{root!r}, {support!r}]
sys.argv = ["worker", "--sock-type", "unix", "--sock-name", {name!r}]
logging.disable(logging.CRITICAL)
from torchserve_side import request_message, responses
from handlers.torchserve.standby import inbox, outbox, process, unanswered
from handlers.torchserve.frames import Answers

WATCHED = {{module.__file__ for module in (inbox, outbox, process, unanswered)}}
SIZE = {size}  # bytes of each body
NAMES = ["a", "b", "c", "d"]
BEFORE = 2  # requests that the one which dies can answer
WIRE = b"".join(request_message([(name, {{"Host": "x"}}, [("body", "", name.encode() * SIZE)])]) for name in NAMES)

def die_at(line):
    count = 0
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

def serve(one, count):
    note = lambda request: one.unanswered.begin(request.id, request.rest)
    while count:
        for request in one.inbox.requests(one.link, lambda: True, note)[:count]:
            answers = Answers()
            answers.add(request.id, True, request.row["body"], "text/plain")
            one.send(answers)
            count -= 1

def stand_by(link, line):
    "Exits with 1 where nobody died, as there is no such line."
    one = process.Standby(link)
    one.unanswered.take()
    if (child := os.fork()) == 0:
        die_at(line)
        serve(one, BEFORE)
        sys.settrace(None)
        os.kill(os.getpid(), signal.SIGTERM)
    died = os.waitpid(child, 0)[1] == signal.SIGKILL
    assert one._settle()
    if os.fork() == 0:
        one.unanswered.take()
        serve(one, len(NAMES))
    os.wait()
    os._exit(not died)

def ended(wire):
    "The ids of the requests that the frontend has forgotten."
    return [answer.request_id for answer in responses(wire) if answer.more == "false"]

line = 0
while True:
    line += 1
    theirs, ours = socket.socketpair()
    if (worker := os.fork()) == 0:
        theirs.close()
        try:
            stand_by(ours, line)
        finally:
            os._exit(2)
    ours.close()
    theirs.settimeout(20)
    writer = threading.Thread(target=theirs.sendall, args=(WIRE,))
    writer.start()
    got, found = b"", []
    while len(found) < len(NAMES):
        part = theirs.recv(1 << 16)
        assert part, f"line {{line}}: the connection was closed"
        got += part
        try:
            found = ended(got)
        except AssertionError:  # a part of a message
            continue
    writer.join()
    theirs.shutdown(socket.SHUT_WR)  # the successor leaves, and what it sends until then would be too much
    while part := theirs.recv(1 << 16):
        got += part
    theirs.close()
    assert sorted(ended(got)) == NAMES, f"line {{line}}: {{ended(got)}}"
    for answer in responses(got):
        right = answer.request_id.encode() * SIZE
        assert answer.body in (right, b"") or answer.status == 503, f"line {{line}}: {{answer}}"
    status = os.waitpid(worker, 0)[1]
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) < 2, status
    if os.WEXITSTATUS(status):
        break
print(line)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes stand by on Linux alone")
@pytest.mark.parametrize("size", [10, 300_000])  # one that fits into a socket and a pipe, and one that does not
def test_at_every_line(tmp_path: Path, size: int) -> None:
    places = {"root": str(ROOT), "support": str(ROOT / "tests/support"), "name": str(tmp_path / "s.sock")}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(size=size, **places)],
        env={"TMPDIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100  # lines that it died at
