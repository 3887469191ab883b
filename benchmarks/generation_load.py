"""A language model's archive in process: what a long prompt costs the streams beside it, and what guessing ahead wins.

    python -m benchmarks.generation_load ARCHIVE.mar [--rounds 5] [--threads N] [beside] [alone] [lookup] [grammar]

beside: 8 streams' tokens/s while a prompt of 2 000 tokens is read, against the same streams just before.
alone: seconds to the first token of such a prompt where nothing else runs.
lookup: the archive as it is served against the same without guessing from the prompt, 1 and 8 streams, on passages that
are to be written again and on running text; and whether the texts are the same.
grammar: 8 streams that have to match a JSON schema against 8 that are free, greedy and drawn, nothing guessed ahead.
Sides take turns; medians of the rounds. The texts are those of data/docs (environment variable MARPRESS_SHARED, or
../shared beside the repository).
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from benchmarks.table import SHARED
from handlers.cpu import container_cores
from handlers.generation.engine import Engine, Job
from handlers.generation.grammar import Grammars
from handlers.inputs.text import TextInput
from handlers.protocols.continuation import Sampling
from handlers.protocols.grammar import ANY_OBJECT, SCHEMA, Grammar, of_schema
from handlers.tasks.text.generation import TextGenerationHandler

STREAMS, LONG, SHORT = 8, 2000, 32
PASSAGE, WRITTEN = 160, 128  # of the texts that are guessed ahead
BEFORE = 1.5  # seconds for which the streams are watched before the prompt comes
AGAIN = "Write this text again, word by word:\n\n{}\n\nThe text again:\n\n"
PEOPLE = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "colour": {"enum": ["red", "green", "blue"]},
            "words": {"type": "array", "items": {"type": "string", "maxLength": 10}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age", "colour", "words"],
        "additionalProperties": False,
    },
}
ASSISTANCE = ("draft", "prompt_lookup", "assistant_tokens", "assist_up_to")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("parts", nargs="*", choices=["beside", "alone", "lookup", "grammar", []], metavar="PART")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=container_cores())
    options = parser.parse_intermixed_args()
    if not SHARED.is_dir():
        sys.exit(f"no real data at {SHARED}: set MARPRESS_SHARED")
    parts = options.parts or ["beside", "alone", "lookup", "grammar"]
    with extracted(options.archive) as (folder, _):
        bench = Bench(folder, options.threads)
        if {"beside", "alone"} & set(parts):
            engine = bench.engine(bench.session)
            bench.write(engine, [bench.take(LONG // 4)], 4)  # one untimed
            if "beside" in parts:
                told("streams beside a prompt / before", [bench.beside(engine) for _ in range(options.rounds)])
            if "alone" in parts:
                told("seconds to a lone prompt's first token", [bench.alone(engine) for _ in range(options.rounds)])
            engine.close()
        if "lookup" in parts:
            bench.lookup(options.rounds)
        if "grammar" in parts:
            bench.grammar(options.rounds)
    return 0


def told(name: str, found: Sequence[float]) -> None:
    print(f"{name}: {median(found):.3f} ({min(found):.3f} to {max(found):.3f})", flush=True)


class Bench:
    """An archive's engine, without end tokens, and texts of which each is handed out once: prefix caching must not help."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        handler = handler_of(folder)
        assert isinstance(handler, TextGenerationHandler), f"{folder} holds no language model"
        handler.open(folder, threads=threads)
        handler.engine.close()
        self._runtime = handler.runtime
        self.session: dict[str, Any] = handler.serving["session"]
        self._encoder = handler.input.encoder
        self._end_ids: list[int] = handler.serving["end_ids"]
        del handler.backend, handler.engine
        text = (SHARED / "data/docs/train.txt").read_text(encoding="utf-8")[:1_500_000]
        self._ids = self.encode(text)
        self._next = 0

    def encode(self, text: str) -> list[int]:
        return list(self._encoder.encode([TextInput(text)], truncate=False)[0].ids)

    def take(self, length: int) -> list[int]:
        self._next += length
        return self._ids[self._next - length : self._next]

    def engine(self, session: dict[str, Any]) -> Engine:
        backend = self._runtime(self._folder, session, self._threads, ())
        return Engine(backend, self._encoder.tokenizer, max_running=session["max_running"], max_waiting=64)

    def write(
        self, engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, **sampling: Any
    ) -> tuple[float, list[list[int]]]:
        """(tokens per second, the texts' ids)"""
        jobs = [Job(prompt, Sampling(tokens, **sampling)) for prompt in prompts]
        started = time.perf_counter()
        engine.generate(jobs)
        return len(jobs) * tokens / (time.perf_counter() - started), [job.ids for job in jobs]

    def alone(self, engine: Engine) -> float:
        job = Job(self.take(LONG), Sampling(1))
        engine.generate([job])
        return job.first - job.submitted

    def beside(self, engine: Engine) -> float:
        """The streams' tokens a second from the moment the prompt is sent to its first token, against those before."""
        came: list[float] = []
        started, read = threading.Event(), threading.Event()

        def listener(job: Job, text: str) -> None:
            came.extend([time.monotonic()] * (len(job.ids) - counted.get(id(job), 0)))
            counted[id(job)] = len(job.ids)
            if len(counted) == STREAMS:
                started.set()

        counted: dict[int, int] = {}
        length = self.session_length() - SHORT
        streams = [Job(self.take(SHORT), Sampling(length), listener=listener) for _ in range(STREAMS)]
        engine.submit(streams)
        started.wait()
        time.sleep(2 * BEFORE)
        prompt = Job(self.take(LONG), Sampling(1), listener=lambda job, text: read.set())
        engine.submit([prompt])
        read.wait()
        assert not any(job.done for job in streams), (
            "the streams ended too early: the archive's max_length is too small"
        )
        engine.cancel(streams)
        before = sum(prompt.submitted - BEFORE < one <= prompt.submitted for one in came) / BEFORE
        during = sum(prompt.submitted < one <= prompt.first for one in came) / (prompt.first - prompt.submitted)
        print(f"  {before:.0f} tokens/s, then {during:.0f} for {prompt.first - prompt.submitted:.2f} s", flush=True)
        return during / before

    def session_length(self) -> int:
        """Tokens of a stream: long enough to be still there when the prompt is read."""
        return LONG + SHORT

    def lookup(self, rounds: int) -> None:
        plain = self.engine({key: value for key, value in self.session.items() if key not in ASSISTANCE})
        served = self.engine(self.session)
        makers: dict[str, Callable[[], list[int]]] = {
            "passages written again": lambda: self.encode(
                AGAIN.format(self._encoder.tokenizer.decode(self.take(PASSAGE)))
            ),
            "running text": lambda: self.take(PASSAGE),
        }
        for name, make in makers.items():
            for count in (1, STREAMS):
                ratios, same, all_texts = [], 0, 0
                for turn in range(rounds + 1):
                    prompts = [make() for _ in range(count)]
                    sides = [self.write(side, prompts, WRITTEN) for side in (served, plain)]
                    if turn:
                        ratios.append(sides[0][0] / sides[1][0])
                        same += sum(a == b for a, b in zip(sides[0][1], sides[1][1], strict=True))
                        all_texts += count
                told(f"{name}, {count} streams, guessing / plain ({same} of {all_texts} texts the same)", ratios)

    def grammar(self, rounds: int) -> None:
        engine = self.engine({key: value for key, value in self.session.items() if key not in ASSISTANCE})
        grammars = Grammars(self._folder, self._end_ids)
        started = time.perf_counter()
        grammars.compiled(Grammar(SCHEMA, ANY_OBJECT))
        print(f"the tokens are read for grammars in {time.perf_counter() - started:.2f} s", flush=True)
        started = time.perf_counter()
        constraint = grammars.compiled(of_schema(PEOPLE, "the schema"))
        print(f"a grammar is compiled in {1000 * (time.perf_counter() - started):.1f} ms", flush=True)
        for name, more in (("greedy", {}), ("drawn", {"do_sample": True, "top_p": 0.9})):
            ratios = []
            for turn in range(rounds + 1):
                prompts = [self.take(SHORT) for _ in range(STREAMS)]
                held = self.write(engine, prompts, WRITTEN, constraint=constraint, **more)
                free = self.write(engine, [self.take(SHORT) for _ in prompts], WRITTEN, **more)
                assert all(len(ids) == WRITTEN for ids in held[1]), "a text ended: the schema is too small"
                ratios += [held[0] / free[0]] if turn else []
            told(f"{STREAMS} streams, {name}, by a schema / free", ratios)


if __name__ == "__main__":
    sys.exit(main())
