"""What a field of a recipe's dataclass may hold: declared once, beside the field, and checked generically.

A field made with `option(...)` carries its kind, range, choices and help in `dataclasses.Field.metadata["option"]`.
`archiver.recipe.check.read_options` reads a mapping of the recipe against such a dataclass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["integer", "number", "string", "boolean", "globs", "parsed", "options"]

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class Allowed:
    """What one field may hold.

    kind: "globs" is one string or a list of strings, kept as a tuple; "options" a mapping, read into the dataclass `of`;
        "parsed" is whatever `parse` takes: it returns the value to keep and raises ValueError for what is not allowed,
        which `says` puts in words
    choices: for strings the only values; for numbers words allowed beside a number ("auto")
    minimum, maximum: inclusive bounds of a number; above: an exclusive lower bound
    search: the values worth trying when a search is run over the option; empty: it is left at its default
    """

    kind: Kind
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    help: str = ""
    parse: Callable[[Any], Any] | None = None
    says: str = ""
    of: type | None = None
    search: tuple[Any, ...] = ()

    def describe(self) -> str:
        """What is allowed, in words: "an integer from 1 to 64, or auto"."""
        if self.kind == "globs":
            return "a glob over module names, or a list of globs"
        if self.kind == "parsed":
            return self.says
        if self.kind == "options":
            return "a mapping with keys among " + ", ".join(options_of(self.of)) if self.of else "a mapping"
        if self.kind == "boolean":
            return "true or false"
        if self.kind == "string":
            return "one of " + ", ".join(map(str, self.choices)) if self.choices else "a string"
        if self.kind == "integer" and self.choices and self.minimum is None:
            return "one of " + ", ".join(map(str, self.choices))
        words = "an integer" if self.kind == "integer" else "a number"
        if self.above is not None:
            words += f" above {self.above:g}"
        if self.minimum is not None and self.maximum is not None:
            words += f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            words += f" of at least {self.minimum:g}"
        elif self.maximum is not None:
            words += f" and at most {self.maximum:g}" if self.above is not None else f" of at most {self.maximum:g}"
        return words + "".join(f", or {word}" for word in self.choices)

    def problem(self, value: Any) -> str | None:
        """None when `value` is allowed, else what would be: bool is never taken for a number."""
        if self.kind == "globs":
            globs = value if isinstance(value, (list, tuple)) else [value]
            good = all(isinstance(glob, str) and glob.strip() for glob in globs)
        elif self.kind == "parsed":
            good = self._parses(value)
        elif self.kind == "options":
            good = isinstance(value, dict)
        elif self.kind == "boolean":
            good = isinstance(value, bool)
        elif self.kind == "string":
            good = isinstance(value, str) and (value in self.choices if self.choices else bool(value))
        else:
            good = self._number_allowed(value)
        return None if good else f"must be {self.describe()}"

    def _parses(self, value: Any) -> bool:
        assert self.parse is not None
        try:
            self.parse(value)
        except ValueError:
            return False
        return True

    def _number_allowed(self, value: Any) -> bool:
        if self.choices and not isinstance(value, bool) and value in self.choices:
            return True
        if self.kind == "integer" and self.choices and self.minimum is None:
            return False
        kinds = int if self.kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        # Written so that NaN, for which every comparison is false, is refused.
        return (
            float("-inf") < value < float("inf")
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
        )


def option(kind: Kind, default: Any = REQUIRED, **allowed: Any) -> Any:
    """A dataclass field of this kind; `allowed` as in `Allowed` (choices, minimum, maximum, above, help, parse, search)."""
    return dataclasses.field(default=default, metadata={"option": Allowed(kind=kind, **allowed)})


def options_of(cls: type) -> dict[str, tuple[Allowed, Any]]:
    """{field name: (what it may hold, its default or REQUIRED)} of a dataclass's fields made with `option`."""
    return {f.name: (f.metadata["option"], f.default) for f in dataclasses.fields(cls) if "option" in f.metadata}
