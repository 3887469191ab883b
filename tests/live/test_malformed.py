"""Two thousand bodies that are wrong, with right ones in between: each is told so, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from live_client import FORM, Grpc, Reply, Rest
from malformed import Case, cases
from served import Served

from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput

COUNT = 2000
CLIENTS = 8
RIGHT_EVERY = 8
MODELS = ("films", "tags", "plain")
TEXTS = ("this film is very good", "a dull and boring story", "größe 🎬", "not one funny scene")


def test_two_thousand_malformed_requests(server: TorchServe, archives: dict[str, Served]) -> None:
    made = cases(COUNT, seed=20)
    assert len(made) == COUNT
    workers = {name: server.workers(name) for name in MODELS}
    died = _deaths(server)
    shares = [made[start::CLIENTS] for start in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = list(pool.map(lambda item: _client(server, archives, *item), enumerate(shares)))
    wrong = [sentence for found, _ in outcomes for sentence in found]
    assert not wrong, f"{len(wrong)} wrong: " + "\n".join(wrong[:10])
    sent = sum((count for _, count in outcomes), Counter())
    assert sent["rest"] + sent["grpc"] == COUNT
    assert sent["rest"] > 900 and sent["grpc"] > 500, sent
    assert sent["right"] >= COUNT // RIGHT_EVERY
    assert {name: server.workers(name) for name in MODELS} == workers
    assert _deaths(server) == died


def test_a_body_beyond_the_frontends_limit_is_its_own_affair(server: TorchServe) -> None:
    workers = server.workers("films")
    for body in (b"x" * 34_000_000, b'{"inputs": "' + b"y" * 40_000_000):
        # The server answers and closes while the body is still on its way.
        with Rest(server) as rest, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            assert rest.post("films", body).status == 413
        with Grpc(server) as grpc:
            assert grpc.predict("films", body).status in (413, 500)
            assert grpc.predict("films", b"a fine film").status == 200
    assert server.workers("films") == workers


def test_a_form_without_boundary_fails_in_the_frontend_alone(server: TorchServe) -> None:
    workers = server.workers("films")
    with Rest(server) as rest:
        reply = rest.post("films", b"a fine film", "multipart/form-data; boundary=")
        assert (reply.status, reply.value["type"]) == (500, "StringIndexOutOfBoundsException")
        assert rest.post("films", b"a fine film", "text/plain").status == 200
    assert server.workers("films") == workers


def _client(
    server: TorchServe, archives: dict[str, Served], number: int, share: list[Case]
) -> tuple[list[str], Counter[str]]:
    """Send one client's cases in turn; returns what was answered wrongly, and how many went which way."""
    wrong: list[str] = []
    sent: Counter[str] = Counter()
    with Rest(server) as rest, Grpc(server) as grpc:
        for index, case in enumerate(share):
            name = MODELS[(index + number) % len(MODELS)]
            over_grpc = case.grpc and (index + number) % 5 < 2
            reply = grpc.predict(name, case.body) if over_grpc else _post(rest, name, case)
            sent["grpc" if over_grpc else "rest"] += 1
            if not _is_refusal(reply) and not (case.content_type == FORM and _is_frontends_own(reply)):
                how = "gRPC" if over_grpc else f"REST {str(case.content_type)[:40]} {str(case.headers)[:80]}"
                wrong.append(f"{case.kind} {case.body[:60]!r} over {how}: {reply.status} {reply.body[:120]!r}")
            if index % RIGHT_EVERY == 0:
                text = TEXTS[(index // RIGHT_EVERY) % len(TEXTS)]
                body = {"inputs": text}
                reply = rest.post(name, body) if index % 16 else grpc.predict(name, body)
                (expected,) = archives[name].handler.respond([TextInput(text)])
                sent["right"] += 1
                if (
                    reply.status != 200
                    or archives[name].handler.compare(expected, reply.value) > archives[name].tolerance
                ):
                    wrong.append(f"right request {text!r} to {name}: {reply.status} {reply.body[:200]!r}")
    return wrong, sent


def _post(rest: Rest, name: str, case: Case) -> Reply:
    return rest.post(name, case.body, case.content_type, case.headers)


def _is_refusal(reply: Reply) -> bool:
    """{"error": {"code": 400, "message": …}} with status 400, by the handler."""
    try:
        error = json.loads(reply.body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return (
        reply.status == 400
        and set(error) == {"code", "message"}
        and error["code"] == 400
        and len(error["message"]) > 10
    )


def _is_frontends_own(reply: Reply) -> bool:
    """TorchServe parses forms itself; on bytes that are none it may fail, for this request alone."""
    return reply.status == 500 and reply.value["type"] == "ErrorDataDecoderException"


def _deaths(server: TorchServe) -> int:
    """How often the log tells of a worker that died, or was started again."""
    said = (server.folder / "logs" / "ts_log.log").read_text(errors="replace")
    return len(re.findall(r"Retry worker|Worker disconnected|worker died|State change WORKER_MODEL_LOADED -> ", said))
