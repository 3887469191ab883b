"""Pooling as sentence-transformers directories declare it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from task_models import inspect_model

from archiver.errors import UnsupportedModelError
from archiver.tasks import default_task


@pytest.fixture
def path(tiny_model, tmp_path) -> Path:
    """A tiny encoder's directory that the test may change."""
    return Path(shutil.copytree(tiny_model("bert", "feature-extraction"), tmp_path / "model"))


def refused(path: Path) -> str:
    with pytest.raises(UnsupportedModelError, match="cannot be used:") as caught:
        inspect_model(path, "feature-extraction")
    return "\n".join(caught.value.problems)


def sentence_transformer(path: Path, *kinds: str, **pooling: object) -> Path:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, "2_x")} for kind in kinds]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def test_pooling(path) -> None:
    plain = inspect_model(path).pooling
    assert (plain.mode, plain.normalize, plain.declared, plain.max_seq_length) == ("mean", False, False, None)
    sentence_transformer(path, "Transformer", "Pooling", "Normalize", pooling_mode_cls_token=True)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": false}')
    found = inspect_model(path).pooling
    assert (found.mode, found.normalize, found.declared, found.max_seq_length) == ("cls", True, True, 48)
    sentence_transformer(path, "Transformer", "Pooling", pooling_mode="max")
    assert inspect_model(path).pooling.mode == "max"


def test_the_last_token_of_a_causal_model(tiny_model, tmp_path) -> None:
    """A decoder-type embedder is saved as the language model's base: its architecture alone would make it write text."""
    source = tiny_model("qwen3", "text-generation")
    assert inspect_model(source).pooling.mode == "last"
    assert inspect_model(source, "feature-extraction").pooling.mode == "last"
    assert inspect_model(tiny_model("bert", "feature-extraction"), "feature-extraction").pooling.mode == "mean"
    path = Path(shutil.copytree(source, tmp_path / "model"))
    sentence_transformer(path, "Transformer", "Pooling", "Normalize", pooling_mode_lasttoken=True)
    prompts = {"prompts": {"query": "Instruct: find it. Query: ", "document": ""}, "default_prompt_name": None}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    facts = inspect_model(path, "feature-extraction")
    assert (facts.pooling.mode, facts.pooling.normalize, facts.pooling.declared) == ("last", True, True)
    assert default_task(source) == "text-generation"
    assert default_task(path) == "feature-extraction"
    sentence_transformer(path, "Transformer", "Pooling", pooling_mode="lasttoken")
    assert inspect_model(path).pooling.mode == "last"


def test_pooling_that_is_refused(path) -> None:
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    sentence_transformer(path, "Transformer", "Pooling", "Dense", **both)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": "long", "do_lower_case": true}')
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = refused(path)
    for problem in (
        "1_Pooling/config.json pools by cls + mean; allowed: one of mean, cls, max, last",
        "modules.json has a module 'Dense'; allowed: Transformer, Pooling, Normalize",
        "sentence_bert_config.json sets do_lower_case",
        "max_seq_length 'long' must be a positive integer",
        "puts the prompt 'query: ' before every text",
    ):
        assert problem in found
    (path / "modules.json").write_text("{}")
    assert "modules.json must hold a list of modules" in refused(path)
