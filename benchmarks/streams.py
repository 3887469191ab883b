"""Clients that read streams, in a process of their own, with the time of every event: what a user of REST would see."""

import json
import subprocess
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

from archiver.torchserve.server import TorchServe

_CLIENT = """
import http.client, json, sys, threading, time
place, path, authorization = sys.argv[1:]
bodies = json.load(sys.stdin)
found = [None] * len(bodies)
def read(index):
    connection = http.client.HTTPConnection(place, timeout=600)
    connection.connect()
    headers = {"Content-Type": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    sent = time.monotonic()
    connection.request("POST", path, bodies[index], headers)
    answer = connection.getresponse()
    first, events = None, 0
    while part := answer.read1(65536):
        events += part.count(b"data: ")
        first = first or time.monotonic()
    found[index] = [answer.status, sent, first, time.monotonic(), events]
threads = [threading.Thread(target=read, args=(index,)) for index in range(len(bodies))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Reading:
    """One stream: seconds of the same clock when the request was sent, its first event came and its last byte.

    tokens: its events, `[DONE]` and what else is no token among them.
    """

    sent: float
    first: float
    ended: float
    tokens: int

    @property
    def ttft(self) -> float:
        return self.first - self.sent


def read_streams(server: TorchServe, name: str, prompts: list[str], tokens: int) -> list[Reading]:
    """All prompts at once, each with its own connection; RuntimeError when one is not answered."""
    url = urlsplit(server.inference_url)
    asked = {"parameters": {"max_new_tokens": tokens}, "stream": True}
    bodies = [json.dumps({"inputs": prompt, **asked}) for prompt in prompts]
    authorization = f"Bearer {server.inference_key}" if server.inference_key else ""
    return read_bodies(f"{url.hostname}:{url.port}", f"/predictions/{name}", authorization, bodies)


def read_bodies(place: str, path: str, authorization: str, bodies: list[str]) -> list[Reading]:
    """The same for any server of such streams.

    Args:
        place: host:port. authorization: that header, or "". bodies: one a stream.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, place, path, authorization],
        input=json.dumps(bodies), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr[-500:]}")
    readings = []
    for status, sent, first, ended, events in json.loads(done.stdout):
        if status != 200 or first is None:
            raise RuntimeError(f"a stream was answered with status {status}")
        readings.append(Reading(sent, first, ended, events))
    return readings
