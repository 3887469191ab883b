"""Sentence embeddings: all-MiniLM-L6-v2 behind marpress and behind infinity, asked in OpenAI's form."""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from archiver.models.source import resolve_model
from archiver.pipeline.build import build
from archiver.recipe.load import load_recipe
from benchmarks.peers import classifiers
from benchmarks.peers.servers import Running, environment, process, torchserve
from benchmarks.table import RECIPES

MODEL = "embedded:all-MiniLM-L6-v2"
NAME = "minilm"
PATH = f"{NAME}/v1/embeddings"  # behind /predictions/, for all of them
# torch: a CPU build is enough. optimum is what its ONNX engine asks for.
INFINITY = ("infinity-emb[server,torch,optimum]==0.0.78", "torch==2.13.0")
SIDES = ("marpress", "marpress-int8", "infinity-torch", "infinity-optimum")

texts = classifiers.texts


def sides(folder: Path) -> dict[str, Callable[[], AbstractContextManager[Running]]]:
    """Name → what starts the server: the default recipe, static int8, and infinity's two engines for CPUs."""
    # The same task twice: the similarity of pairs is another, and has no such address.
    static = load_recipe(RECIPES / "sentence-similarity.yaml", [f"name={NAME}", "task=feature-extraction"])
    ours = {
        "marpress": build(load_recipe(RECIPES / "default.yaml", [f"name={NAME}"]), folder / "default").path,
        "marpress-int8": build(static, folder / "static").path,
    }
    return {
        "marpress": lambda: torchserve(ours["marpress"], PATH, _body),
        "marpress-int8": lambda: torchserve(ours["marpress-int8"], PATH, _body),
        "infinity-torch": lambda: _infinity("torch", folder),
        "infinity-optimum": lambda: _infinity("optimum", folder),
    }


def _body(text: str) -> object:
    return {"model": NAME, "input": text}


def _infinity(engine: str, folder: Path) -> AbstractContextManager[Running]:
    program = environment("infinity", INFINITY).with_name("infinity_emb")
    place = folder / f"infinity-{engine}"
    place.mkdir(exist_ok=True)
    model = resolve_model(MODEL).path
    if engine == "optimum" and not (place / "model.onnx").exists():
        export = [str(program.with_name("optimum-cli")), "export", "onnx", "--model", str(model)]
        subprocess.run([*export, "--task", "feature-extraction", "--library", "transformers", str(place)], check=True)
    command = [
        # Its ONNX engine looks up a folder as a name on the hub, unless it is the current one.
        str(program), "v2", "--model-id", "." if engine == "optimum" else str(model), "--served-model-name", NAME,
        "--engine", engine, "--device", "cpu", "--host", "127.0.0.1", "--port", "{port}",
        "--url-prefix", f"/predictions/{NAME}/v1", "--no-bettertransformer", "--log-level", "error",
    ]  # fmt: skip
    return process(command, place, PATH, _body, {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"})
