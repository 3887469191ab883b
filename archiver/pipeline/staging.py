"""One runtime's version of the compressed model: staged as in the archive, opened by its own handler, and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archiver.data.examples import read_examples
from archiver.errors import UnsupportedModelError
from archiver.export.graph_weights import pack_onnx, pack_openvino
from archiver.export.onnx import OnnxGraph, save_onnx
from archiver.export.onnx_int8 import quantize_graph
from archiver.export.openvino import export_openvino
from archiver.export.torch_packed import export_packed
from archiver.packaging.entry import make_handler
from archiver.packaging.layout import (
    add_requirement,
    requirement,
    requirements,
    serving_config,
    write_code,
    write_serving,
)
from archiver.state.plan import plan_of
from archiver.storage.layouts import by_content
from archiver.tasks.base import TASKS
from archiver.tasks.encoders import EncoderSubject
from handlers.base import TaskHandler
from handlers.cpu import container_cores
from handlers.examples import respond_fully
from handlers.inputs.text import TextInput
from handlers.storage.graph_weights import PACKED
from handlers.tasks.encoder import EncoderHandler

RUNTIMES = ("openvino", "onnxruntime", "torch")  # the order in which `runtime: auto` prefers them

SESSIONS = {
    "openvino": "handlers.runtimes.openvino:OpenVinoSession",
    "onnxruntime": "handlers.runtimes.onnxruntime:OnnxRuntimeSession",
    "torch": "handlers.runtimes.torch_forward:TorchSession",
}

# The largest difference allowed between an answer and the same answer elsewhere: alone or in a batch, here or on another
# host. fp32 sums come in another order; next to a rounding threshold of int8 that flips one of 255 steps.
TOLERANCE_FP32 = 0.001
TOLERANCE_INT8 = 0.03
MAX_EXAMPLES = 64
_BATCH_SAMPLE = 64


@dataclass
class Candidate:
    """folder: the staged files. metrics: of the compressed model. examples: the inputs to store with their answers.

    batch_difference: the largest difference between an answer given alone and the same one given in a batch.
    assistance: what speculative decoding was measured to do, for the report
    """

    runtime: str
    folder: Path
    handler: TaskHandler[Any]
    metrics: dict[str, float]
    weight_bytes: int
    batch_difference: float
    examples: list[TextInput]
    assistance: Any = None


def make_candidate(subject: EncoderSubject, graph: OnnxGraph | None, runtime: str, folder: Path) -> Candidate:
    """Stage `runtime`'s files in `folder`, open them with the handler that will serve them, and measure."""
    folder.mkdir(parents=True)
    recipe = subject.recipe
    names = {"handler": TASKS[recipe.task].handler, "session": SESSIONS[runtime]}
    write_code(
        folder,
        name=recipe.name,
        version=recipe.version,
        requirements=requirements(runtime, recipe.task),
        config=serving_config(recipe),
        **names,
    )
    (folder / "tokenizer.json").write_bytes(subject.tokenizer_json)
    before = set(folder.iterdir())
    session = _export(subject, graph, runtime, folder)
    weight_bytes = sum(path.stat().st_size for path in set(folder.iterdir()) - before)
    if "weights" in session:
        add_requirement(folder, "safetensors")
    write_serving(folder, serving(subject, session))
    handler = make_handler(**names)
    assert isinstance(handler, EncoderHandler)
    handler.open(folder, threads=container_cores(), trust_files=True)
    metrics = subject.metrics(handler.predict(subject.inputs))
    difference = batch_difference(handler, subject.inputs)
    return Candidate(runtime, folder, handler, metrics, weight_bytes, difference, _example_inputs(subject))


def _example_inputs(subject: EncoderSubject) -> list[TextInput]:
    """Validation inputs, or the recipe's own file of texts where validation data must not travel."""
    wanted = subject.recipe.serve.examples
    if not isinstance(wanted, Path):
        return subject.inputs[:wanted]
    found = read_examples(wanted, {"text": 0} if wanted.suffix == ".tsv" else None, task=subject.recipe.task)
    return [TextInput(example.text, example.text_pair) for example in found][:MAX_EXAMPLES]


