"""What a sentence-transformers directory says of pooling: modules.json, 1_Pooling, sentence_bert_config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archiver.models.files import read_json

POOLING_MODES = ("mean", "cls", "max", "last")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector, with L2 normalisation behind it or not.

    mode: over the real tokens: their "mean" or "max", the first ("cls") or the "last" one
    declared: False where the directory has no modules.json, so that `mode` is a default
    max_seq_length: tokens, from sentence_bert_config.json; None when not stated
    """

    mode: str = "mean"
    normalize: bool = False
    declared: bool = False
    max_seq_length: int | None = None


def read_pooling(path: Path, *, causal: bool, problems: list[str]) -> Pooling:
    """The pooling of a model directory; what cannot be reproduced becomes a problem.

    Args:
        causal: each token sees those before it alone, so that only the last one has seen the text: without modules.json
            its vector is the text's. Otherwise the mean is, which is sentence-transformers' default.
    """
    default = "last" if causal else "mean"
    if not (path / "modules.json").is_file():
        return Pooling(default)
    modules = _modules(path, problems)
    mode, normalize = default, False
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        folder = path / str(module.get("path", ""))
        if kind == "Transformer":
            if folder.resolve() != path.resolve():
                problems.append(
                    f"modules.json keeps the transformer in {folder.name}: give that folder's own directory"
                )
        elif kind == "Pooling":
            mode = _mode(folder / "config.json", problems)
        elif kind == "Normalize":
            normalize = True
        else:
            problems.append(f"modules.json has a module {kind!r}; allowed: Transformer, Pooling, Normalize")
    return Pooling(mode, normalize, True, _max_seq_length(path, problems))


def _modules(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        modules = json.loads((path / "modules.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"modules.json is not readable JSON: {error}")
        return []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        problems.append("modules.json must hold a list of modules")
        return []
    return modules


def _mode(config_path: Path, problems: list[str]) -> str:
    config = read_json(config_path, problems)
    name = f"{config_path.parent.name}/config.json"
    declared = config.get("pooling_mode")
    modes = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if isinstance(declared, str):
        modes = [_FLAGS.get(f"pooling_mode_{declared}", declared)]
    if len(modes) == 1 and modes[0] in POOLING_MODES:
        return modes[0]
    if config:
        problems.append(f"{name} pools by {' + '.join(modes) or 'nothing'}; allowed: one of {', '.join(POOLING_MODES)}")
    return "mean"


def _max_seq_length(path: Path, problems: list[str]) -> int | None:
    length = None
    if (path / "sentence_bert_config.json").is_file():
        config = read_json(path / "sentence_bert_config.json", problems)
        length = config.get("max_seq_length")
        if config.get("do_lower_case"):
            problems.append(
                "sentence_bert_config.json sets do_lower_case: put it into tokenizer.json's normalizer instead"
            )
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            problems.append(f"sentence_bert_config.json: max_seq_length {length!r} must be a positive integer")
            length = None
    if (path / "config_sentence_transformers.json").is_file():
        config = read_json(path / "config_sentence_transformers.json", problems)
        prompts, default = config.get("prompts"), config.get("default_prompt_name")
        if isinstance(default, str) and isinstance(prompts, dict) and prompts.get(default):
            problems.append(
                f"config_sentence_transformers.json puts the prompt {prompts[default]!r} before every text, which is "
                "not supported: set default_prompt_name to null and send texts with their prompt"
            )
    return length
