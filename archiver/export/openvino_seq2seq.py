"""An encoder-decoder → two OpenVINO graphs: one that reads a source, one that writes with its keys and values as state.

The modules of handlers.architecture.outputs.seq2seq are traced as they are, cut, factored and shared layers included: what
is exported is what torch serves. Weights that stages moved onto integers lie there as integers, see integer_constants.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.architecture.tracing import SourceExample
from archiver.errors import UnsupportedModelError
from archiver.export.graph.integer_constants import put_integers
from archiver.export.openvino_decoder import as_it_was, forget_version, name_by_place, quiet
from archiver.state.plan import QuantizationPlan
from handlers.architecture.outputs.seq2seq import Reader, Writer, with_eager_cross_attention
from handlers.cpu import container_cores
from handlers.runtimes.openvino_seq2seq import READER, WRITER, OpenVinoSeq2Seq

TOLERANCE = 1e-3  # of the largest |logit|
_STEPS = 4


def export_seq2seq(
    model: torch.nn.Module, plan: QuantizationPlan | None, example: SourceExample, folder: Path
) -> dict[str, Any]:
    """Write reader/model.xml and writer/model.xml with their weights into `folder`. The same module gives the same bytes.

    Args:
        model: transformers' …ForConditionalGeneration in float32; it stays as it is.
    Returns: the parts of serving.json's `session` that name the files.
    Raises: UnsupportedModelError where it cannot be traced, or its graphs compute something else.
    """
    import openvino as ov

    with as_it_was(model), torch.random.fork_rng(devices=[]):
        model.eval()
        _attention(model, example)
        reader, writer = _traced(model, example)
        session: dict[str, Any] = {"masked": example.masked}
        for name, graph in ((READER, reader), (WRITER, writer)):
            (folder / name).mkdir()
            ov.save_model(graph, folder / name / "plain.xml", compress_to_fp16=False)
            session[name] = {"model": f"{name}/plain.xml"}
        _check(model, example, folder, session)
    for name, graph in ((READER, reader), (WRITER, writer)):
        integers = _with_integers(graph, name, model, plan)
        name_by_place(integers)
        ov.save_model(integers, folder / name / "model.xml", compress_to_fp16=False)
        forget_version(folder / name / "model.xml")
        for file in (folder / name).glob("plain.*"):
            file.unlink()
        session[name] = {"model": f"{name}/model.xml"}
    return session


def _with_integers(graph: Any, name: str, model: torch.nn.Module, plan: QuantizationPlan | None) -> Any:
    import openvino as ov

    if name == READER and plan is not None and plan.kind == "static-int8":
        return static_reader(graph, plan)
    put_integers(graph, model, plan)
    return ov.Model(graph.get_results(), graph.get_sinks(), graph.get_parameters(), name)


def static_reader(graph: Any, plan: QuantizationPlan) -> Any:
    """The reading graph with int8 products, in ranges measured on the plan's calibration batches."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    names = [next(iter(port.get_names())) for port in graph.inputs]
    batches = [{name: np.asarray(batch[name]) for name in names} for batch in plan.calibration]
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            graph,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )


def _attention(model: torch.nn.Module, example: SourceExample) -> None:
    """Fused attention, which the CPU computes in one operation, where the family has it; told attention is not fused."""
    for module in model.modules():
        own: Any = vars(module).get("config")
        if hasattr(own, "_attn_implementation") and getattr(module, "_supports_sdpa", True):
            own._attn_implementation = "sdpa"
    if example.heads:
        with_eager_cross_attention(model, [layer for layer, _ in example.heads])


