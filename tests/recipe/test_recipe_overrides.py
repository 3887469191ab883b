"""`--set a.b=value` over a recipe file."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import CONTRACT, LEAST, load, mistakes

from archiver.compression.quantize.options import StaticInt8


@pytest.fixture
def folder(recipe_folder: Path) -> Path:
    return recipe_folder


def test_overrides(folder, tmp_path_factory, monkeypatch) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "mine.txt").write_text("x\n")
    monkeypatch.chdir(here)
    recipe = load(
        folder,
        CONTRACT,
        "compress.0.quantize.method=static-int8",
        "compress.0.quantize.samples=50",
        "compress.0.quantize.ignore=[classifier, '*.0.*']",
        "serve.batch_size=16",
        "data.train=mine.txt",
        "version=1.20",
        "gate.min.accuracy=0.8",
        "serve.examples=mine.txt",
    )
    assert recipe.compress[0].options == StaticInt8(samples=50, ignore=("classifier", "*.0.*"))
    assert (recipe.serve.batch_size, recipe.version) == (16, "1.20")
    assert recipe.data.train == recipe.serve.examples == here / "mine.txt"
    assert recipe.data.validation == folder / "sst2/dev.tsv"
    assert recipe.gate is not None and recipe.gate.min == {"accuracy": 0.8}
    assert load(folder, CONTRACT, "compress=[]").compress == ()
    assert load(folder, CONTRACT, "gate=null").gate is None
    added = load(folder, LEAST, "compress=[]", "compress.0={quantize: {method: dynamic-int8}}", "serve.max_length=9")
    assert added.compress[0].label == "quantize/dynamic-int8" and added.serve.max_length == 9


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("serve", "--set serve: must be KEY.KEY=VALUE"),
        ("=3", "--set =3: must be KEY.KEY=VALUE"),
        ("serve..x=3", "--set serve..x=3: must be KEY.KEY=VALUE"),
        ("serve.batch_size=abc", "--set serve.batch_size: serve.batch_size must be an integer"),
        ("serve.batch_size=[", "--set serve.batch_size: not valid YAML"),
        ("name.x=3", "--set name.x: name is 'sst2': 'x' cannot be set in it"),
        ("compress.3.quantize.method=x", "--set compress.3.quantize.method: compress is a list of 1; '3' is no place"),
        ("compress.a=3", "--set compress.a: compress is a list of 1; 'a' is no place in it: 0 to 0, or 1 to append"),
        ("data.train=gone.tsv", "--set data.train: data.train: gone.tsv does not exist"),
        ("data.train=", "compress.0: quantize/static-int8 is calibrated on data.train, which is missing"),
        ("data={}", "--set"),
    ],
)
def test_mistakes_in_overrides(folder, override, expected) -> None:
    assert any(expected in problem for problem in mistakes(folder, CONTRACT, override, "q.r=1"))
