"""What each method declares: search values that its options allow, refusals that read well, where it runs."""

from __future__ import annotations

import pytest

from archiver.compression import METHODS
from archiver.compression.method import Effect
from archiver.compression.quantize.options import WeightOnly
from archiver.compression.retrain.options import Retrain
from archiver.fields import options_of

ENTRIES = {f"{verb}/{name}": method for verb, methods in METHODS.items() for name, method in methods.items()}


@pytest.mark.parametrize("label", ENTRIES)
def test_search_values_are_allowed_by_their_option(label):
    method = ENTRIES[label]
    for name, values in method.search.items():
        allowed = options_of(method.options)[name][0]
        assert len(values) > 1
        assert [allowed.problem(value) for value in values] == [None] * len(values)


@pytest.mark.parametrize("label", ENTRIES)
def test_its_functions_are_there_and_its_refusals_name_both_stages(label):
    method = ENTRIES[label]
    assert callable(method.load())
    assert method.load_check() is None or callable(method.load_check())
    options = method.options()
    for refusal in method.refusals(options).values():
        said = refusal.reason.format(stage="later", earlier="earlier")
        assert said.startswith("later stands ")
        assert "{stage}" not in said and "{earlier}" not in said
    assert Effect.PLANNED_INTEGERS in method.refusals(options)


def test_what_weight_only_leaves_follows_its_options():
    leaves = ENTRIES["quantize/weight-only"].effect
    assert leaves(WeightOnly()) is Effect.PLANNED_INTEGERS
    assert leaves(WeightOnly(bits=4)) is Effect.FIXED_GRID
    assert leaves(WeightOnly(bits=4, aware=Retrain())) is Effect.GRID
    assert ENTRIES["retrain/retrain"].effect(Retrain()) is None


def test_only_int8_activations_and_cut_vocabularies_are_restricted():
    restricted = {label: method for label, method in ENTRIES.items() if method.devices or method.executions}
    assert set(restricted) == {"quantize/dynamic-int8", "quantize/static-int8", "share/vocabulary"}
    vocabulary = restricted.pop("share/vocabulary")
    assert vocabulary.executions is not None and vocabulary.executions.allowed == ("forward", "generate")
    for method in restricted.values():
        assert method.devices is not None and method.devices.allowed == ("cpu",)
        assert method.executions is not None and method.executions.allowed == ("forward", "seq2seq")