def _traced(model: torch.nn.Module, example: SourceExample) -> tuple[Any, Any]:
    import openvino as ov

    mask = [example.arrays["attention_mask"]] if example.masked else []
    given = (example.arrays[example.source], *mask)
    read_by, written_by = Reader(model, example.source).eval(), Writer(model, example.masked, example.heads).eval()
    try:
        with quiet(), torch.no_grad():
            states = read_by(*given)
            ids = torch.zeros((len(given[0]), 2), dtype=torch.int64)
            before = [torch.randn(item.shape[0], item.shape[1], 3, item.shape[3]) for item in states]
            reader = ov.convert_model(read_by, example_input=given)
            writer = ov.convert_model(written_by, example_input=(ids, *mask, *states, *before))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnsupportedModelError(
            f"{type(model).__name__}: it cannot be exported to OpenVINO: {words}; set serve.runtime to torch"
        ) from error
    _name(reader, [example.source, *(["attention_mask"] if example.masked else [])], [])
    sizes = [(item.shape[1], item.shape[3]) for item in states]
    return reader, _stateful(writer, sizes, example)


def _name(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(graph.outputs, outputs, strict=False):
        port.get_tensor().set_names({name})


def _stateful(graph: Any, sizes: Sequence[tuple[int, int]], example: SourceExample) -> Any:
    """The keys and values that are written become the graph's state, whose rows `beam_idx` chooses at every step."""
    import openvino as ov
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation

    masked, count = int(example.masked), len(sizes)
    sources = [f"source.{index}" for index in range(masked + count)]
    before = [f"before.{index}" for index in range(count)]
    after = [f"after.{index}" for index in range(count)]
    _name(graph, ["input_ids", *sources, *before], ["logits", *after, *(["attention"] if example.heads else [])])
    for names in (sources[masked:], before):
        for name, (heads, width) in zip(names, sizes, strict=True):
            graph.input(name).get_node().set_partial_shape(ov.PartialShape([-1, heads, -1, width]))
    beams = opset13.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
    beams.output(0).get_tensor().add_names({"beam_idx"})
    graph.add_parameters([beams])
    for name in before:
        port = graph.input(name)
        users = port.get_target_inputs()
        chosen = opset13.gather(port, beams, opset13.constant(0))
        for user in users:
            user.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, dict(zip(before, after, strict=True)))
    rows = opset13.gather(opset13.shape_of(graph.input("input_ids")), opset13.constant([0]), opset13.constant(0))
    for operation in graph.get_ops():
        if operation.get_type_name() == "ReadValue":  # at first: no places yet
            _, heads, _, width = list(operation.get_output_partial_shape(0))
            ends = [opset13.constant(np.array([side.get_length()], np.int64)) for side in (heads, width)]
            none = opset13.constant(np.array([0], np.int64))
            shape = opset13.concat([rows, ends[0], none, ends[1]], axis=0)
            operation.set_arguments([opset13.broadcast(opset13.constant(np.float32(0)), shape)])
    graph.validate_nodes_and_infer_types()
    return graph


def _check(model: torch.nn.Module, example: SourceExample, folder: Path, session: Mapping[str, Any]) -> None:
    """Exporters leave out what an operation does not have without an error: the graphs must compute what torch computes."""
    settings = {
        "requirement": "openvino",
        "config": {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        },
    }
    served = OpenVinoSeq2Seq(folder, {**session, **settings}, container_cores())
    arrays = {name: value.numpy() for name, value in example.arrays.items()}
    rows = len(arrays[example.source])
    head: Any = model.get_output_embeddings()  # type: ignore[operator]  # transformers' own
    vocabulary = int(head.weight.shape[0])
    ids = torch.randint(0, vocabulary, (rows, _STEPS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        called: Any = model
        expected = called(**example.arrays, decoder_input_ids=ids, use_cache=False).logits.float().numpy()
    decoder = served.read(arrays)
    worst = 0.0
    for step in range(_STEPS):
        found = decoder.step(ids[:, step : step + 1].numpy(), range(rows), range(rows))
        worst = max(worst, float(np.abs(found - expected[:, step]).max()))
    difference = worst / float(np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its OpenVINO graphs answer differently from torch, by {difference:.2g} of the "
            f"largest logit; at most {TOLERANCE:g} is allowed: set serve.runtime to torch"
        )
