"""`marpress chat` against a server that streams as ours does: what it sends, shows, keeps, and says of failures."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from built import heed_interrupts
from places import ROOT

from archiver.cli import main
from archiver.torchserve.chat import Conversation, Refused, clean
from archiver.torchserve.client import RequestError, UsageError
from archiver.torchserve.settings import free_ports

KEY = "the-key"


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def pieces(*texts: str, finish: str = "stop") -> list[bytes]:
    return [
        chunk(""),
        *map(chunk, texts),
        chunk(None, finish),
        event({"choices": [], "usage": {}}),
        b"data: [DONE]\n\n",
    ]


class Quiet(ThreadingHTTPServer):
    """Says nothing of a client that closes a connection it is done with: what the client says itself is looked at."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class Server:
    """What the next requests are answered with, and what came.

    answers: a stream's pieces, or (status, body). gate: where set, a stream waits behind its second piece.
    """

    url: str
    answers: list[list[bytes] | tuple[int, Any]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    gate: threading.Event | None = None
    content_type: str = "text/event-stream"
    left: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.requests.append((self.path, body))
            if self.headers["Authorization"] != f"Bearer {KEY}":
                message = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
                return self.whole(400, {"code": 400, "type": "InvalidKeyException", "message": message})
            answer = found.answers.pop(0)
            if isinstance(answer, tuple):
                return self.whole(*answer)
            self.send_response(200)
            self.send_header("Content-Type", found.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for number, piece in enumerate(answer):
                    if number == 2 and found.gate is not None:
                        found.gate.wait(30)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                if answer[-1].startswith(b"data: [DONE]"):
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.close_connection = True
            except OSError:
                found.left.set()
                self.close_connection = True

        def whole(self, status: int, value: Any) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is not the place."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        found = Server(f"http://127.0.0.1:{http.server_port}/predictions/writer")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            if found.gate is not None:
                found.gate.set()
            http.shutdown()
            thread.join()


def said(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def talk(server: Server, *arguments: str) -> int:
    return main(["chat", server.url, "--token", KEY, *arguments])


def test_an_answer_for_each_line_of_one_conversation(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.answers = [pieces("Par", "is."), pieces("Ro\nme", "!")]
    (tmp_path / "keys.json").write_text(json.dumps({"inference": {"key": KEY}}))
    said(monkeypatch, "The capital of France?\n\nAnd of Italy?\n")
    options = ["--system", "Be short.", "--max-tokens", "9", "--temperature", "0", "--model", "mine"]
    code = main(["chat", f"{server.url}/v1/", "--key-file", str(tmp_path / "keys.json"), *options])
    shown = capsys.readouterr()
    assert (code, shown.out, shown.err) == (0, "Paris.\nRo\nme!\n", "")
    first, second = server.requests
    assert first[0] == second[0] == "/predictions/writer/v1/chat/completions"
    turns = [
        ("system", "Be short."),
        ("user", "The capital of France?"),
        ("assistant", "Paris."),
        ("user", "And of Italy?"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    settings = {"model": "mine", "max_tokens": 9, "temperature": 0.0, "stream": True}
    assert first[1] == {"messages": messages[:2], **settings}
    assert second[1] == {"messages": messages, **settings}


@pytest.mark.parametrize(
    ("below", "path"),
    [
        ("", ""),
        ("/", ""),
        ("/v1", "/v1/chat/completions"),
        ("/2.0", "/2.0/chat/completions"),
        ("/2.0/v1/", "/2.0/v1/chat/completions"),
    ],
)
def test_where_chats_are_sent(server: Server, below: str, path: str) -> None:
    server.answers = [pieces("yes")]
    conversation = Conversation(server.url + below, token=KEY)
    assert list(conversation.ask("hi")) == ["yes"]
    assert server.requests == [
        (f"/predictions/writer{path}", {"messages": conversation.messages[:1], "model": "writer", "stream": True})
    ]


def test_pieces_come_before_the_answer_is_whole_and_what_was_stopped_is_kept(server: Server) -> None:
    server.gate = threading.Event()
    server.answers = [pieces("one ", *["two "] * 100_000), pieces("again")]
    conversation = Conversation(server.url, token=KEY)
    with closing(conversation.ask("count")) as answer:
        assert next(answer) == "one "
        assert not server.gate.is_set()
    server.gate.set()
    assert server.left.wait(30), "the connection was not closed"
    assert conversation.messages[1:] == [{"role": "assistant", "content": "one "}]
    assert list(conversation.ask("more")) == ["again"]
    assert [message["role"] for message in server.requests[1][1]["messages"]] == ["user", "assistant", "user"]


def test_what_failed_is_forgotten_and_the_next_line_is_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "the prompt has 3030 tokens; prompt and continuation together may have 2048"
    late = [*pieces("so ")[:2], event({"error": {"message": "the worker\nended", "type": "server_error"}})]
    server.answers = [(400, {"error": {"message": long}}), late, pieces("fine")]
    said(monkeypatch, "too long\nunlucky\nshort\n")
    assert talk(server) == 1
    shown = capsys.readouterr()
    assert shown.out == "so \nfine\n"
    assert shown.err.splitlines() == [
        f"error: {server.url}: answered with status 400: {long}",
        f"error: {server.url}: the answer ended with an error: the worker ended",
    ]
    assert server.requests[2][1]["messages"] == [{"role": "user", "content": "short"}]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (400, {"error": {"code": 400, "message": "this model has no chat template: send 'prompt'"}}),
            "no chat template",
        ),
        (
            (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: writer"}),
            "answered with status 404: Model not found: writer; check the name in the URL$",
        ),
        ((503, b"<html>\n busy </html>"), r"answered with status 503: <html> busy </html>$"),
        ((500, b""), r"answered with status 500: no reason was given$"),
        ((500, b"[" * 5000), r"answered with status 500: \[+$"),
        ((400, {"error": {"message": "\x1b[2Jgone\r\n"}}), "answered with status 400: ␛\\[2Jgone$"),
        ((200, {"choices": []}), "the answer is no stream of text; is a language model served there"),
        ([chunk("half")], r"the answer broke off; the worker or the server was stopped$"),
        ([b"data: {\n\n"], r"the answer holds what is none of OpenAI's chunks \(Expecting"),
        ([event([1])], r"none of OpenAI's chunks \(no choices in it\)$"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], r"none of OpenAI's chunks \(maximum recursion"),
        ([b"data: " + b"x" * (1 << 21) + b"\n\n"], r"none of OpenAI's chunks \(Expecting value"),
        ([*[chunk("x" * (1 << 19))] * 9, b"data: [DONE]\n\n"], "the answer is longer than the 4194304 characters"),
    ],
)
def test_what_goes_wrong_is_one_sentence(server: Server, answer: Any, message: str) -> None:
    server.answers = [answer]
    conversation = Conversation(server.url, token=KEY)
    with pytest.raises(RequestError, match=f"^{server.url}: .*{message}") as failed:
        list(conversation.ask("hi"))
    assert len(str(failed.value).splitlines()) == 1 and len(str(failed.value)) < 700
    assert conversation.messages == []


def test_tokens_and_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    said(monkeypatch, "hi\n")
    assert main(["chat", server.url]) == 1
    assert capsys.readouterr().err.rstrip().endswith("; give --token or --key-file (TorchServe's key_file.json)")
    said(monkeypatch, "hi\n")
    assert main(["chat", server.url, "--token", "old"]) == 1
    assert capsys.readouterr().err.rstrip().endswith("not provided correctly; the token is wrong or has expired")
    (port,) = free_ports(1)
    said(monkeypatch, "hi\nho\n")
    assert main(["chat", f"http://127.0.0.1:{port}/predictions/writer"]) == 1
    (line,) = capsys.readouterr().err.splitlines()  # the second line is not tried
    assert line.endswith("/predictions/writer: connection refused; is TorchServe running there (`make serve`)?")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080/predictions/x",
        "grpc://127.0.0.1:7070/x",
        "http://127.0.0.1:8080/x",
        "http://127.0.0.1:8080/predictions/",
        "http://127.0.0.1:eight/predictions/x",
        "http://me:secret@127.0.0.1/predictions/x",
        "http://127.0.0.1/predictions/x?a=b",
        "http://127.0.0.1/predictions/x/v1/chat/completions",
        "http:///predictions/x",
    ],
)
def test_other_urls(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"expected http\(s\)://HOST:PORT/predictions/NAME, or a base URL"):
        Conversation(url)
    with pytest.raises(UsageError, match="the token holds characters that no HTTP header may have"):
        Conversation("http://127.0.0.1/predictions/x", token="a\nb")
    assert main(["chat", url]) == 2
    assert capsys.readouterr().err.startswith(f"error: URL {url!r}: expected")


@pytest.mark.parametrize("option", [["--max-tokens", "0"], ["--temperature", "nan"], ["--temperature", "-1"]])
def test_settings_that_make_no_sense(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(["chat", "http://127.0.0.1/predictions/x", *option])
    assert "is expected" in capsys.readouterr().err


def test_text_that_is_no_text(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert talk(server) == 2
    assert capsys.readouterr().err == "error: standard input is not utf-8: invalid continuation byte\n"
    assert server.requests == []


def test_nothing_of_a_model_s_text_is_a_command_to_the_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean("a\tb\nc größe 🎬 👩\u200d🔬") == "a\tb\nc größe 🎬 👩\u200d🔬"
    assert (
        clean("\x1b]0;title\x07\x9b2J\x7f\r\n\x00\x08\u202e\u2066\ud800") == "␛]0;title␇\ufffd2J␡\n␀␈\ufffd\ufffd\ufffd"
    )
    every = "".join(map(chr, range(0x300)))
    kept = [character for character in clean(every) if ord(character) < 0x300]
    assert kept == [c for c in every if c in "\t\n" or " " <= c <= "~" or ord(c) >= 0xA0]
    server.answers = [pieces("\x1b", "[31mred", "\r\n", "\ud83d")]  # also in pieces, and half a character
    said(monkeypatch, "hi\n")
    assert talk(server) == 0
    assert capsys.readouterr().out == "␛[31mred\n\ufffd\n"


@pytest.mark.parametrize(("finish", "told"), [("length", "--max-tokens"), ("time", "server's time")])
def test_a_text_that_was_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finish: str, told: str
) -> None:
    server.answers = [pieces("so it", finish=finish)]
    said(monkeypatch, "hi\n")
    assert talk(server) == 0
    shown = capsys.readouterr()
    assert shown.out == "so it\n" and shown.err.startswith("[cut off: ") and told in shown.err


def test_an_error_does_not_end_a_conversation_that_can_go_on(server: Server) -> None:
    server.answers = [pieces("one"), (503, {"error": {"message": "busy"}}), pieces("two")]
    conversation = Conversation(server.url, token=KEY, system="s")
    assert "".join(conversation.ask("a")) == "one"
    with pytest.raises(Refused, match="status 503: busy$"):
        list(conversation.ask("b"))
    assert "".join(conversation.ask("c")) == "two"
    assert [message["content"] for message in conversation.messages] == ["s", "a", "one", "c", "two"]
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "s"}]


