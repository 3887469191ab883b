"""A recipe's file, with overrides, to a checked Recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from archiver.errors import RecipeError
from archiver.recipe.check import check_recipe
from archiver.recipe.yaml_tree import MAX_BYTES, Node, Problems, apply_override, read_yaml
from archiver.spec import Recipe


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    overrides: "a.b=value" as `--set` takes them, list indices allowed ("compress.0.quantize.method=static-int8");
        paths in them are relative to the current directory, those of the file to the file
    raises RecipeError that lists every mistake, each with `file:line:` (or `--set a.b:`) and what would be right
    """
    path = Path(path)
    problems = Problems()
    root = read_yaml(_read_text(path), str(path), path.parent, problems)
    recipe = None
    if root is not None:
        if root.value is None:
            root = Node({}, f"{path}:1", 1, path.parent)
        for index, override in enumerate(overrides):
            apply_override(root, override, index, problems)
        recipe = check_recipe(root, path.parent, problems)
    if problems or recipe is None:
        lines = problems.lines()
        raise RecipeError(f"{path} has {len(lines)} mistake{'s' if len(lines) > 1 else ''}:", lines)
    return recipe


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist: name a YAML file (`init MODEL_DIR` writes one)") from None
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}; name a YAML file") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"recipe {path} is larger than {MAX_BYTES} bytes: is it a recipe?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8") from error
