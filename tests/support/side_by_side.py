"""Wrong requests and right ones side by side, from several clients, over REST and gRPC."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from live_client import JSON, Grpc, Reply, Rest

from archiver.torchserve.server import TorchServe

Body = bytes | dict[str, Any]


@dataclass(frozen=True)
class Wrong:
    """A request that is refused with 400. said: a regular expression that its sentence holds; kind: its content type."""

    name: str
    body: Body
    said: str
    kind: str | None = JSON


@dataclass(frozen=True)
class Right:
    """A request that is answered. holds: whether an answer of status 200 is right."""

    name: str
    body: Body
    holds: Callable[[Any], bool]
    kind: str | None = JSON


def answered_wrongly(
    server: TorchServe, wrong: Sequence[Wrong], right: Sequence[Right], count: int = 1000, clients: int = 6
) -> list[str]:
    """Send `count` wrong requests, each with a right one behind it, half of both over gRPC.

    Returns: a line for each answer that was not as it should be, and one for each model whose workers are others now.
    """
    names = sorted({one.name for one in wrong} | {one.name for one in right})
    workers = {name: server.workers(name) for name in names}

    def client(number: int) -> list[str]:
        found = []
        with Rest(server) as rest, Grpc(server) as grpc:
            for place in range(number, count, clients):
                bad, good = wrong[place % len(wrong)], right[place % len(right)]
                turn = (place // len(wrong) + place) % 2
                refused = _sent(bad, rest, grpc, turn == 0)
                if refused.status != 400 or not re.search(bad.said, refused.message):
                    found.append(f"{bad.name} {bad.body!r:.80}: {refused.status} {refused.body[:200]!r}")
                reply = _sent(good, rest, grpc, turn == 1)
                if reply.status != 200 or not good.holds(reply.value):
                    found.append(f"right one {good.name} {good.body!r:.80}: {reply.status} {reply.body[:200]!r}")
        return found

    with ThreadPoolExecutor(clients) as pool:
        lines = [line for found in pool.map(client, range(clients)) for line in found]
    now = {name: server.workers(name) for name in names}
    return lines + [
        f"{name}: workers were {workers[name]} and are {now[name]}" for name in names if workers[name] != now[name]
    ]


def _sent(one: Wrong | Right, rest: Rest, grpc: Grpc, over_rest: bool) -> Reply:
    return rest.post(one.name, one.body, one.kind) if over_rest else grpc.predict(one.name, one.body)
