"""LoRA adapters from their folders to a verified archive on OpenVINO that serves them, whatever runs beside."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from built import build
from generating import ask_all, asked, ids_of, one, told_events
from greedy import continue_greedily
from lora import EVERY, merge, write_lora
from once import once
from task_models import load_model
from text_recipes import TASK, recipe_of
from torchserve_side import REST

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from handlers.examples import check_examples, read_examples
from handlers.tasks.text.generation import TextGenerationHandler

PROMPT = "this film is very good , a dull and boring story"
WRITTEN = 12


@pytest.fixture(scope="module", params=["openvino", "openvino int8"])
def served(request, tiny_model, tmp_path_factory) -> Iterator[tuple[TextGenerationHandler, Path, Path]]:
    """(the archive's handler, the model, the folder with the adapters)"""
    runtime, _, bits = request.param.partition(" ")
    model = tiny_model("llama", TASK, eos_token_id=None)

    def fill(folder: Path) -> None:
        module = load_model(model, TASK)
        adapters = {
            "a": write_lora(folder / "lora-a", module, seed=1),
            "b": write_lora(folder / "lora-b", module, seed=2, rank=2, alpha=6, targets=EVERY[:1] + EVERY[2:]),
        }
        compress: Any = [{"quantize": {"method": "weight-only", "bits": 8}}] if bits else "none"
        named = {name: str(path) for name, path in adapters.items()}
        serve = {"runtime": runtime, "adapters": named, "kv_cache": "f32", "batch_size": 6}
        build(recipe_of(folder, model, compress=compress, serve=serve), folder / "store")

    folder = once(tmp_path_factory, f"adapters-{request.param}", fill)
    with extracted(folder / "store" / "writer.mar") as (files, _):
        handler: Any = handler_of(files)
        handler.open(files, threads=1)  # which answers the stored examples
        yield handler, model, folder
        handler.engine.close()


def test_each_adapter_writes_what_torch_writes_with_merged_weights(served) -> None:
    handler, model, folder = served
    ids = ids_of(handler, PROMPT)
    texts = [handler.continuation(ids, WRITTEN, number) for number in range(3)]
    assert len({tuple(text) for text in texts}) == 3
    if handler.serving["session"]["int8"]:
        return  # the model's own weights are rounded
    for number, name in enumerate((None, "a", "b")):
        module = load_model(model, TASK)
        if name is not None:
            merge(module, folder / f"lora-{name}")
        assert texts[number] == continue_greedily(module, ids, WRITTEN, ())


def test_two_hundred_requests_interleaved_each_get_the_text_they_get_alone(served) -> None:
    handler, _, _ = served
    texts = [" ".join(PROMPT.split()[:count]) for count in (2, 3, 5, 7, 9, 11)]  # one begins like the next
    names = (None, "a", "b")

    def hugging(text: str, name: str | None, stream: bool = False) -> Any:
        return asked(text, WRITTEN, **({} if name is None else {"adapter": name})) | {"stream": stream}

    def openai(text: str, name: str | None) -> Any:
        more = {} if name is None else {"model": name}
        return {"prompt": text, "max_tokens": WRITTEN, "temperature": 0, **more}

    alone = {(text, name): one(handler, hugging(text, name)).json for text in texts for name in names}
    assert len({json.dumps(answer) for answer in alone.values()}) == len(alone)
    draw = random.Random(0)
    wanted = [(draw.choice(texts), draw.choice(names), draw.randrange(3)) for _ in range(200)]
    bodies = [openai(text, name) if form == 2 else hugging(text, name, stream=form == 1) for text, name, form in wanted]
    for start in range(0, len(bodies), 50):
        found = ask_all(handler, *bodies[start : start + 50])
        for (text, name, form), told in zip(wanted[start : start + 50], found, strict=True):
            right = alone[text, name][0]["generated_text"]
            if form == 0:
                assert told.json[0]["generated_text"] == right
            elif form == 1:
                events = told_events(told)
                assert events[-1]["generated_text"] == right
            else:
                assert text + told.json["choices"][0]["text"] == right
                assert told.json["model"] == (name or handler.model_name)


def test_an_adapter_is_named_by_model_or_parameter_and_an_unknown_one_refused(served) -> None:
    handler, _, _ = served
    handler.model_name = "writer"
    listed = one(handler, {}, {**REST, "url_path": "models"}).json["data"]
    assert [model["id"] for model in listed] == ["writer", "a", "b"]
    assert one(handler, {}, {**REST, "url_path": "v1/models/b"}).json["id"] == "b"
    by_id = one(handler, asked("this film", adapter_id="a"))
    assert by_id.json == one(handler, asked("this film", adapter="a")).json
    own = one(handler, {"prompt": "this film", "model": "writer", "temperature": 0}).json
    assert (
        own["model"] == "writer"
        and own["choices"] == one(handler, {"prompt": "this film", "temperature": 0}).json["choices"]
    )
    refused = one(handler, {"prompt": "this film", "model": "c"}, {**REST, "url_path": "completions"})
    assert refused.status == 404
    assert refused.json["error"]["message"] == "there is no model 'c' here; allowed: 'writer', 'a', 'b'"
    for body, message in (
        (asked("a", adapter="c"), "there is no adapter 'c'; allowed: 'a', 'b', or none for the model itself"),
        (asked("a", adapter="a", adapter_id="b"), "'adapter' and 'adapter_id' name two different adapters"),
        (asked("a", adapter=5), "parameter 'adapter' is 5; allowed: the name of one of the archive's adapters"),
    ):
        told = one(handler, body)
        assert told.status == 400 and told.json["error"]["message"].startswith(message)


def test_kserve_s_forms_take_the_parameter(served) -> None:
    handler, _, _ = served
    right = one(handler, asked("this film", adapter="b")).json[0]["generated_text"]
    given = {"max_new_tokens": 6, "adapter": "b"}
    first = one(handler, {"instances": ["this film"], "parameters": given}).json
    assert first["predictions"][0][0]["generated_text"] == right
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["this film"]}
    second = one(handler, {"inputs": [tensor], "parameters": given}).json
    assert json.loads(second["outputs"][0]["data"][0])[0]["generated_text"] == right


def test_mixed_up_adapters_do_not_pass(served) -> None:
    """The stored examples tell each adapter from the others and from the model itself."""
    handler, _, folder = served
    with extracted(folder / "store" / "writer.mar") as (files, _):
        examples = read_examples(files)
    own = [example["parameters"]["adapter"] for example in examples if "parameters" in example]
    assert set(own) == {"a", "b"}
    assert check_examples(handler, examples, 0.001) == []
    for other in (["b", "a"], ["a", "a"], ["b", "b"]):
        renamed = {"a": other[0], "b": other[1]}
        mixed = [
            {**example, "parameters": {**example["parameters"], "adapter": renamed[example["parameters"]["adapter"]]}}
            if "parameters" in example
            else example
            for example in examples
        ]
        assert check_examples(handler, mixed, 0.001)
    without = [
        {**example, "parameters": {"max_new_tokens": example["parameters"]["max_new_tokens"]}}
        for example in examples
        if "parameters" in example
    ]
    assert len(check_examples(handler, without, 0.001)) >= 4  # each adapter, alone and in a batch
