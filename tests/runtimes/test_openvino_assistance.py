"""Speculative decoding: measured at build, kept or left out, and never another text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from built import build
from text_recipes import TASK, recipe_of

from archiver.errors import RecipeError
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline.check import check
from archiver.runtimes import openvino_assistance as decoder_assist
from archiver.runtimes.openvino_assistance import helped_up_to
from handlers.inputs.text import TextInput


def built(folder: Path, model: Path, **serve) -> tuple[dict, dict, list]:
    """(session, what was measured, greedy texts) of an archive."""
    recipe = recipe_of(folder, model, serve={"runtime": "openvino", "max_length": 64, "examples": 2, **serve})
    path = build(recipe, folder / "store").path
    with extracted(path) as (files, names):
        handler = handler_of(files)
        handler.open(files, threads=1)
        texts = handler.respond([TextInput("a film"), TextInput("the dog")], {"max_new_tokens": 24})
        handler.engine.close()
        session = json.loads((files / "serving.json").read_text())["session"]
        timings = json.loads((files / "timings.json").read_text())["timings"]
        assert ("draft/openvino_model.xml" in names) == ("draft" in session)
    return session, timings.get("assistance"), texts


@pytest.mark.parametrize(
    ("ratios", "up_to"),
    [
        ({1: 1.5, 2: 1.2, 4: 0.9, 8: 0.8}, 2),
        ({1: 0.9, 2: 1.2, 4: 1.1, 8: 1.0}, 0),
        ({8: 1.1, 1: 1.2, 4: 1.1, 2: 1.01}, 8),
        ({1: 1.0}, 0),
    ],
)
def test_used_up_to_as_many_streams_as_it_helped(ratios, up_to) -> None:
    assert helped_up_to(ratios) == up_to


def test_a_draft_travels_only_where_it_is_faster_and_writes_the_same_text(tiny_model, tmp_path, monkeypatch) -> None:
    """The ratios are given here, so that the decision and not this host's speed is looked at."""
    model = tiny_model("llama", TASK, num_hidden_layers=1, eos_token_id=None)
    monkeypatch.setattr(decoder_assist, "_ratio", lambda *some: 1.1)
    session, measured, assisted = built(tmp_path, model, draft=str(model), assistant_tokens=3)
    assert measured["kind"] == "draft" and session["draft"] == "draft" and session["assist_up_to"] == 8
    monkeypatch.setattr(decoder_assist, "_ratio", lambda *some: 0.9)
    session, measured, plain = built(tmp_path, model, draft=str(model))
    assert measured["used_up_to_streams"] == 0 and "draft" not in session
    assert assisted == plain


def test_it_is_used_for_as_many_streams_as_it_helped(tiny_model, tmp_path, monkeypatch) -> None:
    given = iter([2.0, 0.9])
    real = decoder_assist._ratio

    def ratio(*some) -> float:
        assert real(*some) > 0
        return next(given)

    monkeypatch.setattr(decoder_assist, "_ratio", ratio)
    session, measured, _ = built(tmp_path, tiny_model("llama", TASK, num_hidden_layers=1), prompt_lookup=True)
    assert measured["speedup_by_streams"] == {"1": 2.0, "2": 0.9}  # four are not looked at
    assert measured["used_up_to_streams"] == session["assist_up_to"] == 1 and session["prompt_lookup"] is True


def test_a_draft_of_other_tokens_is_refused(tiny_model, tmp_path) -> None:
    other = tiny_model("llama", TASK, vocab_size=512)
    recipe = recipe_of(tmp_path, tiny_model("llama", TASK), serve={"runtime": "openvino", "draft": str(other)})
    with pytest.raises(RecipeError, match=r"serve\.draft \S+ has 512 tokens, the model \d+: they must be equal"):
        check(recipe)
