"""A model's modules by its config alone, without memory for its weights, and how a changed model differs from them."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from handlers.architecture.conv1d import conv1d_to_linear

Settings = dict[str, dict[str, Any]]

CONFIG = "config."  # prefix of a setting that a module reads from its config, of which it then has a copy of its own
_SCALARS = (bool, int, float, str, type(None))
# Sizes of linear layers are told by their shapes; the others say nothing about how a layer computes.
_TOLD_ELSEWHERE = ("in_features", "out_features", "training", "layer_idx", "gradient_checkpointing")


def skeleton(model_class: Any, config: Any) -> torch.nn.Module:
    """A model of a transformers class and config whose Parameters are on the meta device and whose buffers are real.

    Args:
        model_class: a class of transformers with `_from_config`.
        config: its config; left as it is.
    """
    with torch.device("cpu"), _parameters_without_storage(), torch.random.fork_rng(devices=[]):
        model: torch.nn.Module = model_class._from_config(copy.deepcopy(config))
    return conv1d_to_linear(model).eval()


@contextmanager
def _parameters_without_storage() -> Iterator[None]:
    plain = torch.nn.Module.register_parameter

    def register(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        plain(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            kind: Any = type(parameter)
            module._parameters[name] = kind(parameter.to("meta"), requires_grad=parameter.requires_grad)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = plain  # type: ignore[method-assign]


def differences(model: torch.nn.Module) -> tuple[Settings, dict[str, list[int]]]:
    """What the layers of a model are, and a skeleton of its config is not.

    Returns: settings, {module: {attribute: value}} of numbers, truth values, strings and None, with "config.NAME" for
        fields of a module's own copy of the config; and {Parameter: shape} for Parameters outside of linear layers.
    """
    changed: Any = model
    if not hasattr(model, "config") or not hasattr(type(model), "_from_config"):
        return {}, {}
    plain = dict(skeleton(type(model), changed.config).named_modules())
    settings: Settings = {}
    shapes: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        other = plain.get(name)
        if other is None or not any(part.isdigit() for part in name.split(".")):
            continue
        if found := _settings(module, other, changed.config):
            settings[name] = found
        if isinstance(module, torch.nn.Linear):
            continue
        for key, value in module.named_parameters(recurse=False):
            known = other._parameters.get(key)
            if known is not None and known.shape != value.shape:
                shapes[f"{name}.{key}"] = list(value.shape)
    return settings, shapes


def _settings(module: torch.nn.Module, other: torch.nn.Module, config: Any) -> dict[str, Any]:
    found = _unlike(vars(module), vars(other))
    own = vars(module).get("config")
    if own is not None and own is not config and hasattr(other, "config"):
        found |= {CONFIG + key: value for key, value in _unlike(vars(own), vars(other.config)).items()}
    return found


def _unlike(changed: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in changed.items()
        if not key.startswith("_")
        and key not in _TOLD_ELSEWHERE
        and key in plain
        and isinstance(value, _SCALARS)
        and isinstance(plain[key], _SCALARS)
        and value != plain[key]
    }


def settings_of(model: torch.nn.Module) -> Settings:
    """{module: {attribute: value}} for what the config of a cut or shortened model cannot say about its layers."""
    return differences(model)[0]


def apply_settings(model: torch.nn.Module, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Give modules the attributes of `settings`.

    Raises: AttributeError, TypeError or ValueError where a module has no such plain attribute.
    """
    for name, values in settings.items():
        module = model.get_submodule(name)
        for key, value in values.items():
            if not isinstance(value, _SCALARS):
                raise ValueError(f"{name}.{key} is {value!r}; a number, text, true, false or null is allowed")
            set_setting(module, key, value, getattr(model, "config", None))


def set_setting(module: torch.nn.Module, key: str, value: Any, shared: Any) -> None:
    """Set one attribute, or one field of the module's config, which becomes a copy where it is the object `shared`."""
    owner: Any = module
    if key.startswith(CONFIG):
        key = key.removeprefix(CONFIG)
        if vars(module)["config"] is shared:
            vars(module)["config"] = copy.copy(shared)
        owner = vars(module)["config"]
        known = getattr(owner, key)
    else:
        known = vars(module)[key]
    if not isinstance(known, _SCALARS):
        raise TypeError(f"{key} of {type(module).__name__} is no plain number or text")
    setattr(owner, key, value)