def test_in_a_terminal(server: Server) -> None:
    """Ctrl-C stops an answer, /clear forgets, an error is told, Ctrl-D ends."""
    server.gate = threading.Event()
    server.answers = [pieces("one ", "two "), (503, {"error": {"message": "busy"}}), pieces("\x1b[0mnew")]
    terminal, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "archiver", "chat", server.url, "--token", KEY],
        cwd=ROOT, stdin=its, stdout=its, stderr=its, start_new_session=True,
        env={**os.environ, "TERM": "dumb"}, preexec_fn=heed_interrupts,
    )  # fmt: skip
    os.close(its)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, f"{text!r} did not come: {shown!r}"
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096)
        shown = shown.partition(text)[2]

    def type_in(text: bytes) -> None:
        os.write(terminal, text)

    try:
        until(b"Ctrl-D ends.")
        until(b"> ")
        type_in(b"count\n")
        until(b"one ")
        os.kill(process.pid, signal.SIGINT)  # what the terminal makes of Ctrl-C in its own session
        until(b"[stopped]")
        until(b"> ")
        server.gate.set()
        type_in(b"more\n")
        until(b"status 503: busy")
        until(b"> ")
        type_in(b"/clear\n")
        until(b"> ")
        type_in(b"anew\n")
        until("␛[0mnew".encode())
        until(b"> ")
        type_in(b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    sent = [[message["content"] for message in body["messages"]] for _, body in server.requests]
    assert sent == [["count"], ["count", "one ", "more"], ["anew"]]
