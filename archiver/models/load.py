"""A model directory as a torch module: with its weights in fp32, or its modules alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.errors import UnsupportedModelError
from archiver.host import large_blocks_apart
from archiver.models.config import model_class, quiet, read_config, reason
from archiver.models.files import read_directory, unusable
from archiver.models.source import ModelSource

if TYPE_CHECKING:
    import torch


def load_model(
    source: ModelSource | Path, auto_class: str, *, base_only: bool | None = None, input_name: str = "input_ids"
) -> torch.nn.Module:
    """The model as one of transformers' auto classes makes it: fp32, in eval mode, eager attention, with weights.

    From safetensors only, whatever float type they have; no remote code, no download. Layers that are linear but of a
    class of transformers' own become torch's (`to_linear_layers`).

    Args:
        source: the directory, or where it was found.
        auto_class: the class's name, as "AutoModelForCausalLM".
        base_only: the model without head and pooler is wanted. Default: for AutoModel.
        input_name: the model's main input; of a model for several kinds of input the part that takes it.
    Raises: UnsupportedModelError when a weight is missing, surplus or of another shape than config.json says.
    """
    from archiver.models.checkpoint import LOADING, loading_problems
    from archiver.models.stored import weights_of
    from handlers.architecture.linear_layers import to_linear_layers

    path = _path(source)
    config, cls, options = _class_of(path, auto_class, base_only, input_name)
    with quiet(), large_blocks_apart():
        try:
            # The files' tensors one by one, each in its own type: mapped, the files would be in memory beside the model.
            model, info = cls.from_pretrained(
                None, config=config, state_dict=weights_of(path), trust_remote_code=False, **LOADING, **options
            )
            if model.can_generate() and hasattr(model, "adjust_generation_fn"):
                # What from_pretrained does with a path: generation_config.json, else config.json.
                download: dict[str, Any] = {
                    "cache_dir": None,
                    "force_download": False,
                    "proxies": None,
                    "local_files_only": True,
                }
                download |= {"token": None, "revision": "main", "subfolder": ""}
                model.adjust_generation_fn(None, False, False, path, trust_remote_code=False, **download)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise UnsupportedModelError(
                f"model {path.absolute().name!r}: transformers cannot load it: {reason(error)}"
            ) from error
    head, problems = loading_problems(model, info)
    problems = [f"{name} is missing and would be random" for name in head] + problems
    if problems:
        raise UnsupportedModelError(f"model {path.absolute().name!r}: its weights and config.json differ:", problems)
    loaded = to_linear_layers(model.float().eval())
    words, head_layer = _embeddings(model), model.get_output_embeddings()
    if words is not None and head_layer is not None and hasattr(head_layer, "weight"):
        # A file that holds another head than its embeddings keeps both, whatever config.json says.
        model.config.tie_word_embeddings = head_layer.weight is words.weight
    return loaded


def _embeddings(model: Any) -> Any:
    """The table of token embeddings; None where the model's inputs are no tokens."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def skeleton(
    source: ModelSource | Path, auto_class: str, *, base_only: bool | None = None, input_name: str = "input_ids"
) -> torch.nn.Module:
    """The model's modules by its config alone, without reading a weight: for a look at names and shapes.

    Inside `torch.device("meta")` it costs neither memory nor time. Args and Raises: as `load_model`.
    """
    import torch

    from handlers.architecture.linear_layers import to_linear_layers

    config, cls, options = _class_of(_path(source), auto_class, base_only, input_name)
    config.dtype = torch.float32  # for the parts, too, that some classes make by another call
    model: torch.nn.Module = cls._from_config(config, attn_implementation="eager", **options)
    return to_linear_layers(model)


def _class_of(path: Path, auto_class: str, base_only: bool | None, input_name: str) -> tuple[Any, Any, dict[str, Any]]:
    """(configuration, class, more arguments of its constructor) of a directory without problems."""
    from archiver.models.checkpoint import model_options

    directory, problems = read_directory(path), list[str]()
    config = read_config(path, directory.config, auto_class, problems)
    cls = None
    if config is not None:
        cls, config = model_class(config, auto_class, problems, input_name, directory.tensors)
    if problems:
        raise unusable(path, problems)
    alone = auto_class == "AutoModel" if base_only is None else base_only
    return config, cls, model_options(cls, config, alone, input_name, directory.tensors)


def _path(source: ModelSource | Path) -> Path:
    return source.path if isinstance(source, ModelSource) else Path(source)
