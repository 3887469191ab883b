"""A decoder → OpenVINO IR that holds keys and values as its state: what OpenVINO GenAI serves with paged attention.

optimum traces the module as it is: cut, factored and shared layers included. Their sizes come from the module, since its
config knows one head count for all layers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from archiver.architecture import kv_shapes
from archiver.errors import UnsupportedModelError
from archiver.export.integer_constants import put_integers
from archiver.state.plan import QuantizationPlan
from handlers.manifest import canonical_json

IR = "openvino_model.xml"
_TASK = "text-generation"


def export_decoder(model: torch.nn.Module, plan: QuantizationPlan | None, folder: Path) -> None:
    """Write openvino_model.xml, openvino_model.bin and config.json into `folder`. The same module gives the same bytes.

    model: transformers' …ForCausalLM in float32; it stays as it is. Weights that a stage moved onto a grid of integers, and
    the plan's (int8 rows), lie there as integers, see integer_constants; all others in float32.
    UnsupportedModelError when optimum-intel is not installed.
    """
    os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"
    config_class = _config_class(model)
    import openvino as ov

    with tempfile.TemporaryDirectory() as place:
        plain = Path(place) / IR
        _trace(model, config_class, plain)
        graph = ov.Core().read_model(plain)
        put_integers(graph, model, plan)
        # A new model around the same operations: optimum's and the converter's notes about themselves stay behind.
        graph = ov.Model(graph.get_results(), graph.get_sinks(), graph.get_parameters(), "decoder")
        _name_by_place(graph)
        ov.save_model(graph, folder / IR, compress_to_fp16=False)
        del graph  # which reads from the temporary file
    _forget_version(folder / IR)
    settings: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]  # transformers' own
    config = {key: value for key, value in settings.items() if key != "_name_or_path"}
    (folder / "config.json").write_bytes(canonical_json(config))


def _config_class(model: torch.nn.Module) -> Any:
    """optimum's export config of the model's family, whose example keys and values have each layer's own shape."""
    try:
        import optimum.exporters.openvino  # noqa: F401 - which tells TasksManager of the families
        from optimum.exporters.tasks import TasksManager
        from optimum.utils import DummyPastKeyValuesGenerator, DummyTextInputGenerator
    except ImportError as error:
        raise UnsupportedModelError(
            f"exporting a language model to OpenVINO needs optimum-intel ({error}): pip install 'optimum-intel[openvino]'"
        ) from error
    shapes = kv_shapes(model)

    class KeysAndValues(DummyPastKeyValuesGenerator):
        def generate(self, *_: Any, **__: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
            every = [(self.batch_size, heads, self.sequence_length, width) for heads, width in shapes]
            return [(torch.zeros(shape), torch.zeros(shape)) for shape in every]

    family = TasksManager.get_exporter_config_constructor(
        "openvino", model=model, task=f"{_TASK}-with-past", library_name="transformers"
    )

    class Config(type(family(model.config))):  # type: ignore[misc]
        DUMMY_INPUT_GENERATOR_CLASSES = (DummyTextInputGenerator, KeysAndValues)
        DUMMY_PKV_GENERATOR_CLASS = KeysAndValues

    return Config


def _trace(model: torch.nn.Module, config_class: Any, path: Path) -> None:
    from optimum.exporters.openvino import export

    config: Any = model.config
    with _quiet(), _as_it_was(model), torch.random.fork_rng(devices=[]):
        # Paged attention takes the place of this one operation; eager attention's many would first have to be recognised.
        # Modules whose head counts were cut may have a config of their own.
        for each in {
            id(module.config): module.config for module in model.modules() if hasattr(module, "config")
        }.values():
            each._attn_implementation = "sdpa"
        examples = config_class(config, task=_TASK, use_past=True, use_past_in_inputs=True)
        export(model, examples, path, stateful=True, library_name="transformers")


@contextlib.contextmanager
def _as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """optimum turns the module to evaluation, sets fields of its config, and leaves a `forward` on the module itself."""
    modules = list(model.modules())
    training = [module.training for module in modules]
    forwards = [vars(module).get("forward") for module in modules]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    fields = {key: dict(vars(config)) for key, config in configs.items()}
    try:
        yield
    finally:
        for key, config in configs.items():
            vars(config).clear()
            vars(config).update(fields[key])
        for module, mode, forward in zip(modules, training, forwards, strict=True):
            module.training = mode
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No tracer warnings, no notes on a loss or a wrapper that tracing does without, nothing on standard output."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _name_by_place(graph: Any) -> None:
    """Operations and what they give are named by counters of the process or the tracer: here by their place.

    The graph's inputs and outputs keep the names that they are called by.
    """
    ends = {source.get_node().get_instance_id() for result in graph.get_results() for source in result.input_values()}
    for place, operation in enumerate(graph.get_ordered_ops()):
        kind = operation.get_type_name()
        if kind == "Parameter":
            continue
        operation.set_friendly_name(f"{kind}_{place}")
        if kind != "Result" and operation.get_instance_id() not in ends:
            for output in operation.outputs():
                output.get_tensor().set_names(set())


def _forget_version(xml: Path) -> None:
    """OpenVINO notes at the end which release wrote the file; nothing reads it."""
    text = xml.read_text(encoding="utf-8")
    head, mark, tail = text.rpartition("</edges>")
    xml.write_text(head + mark + re.sub(r"\s*<rt_info>.*?</rt_info>", "", tail, flags=re.DOTALL), encoding="utf-8")
