"""Recipe files that are damaged, hostile or no recipe at all."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from recipes import CONTRACT, LEAST, load, mistakes

from archiver.errors import RecipeError
from archiver.recipe.load import load_recipe
from archiver.recipe.plain import as_dict


@pytest.fixture
def folder(recipe_folder: Path) -> Path:
    return recipe_folder


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}", "---\n"])
def test_an_empty_file_lacks_its_keys(folder, text) -> None:
    assert [problem.split("lacks the key ")[1][:7] for problem in mistakes(folder, text)] == [
        "'name';",
        "'task';",
        "'model'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "recipe.yaml:1: a recipe must be a mapping with keys among name"),
        ("just words", "recipe.yaml:1: a recipe must be a mapping with keys among name"),
        ("a: b: c", "recipe.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 'open", "recipe.yaml:1: not valid YAML: while scanning a quoted scalar"),
        ("x: 1\n\ty: 2", "recipe.yaml:2: not valid YAML"),
        ("a: \x07", "recipe.yaml:1: character U+0007 is not allowed in YAML"),
        ("[" * 3000, "recipe.yaml:1: nested deeper than 24 levels"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: a second document begins here"),
        ("a: &a [1]\nb: [" + "*a," * 40 + "]", "recipe.yaml:2: more than 32 aliases"),
        ("a: [" + "1," * 30_000 + "]", "recipe.yaml:1: more than 20000 values"),
        ("a: *gone", "recipe.yaml:1: not valid YAML: found undefined alias"),
    ],
    ids=str.__len__,
)
def test_what_is_no_recipe_at_all(folder, text, expected) -> None:
    (problem,) = mistakes(folder, text)
    assert expected in problem


def test_tags_are_refused_and_run_nothing(folder) -> None:
    found = mistakes(folder, f"{LEAST}version: !!python/object/apply:os.system ['touch run']\n")
    assert "recipe.yaml:4: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed" in found[0]
    assert not Path("run").exists()


def test_aliases_that_multiply_or_contain_themselves(folder) -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1]\n"
    for name, previous in ("ba", "cb", "dc", "ed", "fe"):
        bomb += f"{name}: &{name} [{','.join([f'*{previous}'] * 6)}]\n"
    assert any("aliases that contain themselves or multiply" in problem for problem in mistakes(folder, bomb))
    assert any("aliases that contain themselves" in p for p in mistakes(folder, f"{LEAST}data: &d {{train: *d}}\n"))


def test_an_alias_may_be_used(folder) -> None:
    data = "data: {train: &d sst2/dev.tsv, validation: *d}\n"
    recipe = load(folder, LEAST + data)
    assert recipe.data.train == recipe.data.validation == folder / "sst2/dev.tsv"


def test_files_that_cannot_be_read(folder) -> None:
    with pytest.raises(
        RecipeError, match=r"gone.yaml does not exist: name a YAML file \(`init MODEL_DIR` writes one\)"
    ):
        load_recipe(folder / "gone.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(folder)
    with pytest.raises(RecipeError, match=r"recipe.yaml:2: byte 0xff is not UTF-8"):
        load(folder, b"name: x\ntask: \xff\n")
    with pytest.raises(RecipeError, match="larger than 1000000 bytes"):
        load(folder, b"#" * 1_000_001)


def test_byte_order_mark_and_crlf(folder) -> None:
    assert load(folder, b"\xef\xbb\xbf" + CONTRACT.replace("\n", "\r\n").encode()) == load(folder, CONTRACT)


def test_damaged_recipes_end_in_a_recipe_error_or_in_a_recipe(folder) -> None:
    random = Random(7)
    pieces = [
        "- ",
        "[",
        "}",
        ": ",
        "null",
        "1e999",
        "'",
        "&a ",
        "*a",
        "!x ",
        "\n",
        "\t",
        "<<: ",
        "? ",
        ".nan",
        "{1: {}}",
    ]
    lines = CONTRACT.splitlines(keepends=True)
    for _ in range(150):
        damaged = list(lines)
        index = random.randrange(len(damaged))
        at = random.randrange(len(damaged[index]))
        damaged[index] = damaged[index][:at] + random.choice(pieces) + damaged[index][at + random.choice((0, 1, 4)) :]
        try:
            as_dict(load(folder, "".join(damaged)))
        except RecipeError as error:
            assert error.problems and all(":" in problem for problem in error.problems)
