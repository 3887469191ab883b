"""optimum-intel's export configuration of a decoder: the one of its family where there is one, else a general one."""

from __future__ import annotations

from typing import Any

import torch

from archiver.architecture import kv_shapes
from archiver.errors import UnsupportedModelError

TASK = "text-generation"


def decoder_config(model: torch.nn.Module) -> Any:
    """The configuration to export `model` with, whose example keys and values have each layer's own shape.

    model: transformers' …ForCausalLM. Raises: UnsupportedModelError when optimum-intel is not installed.
    """
    try:
        import optimum.exporters.openvino  # noqa: F401 - which tells TasksManager of the families
        from optimum.exporters.openvino.config import TextDecoderWithPositionIdsOpenVINOConfig
        from optimum.exporters.openvino.model_patcher import OVDecoderModelPatcher
        from optimum.utils import DummyPastKeyValuesGenerator, DummyTextInputGenerator, NormalizedTextConfig
    except ImportError as error:
        raise UnsupportedModelError(
            f"exporting a language model to OpenVINO needs optimum-intel ({error}): pip install 'optimum-intel[openvino]'"
        ) from error
    shapes = kv_shapes(model)

    class KeysAndValues(DummyPastKeyValuesGenerator):  # type: ignore[misc]  # optimum has no types
        def generate(self, *_: Any, **__: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
            rows, tokens = self.batch_size, self.sequence_length
            return [
                (torch.zeros(rows, heads, tokens, key), torch.zeros(rows, heads, tokens, value))
                for heads, key, value in shapes
            ]

    class General(TextDecoderWithPositionIdsOpenVINOConfig):  # type: ignore[misc]  # optimum has no types
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
        _MODEL_PATCHER = OVDecoderModelPatcher

    family: Any = _listed(model) or General

    class Config(family):  # type: ignore[misc]  # optimum has no types
        DUMMY_INPUT_GENERATOR_CLASSES = (DummyTextInputGenerator, KeysAndValues)
        DUMMY_PKV_GENERATOR_CLASS = KeysAndValues
        # optimum 2.2 ends at transformers 5.0 for Gemma; whether it works is measured, see decoder_check.
        MAX_TRANSFORMERS_VERSION = None

        def add_past_key_values(self, inputs_or_outputs: dict[str, dict[int, str]], direction: str) -> None:
            name = {"inputs": "past_key_values", "outputs": "present"}[direction]
            length = "past_sequence_length" if direction == "inputs" else "past_sequence_length + present_length"
            for layer in range(len(shapes)):
                for part in ("key", "value"):
                    inputs_or_outputs[f"{name}.{layer}.{part}"] = {0: "batch_size", 2: length}

    return Config


def _listed(model: torch.nn.Module) -> Any:
    """optimum's class for the model's family; None where it has none."""
    from optimum.exporters.tasks import TasksManager

    try:
        family = TasksManager.get_exporter_config_constructor(
            "openvino", model=model, task=f"{TASK}-with-past", library_name="transformers"
        )
    except (KeyError, ValueError):
        return None
    return type(family(model.config))
