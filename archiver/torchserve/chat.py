"""`marpress chat`: a conversation with a served language model, in the terminal or line by line from a pipe."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from archiver.torchserve.client import Answer, RequestError, UsageError, connect, read_key, token_hint, unanswered

HELP = "Ctrl-C stops an answer, /clear forgets the conversation, Ctrl-D ends."
INTERRUPTED = 130
_SECONDS = 120.0  # between two pieces of an answer
_MOST_EVENT, _MOST_ERROR = 1 << 20, 1 << 16  # bytes
_MOST_ANSWER = 1 << 22  # characters
_PATH = re.compile(r"/predictions/([^/]+)(/[^/]+)?(/v1)?/?")
_CUT = {
    "length": "cut off: --max-tokens, or the room for a conversation, is used up",
    "time": "cut off: the server's time for one answer is over",
}
# What a terminal would take as a command is shown as a sign: ESC as ␛. What turns the direction of writing goes, too.
_CONTROLS: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029], 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),  # half a character
    0x0D: None,
}


class Refused(RequestError):
    """The server answered, and the answer was no text; the next message may fare better."""


class Conversation:
    """What was said so far, and the server that goes on with it.

    Args:
        url: http(s)://HOST:PORT/predictions/NAME, or its base URL for OpenAI's clients.
        token: the inference key. cacert: PEM file of the authority to trust.
        settings: keys of each request beside its messages, OpenAI's.
    Raises: UsageError for another URL, or a token that no header can carry.
    """

    def __init__(
        self,
        url: str,
        *,
        system: str | None = None,
        token: str | None = None,
        cacert: Path | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.url, name = _endpoint(url)
        if token and not (token.isascii() and token.isprintable()):
            raise UsageError("the token holds characters that no HTTP header may have; give the key as it stands")
        self._token, self._cacert = token, cacert
        self._settings = {"model": name, **(settings or {}), "stream": True}
        self._begin = [{"role": "system", "content": system}] if system is not None else []
        self.messages: list[dict[str, str]] = list(self._begin)
        self.finish: str | None = None

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._begin)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to a message, piece by piece as it comes; then `finish` says why it ended.

        An answer that nobody waits for is kept as far as it came; one that failed is forgotten with its message.

        Raises: Refused, where the server gave a reason; RequestError, where there is no answer.
        """
        self.messages.append({"role": "user", "content": text})
        self.finish = None
        parts: list[str] = []
        try:
            with contextlib.closing(self._pieces()) as pieces:
                for piece in pieces:
                    parts.append(piece)
                    yield piece
        except RequestError:
            parts.clear()
            raise
        finally:
            if parts:
                self.messages.append({"role": "assistant", "content": "".join(parts)})
            else:
                self.messages.pop()

    def _pieces(self) -> Generator[str, None, None]:
        body = json.dumps({"messages": self.messages, **self._settings}).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection = connect(self.url, self._cacert, _SECONDS)
            with contextlib.closing(connection):
                connection.request("POST", urlsplit(self.url).path, body, headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise Refused(self._refusal(Answer(response.status, response.read(_MOST_ERROR))))
                if response.getheader("Content-Type", "").partition(";")[0] != "text/event-stream":
                    raise Refused(f"{self.url}: the answer is no stream of text; is a language model served there?")
                yield from self._read(response)
        except (OSError, http.client.HTTPException) as failed:
            raise RequestError(unanswered(self.url, failed)) from failed
        except (ValueError, RecursionError) as failed:
            raise RequestError(f"{self.url}: the answer holds what is none of OpenAI's chunks ({failed})") from failed

    def _read(self, response: http.client.HTTPResponse) -> Iterator[str]:
        """The text of OpenAI's chunks. ValueError or RecursionError for what is none."""
        length = 0
        while line := response.readline(_MOST_EVENT):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            chunk = json.loads(data)
            if isinstance(chunk, dict) and "error" in chunk:
                raise Refused(f"{self.url}: the answer ended with an error: {_told(chunk)}")
            piece, finish = _choice(chunk)
            self.finish = finish or self.finish
            length += len(piece)
            if length > _MOST_ANSWER:
                raise Refused(f"{self.url}: the answer is longer than the {_MOST_ANSWER} characters that are read")
            if piece:
                yield piece
        raise RequestError(f"{self.url}: the answer broke off; the worker or the server was stopped")

    def _refusal(self, answer: Answer) -> str:
        """Why the server refused, in one sentence."""
        try:
            reason = _told(json.loads(answer.body))
        except (ValueError, RecursionError):
            reason = one_line(answer.text) or "no reason was given"
        missing = "; check the name in the URL" if answer.status == 404 else ""
        return f"{self.url}: answered with status {answer.status}: {reason}{token_hint(answer, self._token) or missing}"


def chat(
    url: str,
    *,
    system: str | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    token: str | None = None,
    key_file: Path | None = None,
    cacert: Path | None = None,
) -> int:
    """The CLI verb: in a terminal a conversation; else an answer on stdout for each line of stdin, reasons on stderr.

    Returns: in a terminal 0; else 0 when every line was answered, 1 when one was not, 130 on Ctrl-C.
    Raises: UsageError for a URL, a key file or an input that cannot be used.
    """
    given = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    conversation = Conversation(
        url,
        system=system,
        token=token if key_file is None else read_key(key_file, "inference"),
        cacert=cacert,
        settings={name: value for name, value in given.items() if value is not None},
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that does not know a character shows ?
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _talk(conversation)
    return _answer_lines(conversation)


def clean(text: str) -> str:
    """A server's text as a terminal may have it: no control characters but tab and line end, no escape sequences."""
    return text.translate(_CONTROLS)


def one_line(text: str, most: int = 500) -> str:
    """The same in one line of at most `most` characters."""
    return clean(" ".join(text.split()))[:most]


def _talk(conversation: Conversation) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its keys and its history
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if line == "/clear":
            conversation.clear()
        elif line:
            try:
                _show(conversation, line)
            except KeyboardInterrupt:
                print(" [stopped]")
            except RequestError as failed:
                print(f"error: {failed}", file=sys.stderr)


def _answer_lines(conversation: Conversation) -> int:
    failures = 0
    try:
        for line in sys.stdin:
            if not line.strip():
                continue
            try:
                _show(conversation, line.strip())
            except Refused as failed:
                failures += 1
                print(f"error: {failed}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not {error.encoding}: {error.reason}") from error
    return 1 if failures else 0


def _show(conversation: Conversation, text: str) -> None:
    """Print an answer as it comes, and end its line."""
    begun = False
    with contextlib.closing(conversation.ask(text)) as pieces:
        try:
            for piece in pieces:
                begun = True
                print(clean(piece), end="", flush=True)
        except RequestError:
            if begun:
                print()
            raise
    print()
    if conversation.finish in _CUT:
        print(f"[{_CUT[conversation.finish]}]", file=sys.stderr)


def _endpoint(url: str) -> tuple[str, str]:
    """Where chats are sent, and the model's name, by the URL that a user knows."""
    try:
        parts = urlsplit(url)
        match = _PATH.fullmatch(parts.path) if parts.port is None or parts.port else None
    except ValueError:  # a port that is no number
        match = None
    if match is None or parts.scheme not in ("http", "https") or not parts.hostname or set(url) & set("@?#"):
        raise UsageError(
            f"URL {url!r}: expected http(s)://HOST:PORT/predictions/NAME, or a base URL for OpenAI clients, "
            "http(s)://HOST:PORT/predictions/NAME/v1"
        )
    # An archive's own address takes chats as they are; below its version they have a path of their own.
    below = "/chat/completions" if match[2] else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}{below}", match[1]


def _choice(chunk: Any) -> tuple[str, str | None]:
    """The new text of a chunk, and why the text ended where it has."""
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    if not isinstance(choices, list):
        raise ValueError("no choices in it")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    delta = choice.get("delta")
    piece = delta.get("content") if isinstance(delta, dict) else None
    finish = choice.get("finish_reason")
    return piece if isinstance(piece, str) else "", finish if isinstance(finish, str) else None


def _told(body: Any) -> str:
    """The sentence of an error's body: OpenAI's, ours or TorchServe's."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return one_line(message if isinstance(message, str) else json.dumps(body)) or "no reason was given"
