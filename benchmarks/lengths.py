"""Long texts among short ones, served: how much later the short ones are answered than where they are alone.

python -m benchmarks.lengths ARCHIVE [--clients 64] [--seconds 10] [--rounds 3]: of a text archive with a max_length from
400. 19 of 20 requests have 20 tokens, one has 400, all over REST; the same clients then send the short ones alone. In
turns on one server; p50 and p99 are medians over the rounds.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from archiver.bench.load import Load, LoadResult, generate
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.torchserve.server import TorchServe
from archiver.torchserve.settings import addresses
from benchmarks.table import ROOT
from handlers.inputs.text import TextInput

SHORT, LONG = 20, 400  # tokens, the special ones included
EVERY = 20  # of so many requests one is long
BODIES = 400
WORDS = "the film story actor good bad long dull funny man dog cat runs eats fast slow day night sea sun"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    short, long = _texts(options.archive)
    mixed = [long[place] if place % EVERY == EVERY - 1 else short[place] for place in range(BODIES)]
    kinds = ["long" if place % EVERY == EVERY - 1 else "short" for place in range(BODIES)]
    with TorchServe([options.archive], config=ROOT / "config.properties") as server:
        server.wait_ready(300)
        found: dict[str, list[LoadResult]] = {"alone": [], "mixed": []}
        for turn in range(-1, options.rounds):
            for name in ("alone", "mixed") if turn % 2 else ("mixed", "alone"):
                sent = (short, ["short"] * BODIES) if name == "alone" else (mixed, kinds)
                result = _load(server, sent, options.clients, options.seconds if turn >= 0 else 5.0)
                if turn >= 0:  # the first turn warms up
                    found[name].append(result)
    print("| | requests/s | short: p50 · p99, ms | long: p50 · p99, ms |\n|---|---|---|---|")
    for name, results in found.items():
        rate = median(one.throughput for one in results)
        print(f"| {name} | {rate:.0f} | {_shown(results, 'short')} | {_shown(results, 'long')} |")
    alone, among = (median(one.kinds["short"][1] for one in found[name]) for name in ("alone", "mixed"))
    print(f"p99 of the short ones among long ones ÷ alone: {among / alone:.2f}")


def _load(server: TorchServe, sent: tuple[Sequence[str], Sequence[str]], clients: int, seconds: float) -> LoadResult:
    host, port = addresses(server.properties)["inference_address"]
    texts, kinds = sent
    bodies = [json.dumps({"inputs": text}).encode() for text in texts]
    load = Load(
        "rest",
        host,
        port,
        server.models[0],
        bodies,
        token=server.inference_key,
        clients=clients,
        seconds=seconds,
        kinds=kinds,
    )
    result = generate(load)
    if result.errors:
        raise SystemExit(f"errors: {result.errors}")
    return result


def _shown(results: Sequence[LoadResult], kind: str) -> str:
    if kind not in results[0].kinds:
        return "–"
    p50, p99 = (median(one.kinds[kind][place] for one in results) for place in (0, 1))
    return f"{p50:.1f} · {p99:.1f}"


def _texts(archive: Path) -> tuple[list[str], list[str]]:
    """BODIES texts of SHORT tokens, and as many of LONG, of words that are one token each."""
    with extracted(archive) as (folder, _):
        handler: Any = handler_of(folder)
        handler.serving = json.loads((folder / "serving.json").read_text())
        if handler.serving["max_length"] < LONG:
            raise SystemExit(f"the archive cuts texts at {handler.serving['max_length']} tokens; {LONG} are needed")
        kind = handler.make_input(folder)
        words = WORDS.split()
        special = kind.size(kind.encode([TextInput("the")], {})[0]) - 1
        dice = random.Random(0)

        def text(tokens: int) -> str:
            found = " ".join(dice.choice(words) for _ in range(tokens - special))
            size = kind.size(kind.encode([TextInput(found)], {})[0])
            if size != tokens:
                raise SystemExit(f"the tokenizer makes {size} tokens of {tokens - special} words")
            return found

        return [text(SHORT) for _ in range(BODIES)], [text(LONG) for _ in range(BODIES)]


if __name__ == "__main__":
    main()
