"""What each parameter of a request for text may be, in every form that has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asked_for_text import SEED, ask, completion, hf, refusal

from handlers.protocols.huggingface import generation as hf_generation
from handlers.protocols.openai import text as openai

WHOLE = "a whole number from 1"
BOUNDS: dict[str, tuple[list[Any], list[Any], str]] = {  # good, bad, what is allowed
    "max_new_tokens": ([1, 10**6], [0, -1, 1.5, "5", True, None, [1]], WHOLE),
    "max_tokens": ([1, 10**6], [0, -1, 1.5, "5", True], WHOLE),
    "max_completion_tokens": ([1], [0, 2.0], WHOLE),
    "do_sample": ([True, False], [1, "true", None], "true or false"),
    "temperature": ([0, 0.1, 100], [-0.1, 100.1, "1", True, float("nan"), float("inf")], "a number from 0 (always the"),
    "top_p": ([0.001, 1], [0, 1.001, -1, "1", False, float("nan")], "a number above 0, up to 1"),
    "top_k": ([0, 2**31 - 1], [-1, 2**31, 1.0, True], "a whole number from 0 (all)"),
    "repetition_penalty": ([0.5, 100], [0, -1, 101, float("nan")], "a number above 0, up to 100; 1 changes nothing"),
    "frequency_penalty": ([-2, 0, 2], [-2.1, 2.1, "0", float("nan")], "a number from -2 to 2"),
    "presence_penalty": ([-2, 0, 2], [-2.1, 2.1, True], "a number from -2 to 2"),
    "stop": (["x", ["x"], [], ["x"] * 16], ["", [""], ["x"] * 17, 5, ["x", 5], {"x": 1}], "a text, or a list of up to"),
    "seed": ([0, 2**63 - 1], [-1, 2**63, 1.0, True, "1"], "a whole number from 0 to 2^63 - 1"),
    "return_full_text": ([True, False], [0, "no"], "true or false"),
    "details": ([True, False], [0, "no"], "true or false"),
    "max_time": ([0.1, 1e6], [0, -1, 1e7, "1", True, float("nan")], "seconds, a number above 0"),
    "n": ([1], [0, -1, True, "1"], "a whole number from 1"),
    "logit_bias": (
        [{}, {"0": -100, "7": 0.5}, {str(token): 1 for token in range(1024)}],
        [
            [],
            {"5": 101},
            {"5": "1"},
            {"5": float("nan")},
            {"-5": 1},
            {"five": 1},
            {"²": 1},
            {str(t): 1 for t in range(1025)},
        ],
        'an object {"token id": number from -100 to 100} with up to 1024 of them',
    ),
    "metadata": ([{}, {"a": "b"}], [5, []], "an object, which changes nothing"),
    "store": ([True, False], [1, "true"], "true or false, which changes nothing"),
    "service_tier": (["auto"], [5], "a text, which changes nothing"),
    "stream": ([True, False], [1, "true"], "true or false"),
    "stream_options": (
        [{}, {"include_usage": True}],
        [[], True, {"include_usage": 1}, {"other": True}],
        '{"include_usage": true or false, "include_obfuscation": true or false}',
    ),
    "grammar": ([{"type": "regex", "value": "a"}], [[], "a", True], '{"type": "json" or "regex", "value": …}'),
    "response_format": ([{"type": "text"}], [[], "text", 5], '{"type": "text", "json_object" or "json_schema", …}'),
    "guided_json": ([{}, '{"type": "object"}'], [[], 5, True], "a JSON schema"),
    "guided_regex": (["a+"], [["a"], 5], "a regular expression"),
    "guided_choice": ([["a", "b"]], ["a", {"a": 1}], "a list of texts"),
    "model": (["any", ""], [5, ["a"]], "a text, which changes nothing: the URL names the model"),
    "user": (["any"], [5], "a text, which changes nothing"),
    "safety_identifier": (["any"], [5], "a text, which changes nothing"),
    "prompt_cache_key": (["any"], [5], "a text, which changes nothing"),
    # Which names are there hangs on the archive: test_adapter_names.py.
    "adapter": ([], [5, None, ["a"], True], "the name of one of the archive's adapters"),
    "adapter_id": ([], [5, {}], "the name of one of the archive's adapters"),
}
PLACES = [("inputs", name) for name in hf_generation.PARAMETERS] + [("prompt", name) for name in openai.PARAMETERS]


@pytest.mark.parametrize(("form", "name"), PLACES, ids=[f"{form}-{name}" for form, name in PLACES])
def test_bounds_of_parameters(form, name) -> None:
    def document(value: Any) -> dict[str, Any]:
        return {"inputs": "a", "parameters": {name: value}} if form == "inputs" else {"prompt": "a", name: value}

    good, bad, allowed = BOUNDS[name]
    for value in good:
        assert ask(document(value)).prompts == ("a",)
    for value in bad:
        kinds = {list: "a list", dict: "an object"}
        shown = kinds.get(type(value)) or json.dumps(value)
        assert refusal(document(value)).startswith(f"parameter '{name}' is {shown}; allowed: {allowed}")


def test_stop_as_a_text_and_as_a_list() -> None:
    assert hf(stop="ab").stops == completion(stop=["ab"]).stops == ("ab",)
    assert hf(stop=["a", "b"]).stops == ("a", "b")
    assert hf().stops == completion(stop=[]).stops == ()


def test_seeds() -> None:
    assert hf(do_sample=True, seed=0).sampling.seed == 0  # 0 is a seed, not none
    assert completion(seed=9).sampling.seed == 9
    assert completion().sampling.seed == SEED
    assert completion(temperature=0, seed=9).sampling.seed == 0
