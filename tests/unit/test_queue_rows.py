"""Outcomes on their way to SQL: everything that a model may have emitted can be stored."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.job import Lease
from aiworker.domain.outcome import Cancelled, Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.json_codec import decode_jsonb, encode_jsonb, storable
from aiworker.queue.rows import outcome_record, queue_depth

texts = st.lists(st.sampled_from(["\x00", "\\", "u0000", "ã", chr(34), "a"]), max_size=6).map("".join)
values = st.recursive(
    texts | st.integers(-(2**53), 2**53) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {replaced(key): replaced(item) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item) for item in value]
    return value.replace("\x00", "\ufffd") if isinstance(value, str) else value


@given(values)
def test_only_nul_is_replaced(value: Any) -> None:
    assert orjson.loads(storable(value)) == replaced(value)


@given(values)
def test_jsonb_round_trip(value: Any) -> None:
    assert decode_jsonb(encode_jsonb(value)) == value


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Completed({"a": 1}, 60.0), {"kind": "completed", "result": {"a": 1}, "cache_ttl_s": 60.0}),
        (Retry(2.5, "later", "x"), {"kind": "retry", "delay_s": 2.5, "error": "later", "error_code": "x"}),
        (Failed("bad", "y"), {"kind": "failed", "error": "bad", "error_code": "y"}),
        (Cancelled(), {"kind": "cancelled"}),
        (Interrupted(), {"kind": "interrupted"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_outcome_has_its_record(outcome: Outcome, expected: dict[str, Any]) -> None:
    lease = Lease(uuid4(), uuid4())

    record = orjson.loads(orjson.dumps(outcome_record(lease, outcome)))

    assert record == {"id": str(lease.job_id), "token": str(lease.token)} | expected


def test_a_result_that_json_cannot_hold_fails_its_job() -> None:
    record = outcome_record(Lease(uuid4(), uuid4()), Completed({"a": {1, 2}}, 60.0))

    assert (record["kind"], record["error_code"]) == ("failed", "internal_error")
    assert "result" not in record


def test_the_depth_of_no_rows_is_zero() -> None:
    assert (queue_depth([]).pending, queue_depth([]).oldest_pending_s) == (0, 0.0)
