"""torch module → ONNX graph, fp32, with dynamic rows and lengths and nothing of the build host in it."""

import ast
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from archiver.architecture.tracing import Tracing
from archiver.errors import UnsupportedModelError

OUTPUT = "output"


@dataclass(frozen=True)
class OnnxGraph:
    """model: the graph. modules: name of a node → name of the torch module it came from (as in `named_modules`)."""

    model: onnx.ModelProto
    modules: dict[str, str]


def export_onnx(module: torch.nn.Module, tracing: Tracing) -> OnnxGraph:
    """Trace a module with torch.export and translate it; input names are those of `forward`.

    The attention must be the eager one: its graph is the plain softmax(QKᵀ)V that the runtimes' own fusions know.

    Args:
        module: gives one tensor. tracing: the call to trace.
    Raises: UnsupportedModelError where the exporter cannot take it.
    """
    names = list(tracing.arguments)
    sizes = {name: torch.export.Dim(name, min=least, max=most) for name, (least, most) in tracing.bounds.items()}
    with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                tuple(tracing.arguments.values()),
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=tuple(
                    {axis: sizes[size] for axis, size in tracing.varying[name].items()} for name in names
                ),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedModelError(f"the model cannot be exported to ONNX: {reason}") from error
    assert program is not None  # None only without dynamo
    model = program.model_proto
    modules = {node.name: name for node in model.graph.node if (name := _module_of(node)) is not None}
    _strip_host(model)
    return OnnxGraph(model, modules)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check and write; one file, deterministic bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))


def _module_of(node: onnx.NodeProto) -> str | None:
    """The torch module a node was traced from: the exporter writes the scopes, outermost first, the last one the op."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
    if scopes is None:
        return None
    if node.op_type == "Conv" and node.input[1].endswith(".weight"):
        # With a norm of batches folded into it, it has the norm's scopes, and still its own weight's name.
        return str(node.input[1]).removesuffix(".weight").removeprefix("model.")
    path = ast.literal_eval(scopes)
    return path[-2].removeprefix("model.") if len(path) >= 2 else None


def _strip_host(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes for debugging: stack traces name the build host's folders."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


class _quiet:
    """Loggers at ERROR inside the block: the exporters announce each step."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
