"""A decoder → OpenVINO IR that holds keys and values as its state: what OpenVINO GenAI serves with paged attention.

optimum traces the module as it is: cut, factored and shared layers included. Their sizes come from the module, since its
config knows one head count for all layers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from archiver.errors import UnsupportedModelError
from archiver.export.decoder_check import IR, check_adapters, check_answers
from archiver.export.decoder_configs import TASK, decoder_config
from archiver.export.graph.integer_constants import planned_modules, put_integers, with_int8_rows
from archiver.export.graph.joined_products import join_products
from archiver.host import give_back_memory
from archiver.state.plan import QuantizationPlan
from archiver.storage.adapters import Loaded, write_adapters
from handlers.manifest import canonical_json

_MODULE = "__module."  # before a module's name in the names that the tracer gives


def export_decoder(
    model: torch.nn.Module,
    plan: QuantizationPlan | None,
    folder: Path,
    weights: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    adapters: Loaded | None = None,
) -> None:
    """Write openvino_model.xml, openvino_model.bin and config.json into `folder`. The same module gives the same bytes.

    model: transformers' …ForCausalLM in float32; it stays as it is. Weights that a stage moved onto a grid of integers, and
    the plan's (int8 rows), lie there as integers, see integer_constants; all others in float32.
    weights: inside it the model holds its weights, for a model that else reads each when it runs.
    adapters: LoRA adapters, which are written beside the graph; the graph is the same with them and without.
    UnsupportedModelError when optimum-intel is not installed, cannot trace the model, or its graph computes something else.
    """
    with as_it_was(model), torch.random.fork_rng(devices=[]):
        model.eval()  # dropout would make torch's answers others, and draw random numbers
        with weights():
            places = _write(model, plan, folder / IR, adapters or {})
            rounded = planned_modules(model, plan)
        give_back_memory()
        with with_int8_rows(rounded):
            check_answers(model, folder)
            if adapters:
                write_adapters(folder, adapters, places)
                check_adapters(model, folder, adapters)
    give_back_memory()
    settings: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]  # transformers' own
    kept = {key: value for key, value in settings.items() if key != "_name_or_path"}
    (folder / "config.json").write_bytes(canonical_json(kept))


def _write(model: torch.nn.Module, plan: QuantizationPlan | None, xml: Path, adapters: Loaded) -> dict[str, Any]:
    """Returns: where the adapters' layers lie in the graph."""
    import openvino as ov

    graph = _trace(model, decoder_config(model))
    products = products_of(graph, sorted({layer for own in adapters.values() for layer in own}))
    moved: dict[int, tuple[Any, Any]] = {}
    put_integers(graph, model, plan)
    join_products(graph, moved)
    # A new model around the same operations: optimum's and the converter's notes about themselves stay behind.
    graph = ov.Model(graph.get_results(), graph.get_sinks(), graph.get_parameters(), "decoder")
    name_by_place(graph)
    places = places_of(products, moved)
    ov.save_model(graph, xml, compress_to_fp16=False)
    forget_version(xml)
    return places


def products_of(graph: Any, layers: Iterable[str]) -> dict[str, Any]:
    """The product of each layer in a graph as it was traced, by the names that the tracer gave.

    Raises: UnsupportedModelError where a layer has none, or several.
    """
    found: dict[str, list[Any]] = {}
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "MatMul" and name.startswith(_MODULE):
            found.setdefault(name.removeprefix(_MODULE).partition("/")[0], []).append(node)
    products = {}
    for layer in layers:
        (*others, product) = found.get(layer, []) or [None]
        if others or product is None or product.input_value(0).get_partial_shape().rank.get_length() != 3:
            raise UnsupportedModelError(
                f"{layer}: the OpenVINO graph computes it with {len(found.get(layer, []))} products, or not token by "
                "token, so that no adapter can be put onto it: set serve.runtime to torch"
            )
        products[layer] = product
    return products


def places_of(products: Mapping[str, Any], moved: Mapping[int, tuple[Any, Any]]) -> dict[str, Any]:
    """Where each layer lies in the graph that is written, by the names that its operations have by then.

    Args:
        products: as `products_of` gives them. moved: as archiver.export.graph.joined_products.join_products fills it.
    Returns: layer → {"product": name, "output": [name, index]}, see handlers.runtimes.openvino_adapters.
    """
    places = {}
    for layer, product in products.items():
        node, output = moved.get(product.get_instance_id(), (product, product.output(0)))
        named = [output.get_node().get_friendly_name(), output.get_index()]
        places[layer] = {"product": node.get_friendly_name(), "output": named}
    return places


def _trace(model: torch.nn.Module, config_class: Any) -> Any:
    """optimum's graph of a model, an openvino.Model in memory: its constants are the module's own weights, not copies."""
    from optimum.exporters.openvino import convert

    config: Any = model.config
    with quiet(), as_it_was(model), _kept_in_memory(convert) as graphs:
        # Paged attention takes the place of this one operation; eager attention's many would first have to be recognised.
        # Modules whose head counts were cut may have a config of their own.
        for module in model.modules():
            own: Any = vars(module).get("config")
            if hasattr(own, "_attn_implementation"):
                own._attn_implementation = "sdpa"
        try:
            examples = config_class(config, task=TASK, use_past=True, use_past_in_inputs=True)
            convert.export(model, examples, Path(IR), stateful=True, library_name="transformers")
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__}: optimum-intel cannot export it to OpenVINO: {_first_words(error)}; "
                "set serve.runtime to auto or torch"
            ) from error
    return graphs[0]


@contextlib.contextmanager
def _kept_in_memory(convert: Any) -> Iterator[list[Any]]:
    """optimum's last step, which writes the graph with all weights in float32 to disk, only keeps it."""
    kept: list[Any] = []
    saves = convert._save_model
    convert._save_model = lambda graph, *_, **__: kept.append(graph)
    try:
        yield kept
    finally:
        convert._save_model = saves


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """optimum turns the module to evaluation, sets fields of its config, and leaves a `forward` on the module itself."""
    modules = list(model.modules())
    training = [module.training for module in modules]
    forwards = [vars(module).get("forward") for module in modules]
    own: list[Any] = [vars(module).get("config") for module in modules]
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    fields = {key: dict(vars(config)) for key, config in configs.items()}
    try:
        yield
    finally:
        for key, config in configs.items():
            vars(config).clear()
            vars(config).update(fields[key])
        for module, mode, forward, settings in zip(modules, training, forwards, own, strict=True):
            module.training = mode
            if settings is not None:
                vars(module)["config"] = settings
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No tracer warnings, no notes on a loss or a wrapper that tracing does without, nothing on standard output."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def name_by_place(graph: Any) -> None:
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


def forget_version(xml: Path) -> None:
    """OpenVINO notes at the end which release wrote the file; nothing reads it."""
    text = xml.read_text(encoding="utf-8")
    head, mark, tail = text.rpartition("</edges>")
    xml.write_text(head + mark + re.sub(r"\s*<rt_info>.*?</rt_info>", "", tail, flags=re.DOTALL), encoding="utf-8")
