"""`make bench-language PART="peer ARCHIVE.mar MODEL_DIR"`: chats with an archive, then with `transformers serve`.

transformers serves the model that the archive was made of, in the precision of its checkpoint, from an environment of its
own (.bench-peers, in the current directory): as it starts by itself, and with its continuous batching. All are asked in
OpenAI's form, greedily. Told: tokens a second of 1, 8 and 16 chats at once that write 64 tokens each; memory of each.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import psutil

from archiver.torchserve.client import predict_rest
from benchmarks.peers.servers import Running, Unstarted, environment, process, torchserve
from benchmarks.table import SHARED

# requests is missing in what transformers[serving] asks for.
PACKAGES = ("transformers[serving]==5.5.4", "torch==2.13.0", "requests==2.34.2")
CHATS, WRITTEN, ROUNDS = (1, 8, 16), 64, 3
PROMPT = 130  # characters


def transformers_peer(archive: Path, model: Path) -> None:
    """A row for each server."""
    name = archive.stem
    place = Path(".bench-peers").absolute()
    program = environment("transformers", PACKAGES).with_name("transformers")
    common = [str(program), "serve", str(model.resolve()), "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu"]

    def theirs(more: Sequence[str]) -> AbstractContextManager[Running]:
        ask = partial(_chat, str(model.resolve()))
        return process([*common, *more], place, "v1/chat/completions", ask, {"HF_HUB_OFFLINE": "1"})

    sides: dict[str, Callable[[], AbstractContextManager[Running]]] = {
        "archive": lambda: torchserve(archive, f"predictions/{name}/v1/chat/completions", partial(_chat, name)),
        "transformers serve": lambda: theirs([]),
        "transformers serve --continuous-batching": lambda: theirs(["--continuous-batching"]),
    }
    text = (SHARED / "data/docs/validation.txt").read_text(encoding="utf-8")
    every = [text[start : start + PROMPT] for start in range(0, len(text) - PROMPT, PROMPT)]
    print("| | " + " | ".join(f"{count} chats, tokens/s" for count in CHATS) + " | PSS, MB |")
    print("|---|" + "---|" * (len(CHATS) + 1))
    for side, start in sides.items():
        prompts = iter(every)  # none is read twice
        with start() as server:
            try:
                _wait(server, next(prompts))
            except Unstarted as reason:
                print(f"| {side} | does not start: {reason} |" + " |" * len(CHATS), flush=True)
                continue
            rates = [median(_rate(server, list(islice(prompts, chats))) for _ in range(ROUNDS)) for chats in CHATS]
            memory = sum(psutil.Process(pid).memory_full_info().pss for pid in server.pids()) / 1e6
            print(f"| {side} | {' | '.join(f'{rate:.1f}' for rate in rates)} | {memory:.0f} |", flush=True)


def _chat(model: str, text: str) -> object:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": WRITTEN, "temperature": 0}


def _wait(server: Running, prompt: str) -> None:
    """Until it answers. Raises: Unstarted."""
    until, said = time.monotonic() + 180, ""
    while time.monotonic() < until:
        if (ended := server.ended()) is not None:
            raise Unstarted(ended)
        try:
            _tokens(server, prompt)
            return
        except Exception as reason:  # it does not listen yet
            said = str(reason)[:200]
        time.sleep(0.5)
    raise Unstarted(f"no answer within 180 s; last: {said}")


def _rate(server: Running, prompts: Sequence[str]) -> float:
    """Tokens a second of all chats together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        tokens = sum(pool.map(lambda prompt: _tokens(server, prompt), prompts))
    return tokens / (time.perf_counter() - started)


def _tokens(server: Running, prompt: str) -> int:
    """How many were written as the answer to a prompt."""
    address = f"http://{server.host}:{server.port}/{server.path}"
    answer = predict_rest(address, json.dumps(server.body(prompt)).encode(), token=server.token, timeout=600)
    if not answer.ok:
        raise RuntimeError(f"status {answer.status}: {answer.text[:200]}")
    return int(json.loads(answer.body)["usage"]["completion_tokens"])