def serving(subject: EncoderSubject, session: dict[str, Any]) -> dict[str, Any]:
    """serving.json: everything the worker must know that is not in the graph."""
    serve, facts = subject.recipe.serve, subject.facts
    settings: dict[str, Any] = {
        "task": subject.recipe.task,
        "session": session,
        "max_length": serve.max_length,
        "max_inputs": serve.max_inputs,
        "pad_id": subject.pad_id,
        "tolerance": TOLERANCE_INT8 if session["int8"] else TOLERANCE_FP32,
        "batching": batching(session["runtime"], serve.max_length),
    }
    if subject.recipe.task == "text-classification":
        settings["labels"] = [facts.id2label[index] for index in range(facts.num_labels)]
        regression = facts.problem_type == "regression"
        sigmoid = facts.multi_label or facts.num_labels == 1
        settings["activation"] = "none" if regression else "sigmoid" if sigmoid else "softmax"
    else:
        settings["normalize"] = subject.normalize
    return settings


def batching(runtime: str, max_length: int) -> dict[str, Any]:
    """How sub-batches are cut, see handlers.batching.plan. Measured with MiniLM-L6 on one core.

    Beyond some 200 tokens a larger sub-batch is no faster; one more sub-batch costs as much as some 48 tokens.
    """
    settings: dict[str, Any] = {"token_budget": 512, "max_rows": 32, "run_cost": 48}
    if runtime == "openvino":
        # OpenVINO prepares kernels for each shape, 5-10 ms and 2 MB a time: some fifty shapes, not two thousand.
        steps = ((8, 64), (16, 128), (32, 256), (64, 512), (128, max_length))
        lengths = {size for step, end in steps for size in range(step, end + 1, step) if size < max_length}
        settings |= {"max_rows": 16, "row_sizes": [1, 2, 4, 8, 16], "length_sizes": [*sorted(lengths), max_length]}
    return settings


def _export(subject: EncoderSubject, graph: OnnxGraph | None, runtime: str, folder: Path) -> dict[str, Any]:
    """Write the runtime's model files and return serving.json's `session`."""
    plan = plan_of(subject.model)
    session: dict[str, Any] = {
        "runtime": runtime,
        "requirement": requirement(runtime if runtime != "torch" else "transformers"),
        "device": subject.recipe.serve.device,
        "int8": plan is not None and runtime != "torch",
    }
    if runtime == "torch":
        export_packed(subject.model, plan, folder)
        more = {"model": "model.safetensors", "config": "config.json", "task": subject.recipe.task}
        return session | more | {"pooling": subject.module.pooling}
    if graph is None:
        raise UnsupportedModelError(f"the runtime {runtime} needs an ONNX graph, and the model could not be exported")
    if runtime == "onnxruntime":
        save_onnx(quantize_graph(graph, plan) if plan else graph.model, folder / "model.onnx")
        packed = pack_onnx(folder / "model.onnx", by_content(subject.model))
        return session | {"model": "model.onnx"} | ({"weights": PACKED} if packed else {})
    linears = [subject.model.get_submodule(name) for name in plan.linears] if plan else []
    widths = [linear.in_features for linear in linears if isinstance(linear, torch.nn.Linear)]
    config = export_openvino(graph, plan, folder, widths=widths)
    packed = pack_openvino(folder / "model.xml", by_content(subject.model))
    return session | {"model": "model.xml", "config": config} | ({"weights": PACKED} if packed else {})


def batch_difference(handler: TaskHandler[Any], inputs: Sequence[TextInput]) -> float:
    """The largest difference of an answer alone from the same answer among up to 64 others."""
    sample = list(inputs[:: -(-len(inputs) // _BATCH_SAMPLE)])
    together = respond_fully(handler, sample)
    alone = [respond_fully(handler, [item])[0] for item in sample]
    return max((handler.compare(a, b) for a, b in zip(together, alone, strict=True)), default=0.0)
