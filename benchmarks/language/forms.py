"""`make bench-language PART="forms chat.mar"`: a served language model with a chat template, held to JSON schemas, and
asked in OpenAI's form and in Hugging Face's, in turns.
"""

import json
import random
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe
from benchmarks.language.capital import prompt_of
from benchmarks.language.schemas import bounded, fits
from benchmarks.streams import read_bodies
from benchmarks.table import ROOT

SCHEMAS, ROOM = 200, 600  # ROOM: tokens of an answer, more than any of the schemas can take
STREAMS, TOKENS, ROUNDS = 16, 128, 6


def forms(archive: Path) -> None:
    """Print how many of SCHEMAS answers are one of their schema, and tokens/s of OpenAI's form ÷ Hugging Face's."""
    with TorchServe([archive], config=ROOT / "config.properties") as server:
        server.wait_ready(300)
        with ThreadPoolExecutor(STREAMS) as pool:
            right = sum(pool.map(lambda seed: _is_one(server, seed), range(SCHEMAS)))
        print(f"{right} of {SCHEMAS} answers are one of their JSON schema", flush=True)
        ratios = _ratios(server, archive)
    print(
        f"{STREAMS} streams of {TOKENS} tokens, OpenAI's chats ÷ Hugging Face's form: {median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {ROUNDS} rounds)"
    )
    if right < SCHEMAS:
        sys.exit(1)


def _is_one(server: TorchServe, seed: int) -> bool:
    schema = bounded(random.Random(seed))
    body = {
        "messages": [{"role": "user", "content": f"Give me an example object, number {seed}."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "max_tokens": ROOM,
        "temperature": 0.7,
        "seed": seed,
    }
    answer = _post(server, "/v1/chat/completions", body)
    (choice,) = answer["choices"]
    return choice["finish_reason"] == "stop" and fits(json.loads(choice["message"]["content"]), schema)


def _post(server: TorchServe, path: str, body: Mapping[str, Any]) -> Any:
    address = server.prediction_url(server.models[0]) + path
    answer = predict_rest(address, json.dumps(body).encode(), token=server.inference_key)
    if not answer.ok:
        sys.exit(f"{path} was answered with status {answer.status}: {answer.text[:500]}")
    return json.loads(answer.body)


def _ratios(server: TorchServe, archive: Path) -> list[float]:
    """OpenAI's tokens/s over Hugging Face's in each round; both write the same texts. A round before counts for nothing."""
    asked = [[{"role": "user", "content": f"Write a story about the number {index}."}] for index in range(STREAMS)]
    name, url = server.models[0], urlsplit(server.inference_url)
    chats = [{"messages": one, "max_tokens": TOKENS, "temperature": 0, "stream": True} for one in asked]
    parameters = {"max_new_tokens": TOKENS, "do_sample": False}
    texts = [{"inputs": prompt_of(archive, one), "parameters": parameters, "stream": True} for one in asked]
    paths = {f"/predictions/{name}/v1/chat/completions": chats, f"/predictions/{name}": texts}

    def seconds(path: str) -> float:
        bodies = list(map(json.dumps, paths[path]))
        readings = read_bodies(f"{url.hostname}:{url.port}", path, f"Bearer {server.inference_key}", bodies)
        return max(one.ended for one in readings) - min(one.sent for one in readings)

    found = []
    chat, text = paths
    for _ in range(ROUNDS + 1):
        taken = [(path, seconds(path)) for path in (chat, text, text, chat)]
        found.append(sum(s for path, s in taken if path == text) / sum(s for path, s in taken if path == chat))
    return found[1:]
