"""The same request has the same key, whoever writes it; another one has another."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aiworker.domain.cache_key import cache_key

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(st.text(max_size=8), values, max_size=3)


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(item) for key, item in reversed(list(value.items()))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def as_javascript_reads(value: Any) -> Any:
    """The same JSON without the difference between 1 and 1.0, but with the one between 1 and true."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, dict):
        return {key: as_javascript_reads(item) for key, item in value.items()}
    return [as_javascript_reads(item) for item in value] if isinstance(value, list) else value


@given(inputs)
def test_the_order_of_keys_does_not_count_at_any_depth(value: dict[str, Any]) -> None:
    assert cache_key("t", "1", value) == cache_key("t", "1", shuffled(value))


@given(inputs)
def test_a_round_trip_through_json_does_not_count(value: dict[str, Any]) -> None:
    assert cache_key("t", "1", value) == cache_key("t", "1", json.loads(json.dumps(value)))


@given(inputs, inputs)
def test_different_inputs_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assume(as_javascript_reads(one) != as_javascript_reads(other))

    assert cache_key("t", "1", one) != cache_key("t", "1", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("t", "1", {"text": "oi", "context": {"day": 1}}), ("t", "1", {"text": "oi", "context": {"day": 2}})),
        (("t", "1", {}), ("u", "1", {})),
        (("t", "1", {}), ("t", "2", {})),
        (("t", "11", {}), ("t1", "1", {})),
        (("t", "1", {"a": True}), ("t", "1", {"a": 1})),
        (("t", "1", {"a": None}), ("t", "1", {})),
        (("t", "1", {"a": "1"}), ("t", "1", {"a": 1})),
        (("t", "1", {"a": [1, 2]}), ("t", "1", {"a": [2, 1]})),
    ],
)
def test_everything_counts(one: tuple[str, str, dict[str, Any]], other: tuple[str, str, dict[str, Any]]) -> None:
    assert cache_key(*one) != cache_key(*other)


def test_one_is_one_however_it_is_written() -> None:
    assert cache_key("t", "1", {"g": 200}) == cache_key("t", "1", {"g": 200.0}) == cache_key("t", "1", {"g": 2e2})


def test_another_process_makes_the_same_key() -> None:
    program = (
        "from aiworker.domain.cache_key import cache_key; print(cache_key('t', '1', {'maçã': [1.5, None], 'b': {}}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == cache_key("t", "1", {"b": {}, "maçã": [1.5, None]})
    assert len(done.stdout.strip()) == 64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_have_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        cache_key("t", "1", {"a": [value]})
    with pytest.raises(TypeError):
        cache_key("t", "1", {"a": {1: "number as key"}})
