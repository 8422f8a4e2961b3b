"""Outcomes on their way to SQL: everything that a model may have emitted can be stored."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.job import Lease
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.json_codec import decode_jsonb, encode_jsonb, storable
from aiworker.queue.rows import in_lock_order, outcome_columns, queue_depth

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
    assert storable(orjson.dumps(value)) == storable(value)


@given(values)
def test_jsonb_round_trip(value: Any) -> None:
    assert decode_jsonb(encode_jsonb(value)) == value


def one_id(number: int) -> UUID:
    return UUID(int=number)


def literal(*ids: UUID) -> str:
    return "{" + ",".join(str(each) for each in ids) + "}"


def columns(*outcomes: Outcome) -> tuple[Any, ...]:
    return outcome_columns([(Lease(one_id(at), one_id(9)), outcome) for at, outcome in enumerate(outcomes)])


def test_each_kind_of_outcome_fills_its_columns_and_no_other() -> None:
    every = [Completed({"a": 1}, 60.0), Retry(2.5, "later", "x"), Failed("bad", "y"), Interrupted()]

    ids, tokens, kinds, results, ttls, delays, errors, codes = columns(*every)

    assert ids == literal(*map(one_id, range(4)))
    assert tokens == literal(*[one_id(9)] * 4)
    assert kinds == ("completed", "retry", "failed", "interrupted")
    assert results == b'[{"a":1},null,null,null]'
    assert ttls == (60.0, None, None, None)
    assert delays == (None, 2.5, None, None)
    assert errors == (None, "later", "bad", None)
    assert codes == (None, "x", "y", None)


def test_a_column_that_nobody_uses_is_left_out() -> None:
    assert columns(Interrupted(), Interrupted())[3:] == (None,) * 5
    assert columns(Completed(b"{}"), Completed(b"[]"))[2:] == (None, b"[{},[]]", *(None,) * 4)


def test_a_result_that_json_cannot_hold_fails_its_job() -> None:
    _, _, kinds, results, _, _, _, codes = columns(Completed({"a": {1, 2}}, 60.0), Completed({}))

    assert kinds == ("failed", "completed")
    assert codes == ("internal_error", None)
    assert results == b"[null,{}]"


@given(st.lists(st.uuids(), unique=True, min_size=1, max_size=8))
def test_rows_are_locked_in_one_order_whatever_comes_in(ids: list[UUID]) -> None:
    # The tokens are in the opposite order.
    leases = [Lease(each, UUID(int=2**128 - 1 - each.int)) for each in ids]

    assert [lease.job_id for lease in in_lock_order(leases)] == sorted(ids)
    assert outcome_columns([(lease, Interrupted()) for lease in leases])[0] == literal(*sorted(ids))


def test_the_depth_of_no_rows_is_zero() -> None:
    assert (queue_depth([]).pending, queue_depth([]).oldest_pending_s) == (0, 0.0)
