"""Tokens per second of one language model's archive against another's in process: the same prompts, in turns in one run.

    python -m benchmarks.generation_pair FAST.mar PLAIN.mar TEXT.txt [--streams 1,8] [--rounds 9]

Each stream reads 32 tokens and writes 64, straight on the archive's own runtime.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from statistics import median

from archiver.evaluation.generation_speed import run_streams
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from handlers.cpu import container_cores
from handlers.inputs.text import TextInput
from handlers.tasks.text.generation import TextGenerationHandler

READ, WRITTEN = 32, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fast", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")[:1_000_000]
    with contextlib.ExitStack() as stack:
        handlers = []
        for path in (options.fast, options.plain):
            folder = stack.enter_context(extracted(path))[0]
            handler = handler_of(folder)
            assert isinstance(handler, TextGenerationHandler), f"{path.name} holds no language model"
            handler.open(folder, threads=container_cores())
            handlers.append(handler)
        ids = [handler.input.encoder.encode([TextInput(text)], truncate=False)[0].ids for handler in handlers]
        place = 0
        for streams in map(int, options.streams.split(",")):
            rates: tuple[list[float], list[float]] = ([], [])
            for turn in range(options.rounds + 1):
                starts = [place + index * READ for index in range(streams)]
                place += streams * READ  # each prompt once: prefix caching must not help
                for side, handler in enumerate(handlers):
                    prompts = [ids[side][start : start + READ] for start in starts]
                    started = time.perf_counter()
                    tokens = run_streams(handler.backend, prompts, WRITTEN)
                    if turn:
                        rates[side].append(tokens / (time.perf_counter() - started))
            ratios = sorted(a / b for a, b in zip(*rates, strict=True))
            print(
                f"{streams} streams: {median(rates[0]):.0f} against {median(rates[1]):.0f} tokens/s, "
                f"{median(ratios):.2f} × ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
