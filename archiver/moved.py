"""Where modules of version 0.1 lie now: importing one by its old name says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODULES = {
    "archiver.candidate": "archiver.pipeline.staging",
    "archiver.chat_template": "archiver.models.inputs.chat_template",
    "archiver.compression.awq": "archiver.compression.quantize.algorithms.awq",
    "archiver.compression.awq_folding": "archiver.compression.quantize.algorithms.folding",
    "archiver.compression.checkpoint": "archiver.compression.retrain.checkpoint",
    "archiver.compression.codebook": "archiver.compression.share.codebook",
    "archiver.compression.constraints": "archiver.state.constraints",
    "archiver.compression.examples": "archiver.compression.context",
    "archiver.compression.gptq": "archiver.compression.quantize.algorithms.gptq",
    "archiver.compression.gradual": "archiver.compression.prune.gradual",
    "archiver.compression.grids": "archiver.compression.quantize.grids",
    "archiver.compression.hints": "archiver.storage.layouts",
    "archiver.compression.importance": "archiver.compression.prune.importance",
    "archiver.compression.layer_sharing": "archiver.compression.share.layers",
    "archiver.compression.low_rank": "archiver.compression.factorize.low_rank",
    "archiver.compression.low_rank_math": "archiver.compression.factorize.low_rank_math",
    "archiver.compression.low_rank_options": "archiver.compression.factorize.options",
    "archiver.compression.mixed": "archiver.compression.quantize.mixed",
    "archiver.compression.objectives": "archiver.compression.retrain.objectives",
    "archiver.compression.options": "archiver.compression.modules",
    "archiver.compression.order": "archiver.recipe.order",
    "archiver.compression.plan": "archiver.state.plan",
    "archiver.compression.prune_options": "archiver.compression.prune.options",
    "archiver.compression.pruning": "archiver.compression.prune.weights",
    "archiver.compression.quantization": "archiver.compression.quantize.int8",
    "archiver.compression.quantize_options": "archiver.compression.quantize.options",
    "archiver.compression.quantizers": "archiver.compression.quantize.quantizers",
    "archiver.compression.retrain_options": "archiver.compression.retrain.options",
    "archiver.compression.retraining": "archiver.compression.retrain.stage",
    "archiver.compression.scale_estimation": "archiver.compression.quantize.algorithms.estimation",
    "archiver.compression.scale_search": "archiver.compression.quantize.algorithms.search",
    "archiver.compression.sizes": "archiver.storage.sizes",
    "archiver.compression.sparsegpt": "archiver.compression.prune.sparsegpt",
    "archiver.compression.statistics": "archiver.compression.calibration",
    "archiver.compression.structured": "archiver.compression.prune.structured",
    "archiver.compression.structured_options": "archiver.compression.prune.structured_options",
    "archiver.compression.tokenizer_trim": "archiver.compression.share.tokenizer_trim",
    "archiver.compression.training": "archiver.compression.retrain.training",
    "archiver.compression.vocabulary": "archiver.compression.share.vocabulary",
    "archiver.compression.vocabulary_options": "archiver.compression.share.options",
    "archiver.compression.weight_quantization": "archiver.compression.quantize.weights",
    "archiver.data_files": "archiver.data.files",
    "archiver.decoder_assist": "archiver.runtimes.openvino_assistance",
    "archiver.decoder_candidate": "archiver.tasks.text.generation.examples",
    "archiver.decoder_export": "archiver.runtimes.openvino_text",
    "archiver.runtimes.openvino_genai": "archiver.runtimes.openvino_text",
    "archiver.decoder_facts": "archiver.models.facts",
    "archiver.decoder_subject": "archiver.tasks.text.generation.workload",
    "archiver.embedded_text": "archiver.data.embedded",
    "archiver.encoder_subject": "archiver.tasks.forward_workload",
    "archiver.export.image": "archiver.export.graph.weights",
    "archiver.export.int8_rows": "archiver.storage.int8_rows",
    "archiver.hub_data": "archiver.data.hub",
    "archiver.init": "archiver.recipe.starter",
    "archiver.model_facts": "archiver.models.facts",
    "archiver.model_files": "archiver.models.files",
    "archiver.preparation": "archiver.pipeline.check",
    "archiver.recipe_check": "archiver.recipe.check",
    "archiver.recipe_combinations": "archiver.recipe.combinations",
    "archiver.recipe_sources": "archiver.recipe.sources",
    "archiver.recipe_yaml": "archiver.recipe.yaml_tree",
    "archiver.serving": "archiver.torchserve and archiver.bench",
    "archiver.safetensors_header": "archiver.models.tensors",
    "archiver.sentence_transformers": "archiver.models.inputs.pooling",
    "archiver.stages": "archiver.pipeline.stages",
    "archiver.subject": "archiver.tasks.workload",
    "archiver.text_windows": "archiver.data.text.windows",
    "archiver.tokenizer_facts": "archiver.models.inputs.tokenizer",
    "handlers.anatomy": "archiver.architecture",
    "handlers.bit_packing": "handlers.storage.bit_packing",
    "handlers.chat": "handlers.generation.chat",
    "handlers.codec_choice": "archiver.storage.codec_choice",
    "handlers.codecs": "handlers.storage.codecs",
    "handlers.conv1d": "handlers.architecture.conv1d",
    "handlers.decoding": "handlers.generation.backend",
    "handlers.encoder_base": "handlers.tasks.encoder",
    "handlers.encoding": "handlers.inputs.text",
    "handlers.engine": "handlers.generation.engine",
    "handlers.factored": "handlers.architecture.factored",
    "handlers.feature_extraction": "handlers.tasks.text.feature_extraction",
    "handlers.frontend": "handlers.torchserve.channel",
    "handlers.generation_answer": "handlers.protocols.continuation",
    "handlers.generation_request": "handlers.protocols.generation",
    "handlers.openvino_generation": "handlers.runtimes.openvino_paged",
    "handlers.owed": "handlers.torchserve.standby.unanswered",
    "handlers.packed_weights": "handlers.storage.packed",
    "handlers.payload": "handlers.protocols.request",
    "handlers.runtime": "handlers.runtimes.base",
    "handlers.sampling": "handlers.generation.sampling",
    "handlers.structure": "handlers.architecture.structure",
    "handlers.text_classification": "handlers.tasks.text.classification",
    "handlers.text_generation": "handlers.tasks.text.generation",
    "handlers.text_stream": "handlers.generation.stream",
    "handlers.torch_decoder": "handlers.architecture.outputs.decoder",
    "handlers.torch_encoder": "handlers.architecture.outputs.encoder",
    "handlers.torch_generation": "handlers.runtimes.torch_generation",
    "handlers.runtimes.openvino_genai": "handlers.runtimes.openvino_paged",
    "handlers.vllm_generation": "handlers.runtimes.vllm",
    "handlers.weight_image": "handlers.storage.graph_weights",
}

# Modules that have become packages: their names lie in a module below.
PACKAGES = {
    "archiver.data": "archiver.data.examples",
    "archiver.models": "archiver.models.load and archiver.models.source",
    "archiver.pipeline": "archiver.pipeline.build",
    "archiver.recipe": "archiver.spec and archiver.recipe.load",
}


class _Signpost:
    """An import finder that finds no module; for a module that has moved it raises an error with the new name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None, unless the name is one of before. Raises: ModuleNotFoundError with the new name."""
        if name in MODULES:
            raise ModuleNotFoundError(f"{name} has moved: import {MODULES[name]}", name=name)
        return None


def put_up_signpost() -> None:
    """Install the finder behind all others, once."""
    if not any(isinstance(finder, _Signpost) for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())


def moved_names(package: str) -> Callable[[str], Any]:
    """A `__getattr__` for a package that was a module: what is looked for there has moved."""

    def getattr_(name: str) -> Any:
        if name.startswith("__") or find_spec(f"{package}.{name}") is not None:
            raise AttributeError(name)  # a module of the package is loaded after this
        raise ImportError(f"{package} has no {name}; what it held as a module lies in {PACKAGES[package]}")

    return getattr_
