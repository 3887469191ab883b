"""Clients that read streams, in a process of their own, with the time of every event: what a user of REST would see."""

import json
import subprocess
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

from archiver.torchserve.server import TorchServe

_CLIENT = """
import http.client, json, sys, threading, time
host, port, key, name, tokens = sys.argv[1:]
prompts = json.load(sys.stdin)
found = [None] * len(prompts)
def read(index):
    connection = http.client.HTTPConnection(host, int(port), timeout=600)
    connection.connect()
    body = json.dumps({"inputs": prompts[index], "parameters": {"max_new_tokens": int(tokens)}, "stream": True})
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
    sent = time.monotonic()
    connection.request("POST", "/predictions/" + name, body, headers)
    answer = connection.getresponse()
    first, events = None, 0
    while part := answer.read1(65536):
        events += part.count(b"data: ")
        first = first or time.monotonic()
    found[index] = [answer.status, sent, first, time.monotonic(), events]
threads = [threading.Thread(target=read, args=(index,)) for index in range(len(prompts))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Reading:
    """One stream: seconds of the same clock when the request was sent, its first event came and its last byte."""

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
    command = [sys.executable, "-c", _CLIENT, str(url.hostname), str(url.port), server.inference_key or "", name]
    done = subprocess.run(
        [*command, str(tokens)], input=json.dumps(prompts), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr[-500:]}")
    readings = []
    for status, sent, first, ended, events in json.loads(done.stdout):
        if status != 200 or first is None:
            raise RuntimeError(f"a stream was answered with status {status}")
        readings.append(Reading(sent, first, ended, events))
    return readings
