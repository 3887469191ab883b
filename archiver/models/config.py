"""A model's config.json as transformers reads it, and the class that its auto class chooses by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Auto classes whose models have an encoder and a decoder; every other task wants one stack of layers.
ENCODER_DECODER = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
CAUSAL = "AutoModelForCausalLM"


def read_config(path: Path, raw: Mapping[str, Any], auto_class: str, problems: list[str]) -> Any:
    """transformers' configuration of a directory; None, and a problem, where it cannot read it or no class fits.

    Args:
        raw: config.json as it stands.
        auto_class: the name of transformers' auto class, as "AutoModelForCausalLM".
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    from handlers.architecture.families import register

    register()
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        problems.append(f"config.json: model_type is {model_type!r}, which this version of transformers does not know")
        return None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each configuration class checks its values its own way
        problems.append(f"config.json cannot be read by transformers: {reason(error)}")
        return None
    _check_kind(config, raw, auto_class, problems)
    return config


def model_class(config: Any, auto_class: str, problems: list[str]) -> tuple[Any, Any]:
    """The class that transformers' auto class chooses for a configuration, and the configuration which that class takes.

    Returns: (class, configuration): of a model for several kinds of input the text part, where the class is for text.
    (None, the configuration), and a problem, where there is no such class.
    """
    import transformers
    from transformers.models.auto import auto_factory

    choose: Any = auto_factory._get_model_class  # where a type has several classes, by config.json's architectures
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        problems.append(f"transformers has no {auto_class} for model_type {config.model_type!r}")
        return None, config
    try:
        cls = choose(config, mapping)
    except (ImportError, RuntimeError) as error:
        problems.append(f"model_type {config.model_type!r}: transformers cannot import its classes: {reason(error)}")
        return None, config
    part = config.sub_configs.get("text_config")
    return cls, config.get_text_config() if part is not None and cls.config_class == part else config


def is_causal(model: Any) -> bool:
    """Whether each token of a text sees those before it alone: decided by the attention modules, else by the model type.

    Args:
        model: transformers' model, on any device.
    """
    from transformers.models.auto import modeling_auto

    config = model.config.get_text_config()
    if getattr(config, "is_decoder", False):
        return True
    said = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if said:
        return any(said)
    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in causal and config.model_type not in masked


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings, loading report and progress bars: what they say is checked here."""
    from transformers import utils

    logging: Any = utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason(error: BaseException) -> str:
    """An exception's text in one line of at most 500 characters."""
    return " ".join(f"{error or type(error).__name__}".split())[:500]


def _check_kind(config: Any, raw: Mapping[str, Any], auto_class: str, problems: list[str]) -> None:
    model_type = config.model_type
    if config.is_encoder_decoder and auto_class not in ENCODER_DECODER:
        problems.append(
            f"model_type {model_type!r} has an encoder and a decoder (is_encoder_decoder), this task takes models with "
            "one of them"
        )
    if raw.get("add_cross_attention"):
        problems.append("config.json gives it cross-attention (add_cross_attention): give a model without it")
    if raw.get("is_decoder") and auto_class != CAUSAL and not config.is_encoder_decoder:
        problems.append("config.json makes an encoder a decoder (is_decoder): this task takes it as an encoder only")
    kind = raw.get("position_embedding_type")
    if kind in ("relative_key", "relative_key_query"):  # BERT's relatives in versions of transformers before 5
        problems.append(
            f"position_embedding_type {kind!r} is not supported by transformers any more; allowed: absolute"
        )
