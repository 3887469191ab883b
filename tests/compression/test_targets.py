"""`targets` and `ignore`: globs over module names."""

from __future__ import annotations

import pytest

from archiver.compression.modules import select_modules
from archiver.errors import RecipeError


def test_select_modules() -> None:
    names = ["encoder.layer.0.attention.query", "encoder.layer.1.output.dense", "classifier"]
    assert select_modules(names, ["*"]) == names
    assert select_modules(names, ["encoder.*"], ["*.query"]) == ["encoder.layer.1.output.dense"]
    with pytest.raises(RecipeError, match=r"(?s)modules are: encoder.*targets: 'decoder.\*' matches no.*ignore: 'x'"):
        select_modules(names, ["*", "decoder.*"], ["x"])
    with pytest.raises(RecipeError, match="together leave no module"):
        select_modules(names, ["classifier"], ["*"])
