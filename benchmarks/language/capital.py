"""`make bench-language PART=chat`: the chat default, built from PyPI, asked the same question in every wire form.

Each form gets the same prompt: OpenAI's chats as messages, the others as the text that the model's own template makes of
them. All have to give the same greedy answer, and it has to name the city.
"""

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archiver.torchserve.client import predict_grpc, predict_rest
from archiver.torchserve.server import TorchServe
from benchmarks.table import RECIPES, ROOT
from handlers.generation.chat import ChatTemplate

QUESTION, RIGHT = "What is the capital of France?", "Paris"
TOKENS = 24
MESSAGES = [{"role": "user", "content": QUESTION}]


def capital(archive: Path | None) -> None:
    """Print the answer in every form, and end with 1 where one is missing or differs.

    Args:
        archive: of recipes/chat.yaml; None: it is built, by the command that a user would type.
    """
    with tempfile.TemporaryDirectory(prefix="marpress-bench-") as folder:
        archive = archive or _built(Path(folder))
        with TorchServe([archive], config=ROOT / "config.properties") as server:
            server.wait_ready(300)
            found = _answers(server, server.models[0], prompt_of(archive, MESSAGES))
    for form, text in found.items():
        print(f"{form:<32} {text!r}")
    if len(set(found.values())) > 1 or not all(RIGHT in text for text in found.values()):
        sys.exit(f"not every answer names {RIGHT}, or they differ")
    print(f"{len(found)} of {len(found)} name {RIGHT}, in the same words")


def _built(folder: Path) -> Path:
    command = [sys.executable, "-m", "archiver", "build", str(RECIPES / "chat.yaml"), "--model-store", str(folder)]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    archive = folder / "chat.mar"
    print(f"built in {time.perf_counter() - started:.0f} s: {archive.stat().st_size / 1e6:.1f} MB")
    return archive


def prompt_of(archive: Path, messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as the archive's own template has them."""
    with zipfile.ZipFile(archive) as contents:
        chat = json.loads(contents.read("serving.json"))["chat"]
    return ChatTemplate(chat["template"], chat["tokens"]).render(messages)


def _answers(server: TorchServe, name: str, prompt: str) -> dict[str, str]:
    """{form: its text}."""
    greedy = {"max_tokens": TOKENS, "temperature": 0}
    parameters = {"max_new_tokens": TOKENS, "do_sample": False, "return_full_text": False}
    tensor = {"name": "inputs", "datatype": "BYTES", "shape": [1], "data": [prompt]}
    here = f"/predictions/{name}"

    def post(path: str, body: Mapping[str, Any]) -> Any:
        address = f"{server.inference_url.rstrip('/')}{path}"
        answer = predict_rest(address, json.dumps(body).encode(), token=server.inference_key)
        if not answer.ok:
            sys.exit(f"{path} was answered with status {answer.status}: {answer.text[:500]}")
        return json.loads(answer.body)

    asked = {"messages": MESSAGES, **greedy}
    chat = post(f"{here}/v1/chat/completions", asked)
    grpc = predict_grpc(server.grpc_target, name, json.dumps(asked).encode(), token=server.inference_key)
    v2 = post(f"/v2/models/{name}/infer", {"inputs": [tensor], "parameters": parameters})
    return {
        "OpenAI chat": chat["choices"][0]["message"]["content"],
        "OpenAI chat over gRPC": json.loads(grpc.body)["choices"][0]["message"]["content"],
        "OpenAI completion": post(f"{here}/v1/completions", {"prompt": prompt, **greedy})["choices"][0]["text"],
        "Hugging Face": post(here, {"inputs": prompt, "parameters": parameters})[0]["generated_text"],
        "KServe v1": _text(post(f"/v1/models/{name}:predict", {"instances": [prompt], "parameters": parameters})),
        "KServe v2": _text({"predictions": [json.loads(v2["outputs"][0]["data"][0])]}),
        "marpress chat": _said(server, name),
    }


def _text(answer: Mapping[str, Any]) -> str:
    """The text of KServe's one prediction, which is Hugging Face's answer."""
    (found,) = answer["predictions"]
    return str((found[0] if isinstance(found, list) else found)["generated_text"])


def _said(server: TorchServe, name: str) -> str:
    command = [sys.executable, "-m", "archiver", "chat", server.prediction_url(name), "--temperature", "0"]
    command += ["--max-tokens", str(TOKENS), *(["--key-file", str(server.key_file)] if server.key_file else [])]
    return subprocess.run(command, input=QUESTION, capture_output=True, text=True, check=True).stdout.rstrip("\n")
