"""The one validator: every value is either accepted and in range, or refused with the field's name."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.params import FLOAT_RANGES, INT_RANGES, ParameterError, SamplingParams

FLAGS = ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")
LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")
ODD: list[Any] = [
    True, "", "1", b"1", None, [], {}, [None], [1.5], ["x", 2], {"a": 1}, {1: "x"}, float("nan"), float("inf"),
    -float("inf"), 10**400, -(10**400), 2**63, -(2**63) - 1, 1e308, -0.0, 0, 1, -1, 0.5, object(), (1, 2), [True],
    [2**64],
]  # fmt: skip
anything = st.one_of(
    st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=4)
)


@given(st.sampled_from([*FLOAT_RANGES, *INT_RANGES, *FLAGS, *LISTS, "logit_bias"]), anything)
def test_any_value_is_accepted_in_range_or_refused_by_name(name: str, value: Any) -> None:
    try:
        params = SamplingParams(**{"max_tokens": None, name: value})
    except ParameterError as error:
        assert error.param == name
        assert str(error).startswith(name)
        assert len(str(error)) < 200
        return
    kept = getattr(params, name)
    if name in FLOAT_RANGES:
        assert math.isfinite(kept)
        assert FLOAT_RANGES[name][0] <= kept <= FLOAT_RANGES[name][1]
    elif name in INT_RANGES and kept is not None:
        assert type(kept) is int
        assert INT_RANGES[name][0] <= kept <= INT_RANGES[name][1]
    elif name in FLAGS:
        assert type(kept) is bool


@pytest.mark.parametrize("name", FLOAT_RANGES)
def test_ends_of_float_ranges(name: str) -> None:
    low, high, low_open = FLOAT_RANGES[name]
    SamplingParams(**{name: high})
    outside = [high + 1e-9, high * 2 + 1, low - 1e-9]
    if low_open:
        outside.append(low)
    else:
        SamplingParams(**{name: low})
    for value in outside:
        with pytest.raises(ParameterError, match=name):
            SamplingParams(**{name: value})


@pytest.mark.parametrize("name", INT_RANGES)
def test_ends_of_integer_ranges(name: str) -> None:
    low, high, optional = INT_RANGES[name]
    more = {"max_tokens": None} if name == "min_tokens" else {}
    SamplingParams(**{**more, name: low})
    SamplingParams(**{**more, name: high})
    for value in (low - 1, high + 1, 1.0):
        if (name, value) == ("seed", -1):
            continue
        with pytest.raises(ParameterError, match=name):
            SamplingParams(**{**more, name: value})
    if optional:
        assert getattr(SamplingParams(**{**more, name: None}), name) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2, "temperature": 0}, "n"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"stop": "x", "detokenize": False}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"bad_words": [""]}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"logit_bias": {1: 100.5}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias"),
    ],
)
def test_rules_between_fields_and_inside_lists(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**fields)
    assert caught.value.param == param


def test_one_string_is_a_list_of_one_and_none_is_empty() -> None:
    params = SamplingParams(stop="x", bad_words=None, logit_bias=None, stop_token_ids=None)  # type: ignore[arg-type]
    assert (params.stop, params.bad_words, params.logit_bias, params.stop_token_ids) == (["x"], [], {}, [])


def test_seed_minus_one_means_none() -> None:
    assert SamplingParams(seed=-1).seed is None


def test_checks_against_the_model() -> None:
    for fields, param in (
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"allowed_token_ids": [5, 100]}, "allowed_token_ids"),
        ({"logit_bias": {100: 1.0}}, "logit_bias"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ):
        with pytest.raises(ParameterError) as caught:
            SamplingParams(**fields).check_against_model(vocab_size=100, max_logprobs=20)  # type: ignore[arg-type]
        assert caught.value.param == param
    SamplingParams(stop_token_ids=[99], logprobs=20).check_against_model(100, 20)


def test_survives_the_wire() -> None:
    params = SamplingParams(temperature=0.5, stop=["a"], logit_bias={3: -1.0}, seed=7, max_tokens=None)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
