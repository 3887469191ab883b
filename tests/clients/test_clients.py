"""Other people's clients against a live server: each of their calls gives what Hugging Face's form gives.

The clients live in an environment of their own (`make test-clients`), since some disagree with the locked packages: each
script beside this file runs there, with the server's addresses and the expected answers as JSON on its standard input.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_client import Rest
from once import once
from places import ROOT
from speech_archives import HEARS, LETTERS, archives_in, build_speech_archives
from task_recipes import recipe_of
from tiny_whisper import wav

from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe

PYTHON = os.environ.get("MARPRESS_CLIENTS")
SCRIPTS = sorted(Path(__file__).parent.glob("with_*.py"))
TEXTS = ["a dull film", "not one funny scene"]
SOUND = wav(1.5, 3)
GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
TOOLS = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}"  # the form that Hermes' and Qwen's models call in
TEMPLATE = "{{ bos_token }}" + TOOLS + "{% for m in messages %}{{ m.role }} {{ m.content }} .{% endfor %}"

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="the clients have an environment of their own: make test-clients"
)


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TorchServe]:
    """writer, vectors, films and ranker: a language model with a chat template, and three tasks of one pass; hears and
    letters: speech, token by token and by frames."""
    folder = tmp_path_factory.mktemp("clients")
    llama = folder / "llama"
    shutil.copytree(tiny_model("llama", "text-generation", max_position_embeddings=1024, eos_token_id=None), llama)
    (llama / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "text.txt").write_text("\n".join(sentences) * 4)
    (folder / "labels.tsv").write_text("".join(f"{text}\t{i % 2}\n" for i, text in enumerate(sentences)))
    bert = {
        "data": {"train": "labels.tsv", "validation": "labels.tsv", "columns": {"text": 0, "label": 1}},
        "serve": {"max_length": 32, "runtime": "openvino"},
    }
    recipes: list[dict[str, Any]] = [
        {
            "name": "writer",
            "task": "text-generation",
            "model": str(llama),
            "data": {"validation": "text.txt", "context": 16},
            "serve": {"max_length": 1024, "max_inputs": 8},
        },
        {
            "name": "films",
            "task": "text-classification",
            "model": str(tiny_model("bert", "text-classification")),
            **bert,
        },
        {
            "name": "vectors",
            "task": "feature-extraction",
            "model": str(tiny_model("bert", "feature-extraction")),
            **bert,
        },
    ]
    built = []
    for recipe in recipes:
        if recipe["name"] == "vectors":
            recipe["data"] = recipe["data"] | {"columns": {"text": 0}}
        path = folder / f"{recipe['name']}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        built.append(pipeline.build(load_recipe(path), folder / "store", Progress(quiet=True)).path)
    ranking = recipe_of(
        folder / "ranking", tiny_model("bert", "text-classification", num_labels=1), "text-ranking", name="ranker"
    )
    built.append(pipeline.build(ranking, folder / "store", Progress(quiet=True)).path)
    speech = archives_in(once(tmp_path_factory, "speech-archives", build_speech_archives))
    built += [Path(shutil.copy(archive, folder / "store")) for archive in speech]
    with TorchServe(built, config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def given(server: TorchServe) -> dict[str, Any]:
    """What the scripts are told: where the server is, and what Hugging Face's form gives."""
    with Rest(server) as rest:

        def ask(name: str, inputs: Any, **parameters: Any) -> Any:
            reply = rest.post(name, {"inputs": inputs, "parameters": parameters})
            assert reply.status == 200, reply.body
            return reply.value

        sound = base64.b64encode(SOUND).decode()
        return {
            "url": server.inference_url,
            "key": server.inference_key,
            "texts": TEXTS,
            "written": [one[0]["generated_text"] for one in ask("writer", TEXTS, **GREEDY)],
            "chat": ask("writer", f"user {TEXTS[0]} .", **GREEDY)[0]["generated_text"],
            "vectors": ask("vectors", TEXTS),
            "few": ask("vectors", TEXTS, dimensions=3),
            "films": ask("films", TEXTS, top_k=2),
            "ranked": ask("ranker", {"query": TEXTS[0], "texts": TEXTS}),
            "sound": sound,
            "heard": ask(HEARS, sound),
            "german": ask(HEARS, sound, language="de"),
            "timed": ask(HEARS, sound, return_timestamps=True),
            "words": ask(HEARS, sound, return_timestamps="word"),
            "translated": ask(HEARS, sound, task="translate"),
            "letters": ask(LETTERS, sound, return_timestamps="word"),
        }


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_client(script: Path, given: dict[str, Any]) -> None:
    done = subprocess.run(
        [str(PYTHON), str(script)], input=json.dumps(given), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "done"


@pytest.mark.parametrize(("archive", "stand_in"), [("all-MiniLM-L6-v2", "vectors"), ("chat", "writer")])
def test_the_readme_s_lines(server: TorchServe, archive: str, stand_in: str) -> None:
    """With a tiny model in the place of the archive that they name."""
    fenced = re.findall(r"^```py(?:thon)?\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (code,) = (block for block in fenced if "import json, openai" in block and f"/predictions/{archive}/" in block)
    here = (
        code.replace("http://127.0.0.1:8080", server.inference_url)
        .replace(".torchserve/key_file.json", str(server.key_file))
        .replace(f"/predictions/{archive}/", f"/predictions/{stand_in}/")
    )
    done = subprocess.run([str(PYTHON), "-c", here], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() if archive == "chat" else int(done.stdout) > 1
