"""The pure decisions that live in SQL, where every client makes them alike: a job's place, and what is identical."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from fakes.databases import cloned_database
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

Ask = Callable[..., Any]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
T0 = datetime(2026, 1, 1, tzinfo=UTC)

moments = st.floats(-1000, 1000).map(lambda seconds: T0 + timedelta(seconds=round(seconds, 3)))
priorities = st.integers(1, 10)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(texts, values, max_size=3)

# JSON as it may be written, full of what looks like a number with zeros at its end and is none.
written = st.sampled_from(
    ["1", "1.0", "1.50", "-1.5", "0.05", "0.050", "100", "1e2", "1.00E+2", "-0.0", "10.010", "true", "null"]
    + [
        json.dumps(text, ensure_ascii=False)
        for text in ("1.0", '"1.0', "\\", '\\"', '1.50\\"2.0', ".0", "é.0\n.50", "")
    ]
)
written_values = st.recursive(
    written,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(st.sampled_from(['"a"', '"b.0"', '"1.0\\\\"']), inner), max_size=4).map(
            lambda items: f"{{{', '.join(f'{key}: {item}' for key, item in items)}}}"
        )
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def ask(postgres_server: str, migrated_template: str) -> Iterator[Ask]:
    """One value of one statement."""
    with asyncio.Runner() as runner, cloned_database(postgres_server, migrated_template) as url:
        connection = runner.run(asyncpg.connect(url))
        yield lambda sql, *arguments: runner.run(connection.fetchval(sql, *arguments))
        runner.run(connection.close())


class TestPlace:
    @staticmethod
    def of(
        ask: Ask, due: datetime, priority: int, last: datetime | None = None, active: int = 0, limit: int = 10
    ) -> datetime:
        place: datetime = ask("select analysis_place($1, $2, $3, $4, $5)", due, priority, last, active, limit)
        return place

    @FEW
    @given(due=moments, one=priorities, other=priorities, waited=st.floats(0, 200))
    def test_a_level_is_worth_ten_seconds_of_waiting(
        self, ask: Ask, due: datetime, one: int, other: int, waited: float
    ) -> None:
        waited = round(waited, 3)
        assume(waited != 10.0 * (one - other))
        earlier = self.of(ask, due, one)
        later = self.of(ask, due + timedelta(seconds=waited), other)

        assert (earlier < later) == (waited > 10.0 * (one - other))

    @FEW
    @given(due=moments, last=moments, priority=priorities, active=st.integers(0, 20))
    def test_nobody_stands_before_his_own_job_nor_before_he_is_due(
        self, ask: Ask, due: datetime, last: datetime, priority: int, active: int
    ) -> None:
        place = self.of(ask, due, priority, last, active) - timedelta(seconds=10 * priority)

        assert place >= due
        assert place >= last + timedelta(seconds=1 if active < 10 else 10)
        assert place in (due, last + timedelta(seconds=1), last + timedelta(seconds=10))

    @FEW
    @given(due=moments, arrival=st.floats(0, 600), backlog=st.integers(11, 5000))
    def test_a_backlog_lets_pass_whoever_comes_later(
        self, ask: Ask, due: datetime, arrival: float, backlog: int
    ) -> None:
        """The job at position `backlog` of one user, all sent at once, against the first of another."""
        behind = due + timedelta(seconds=10 + 10 * (backlog - 11))
        theirs = self.of(ask, due + timedelta(seconds=arrival), 5)

        assert (theirs < self.of(ask, due, 5, behind, 10)) == (arrival < 10 + 10 * (backlog - 10))


class TestSameness:
    @staticmethod
    def key(
        ask: Ask,
        body: Any,
        *,
        kind: str = "t",
        version: str = "1",
        sharing: str = "everyone",
        user: UUID | None = None,
    ) -> str | None:
        found: str | None = ask(
            "select analysis_cache_key(row($1, $2, 1, $3)::analysis_types, $4, $5)",
            kind,
            version,
            sharing,
            user,
            json.dumps(body),
        )
        return found

    @FEW
    @given(body=inputs)
    def test_the_order_of_keys_and_the_way_of_writing_do_not_count(self, ask: Ask, body: dict[str, Any]) -> None:
        assert self.key(ask, body) == self.key(ask, shuffled(body))

    @FEW
    @given(one=inputs, other=inputs)
    def test_everything_else_counts(self, ask: Ask, one: dict[str, Any], other: dict[str, Any]) -> None:
        assume(as_postgres_reads(one) != as_postgres_reads(other))

        assert self.key(ask, one) != self.key(ask, other)

    @FEW
    @given(one=st.tuples(texts, texts), other=st.tuples(texts, texts))
    def test_type_and_version_count_and_do_not_run_together(
        self, ask: Ask, one: tuple[str, str], other: tuple[str, str]
    ) -> None:
        assume(one != other)

        assert self.key(ask, {}, kind=one[0], version=one[1]) != self.key(ask, {}, kind=other[0], version=other[1])

    def test_one_is_one_however_it_is_written(self, ask: Ask) -> None:
        written = ['{"g": 200}', '{"g": 200.0}', '{"g": 2e2}', '{ "g" : 2.00e+2 }']
        keys = {
            ask("select analysis_cache_key(row('t', '1', 1, 'everyone')::analysis_types, null, $1)", each)
            for each in written
        }
        assert len(keys) == 1
        assert self.key(ask, {"g": True}) not in keys
        assert self.key(ask, {"g": "200"}) not in keys

    @FEW
    @given(one=written_values, other=written_values)
    def test_two_are_the_same_where_postgresql_says_so(self, ask: Ask, one: str, other: str) -> None:
        for each in (other, one.replace("0", "00"), one.replace(".5", ".50"), one.replace(".0", "")):
            try:
                json.loads(each)
            except ValueError:
                continue
            same = ask("select $1::text::jsonb = $2::text::jsonb", one, each)
            assert same == ask(
                "select analysis_canonical($1::text::jsonb) = analysis_canonical($2::text::jsonb)", one, each
            )

    def test_depth_and_size_have_a_key_too(self, ask: Ask) -> None:
        deep = '{"a":' * 2000 + "1.0" + "}" * 2000
        key = "select analysis_cache_key(row('t', '1', 1, 'everyone')::analysis_types, null, $1::text::jsonb)"
        assert ask(key, deep) == ask(key, deep.replace("1.0", "1"))
        large = json.dumps({"n": [1] * 1_000_000})
        assert ask(key, large) == ask(key, large) != ask(key, large.replace("1]", "2]"))

    def test_who_may_share(self, ask: Ask) -> None:
        me, you = UUID(int=1), UUID(int=2)
        assert self.key(ask, {}, user=me) == self.key(ask, {}, user=you)
        assert self.key(ask, {}, user=me, sharing="user") != self.key(ask, {}, user=you, sharing="user")
        assert self.key(ask, {}, user=me, sharing="user") == self.key(ask, {}, user=me, sharing="user")
        assert self.key(ask, {}, sharing="never") is None


def shuffled(value: Any) -> Any:
    """The same JSON with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(item) for key, item in reversed(list(value.items()))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def as_postgres_reads(value: Any) -> Any:
    """The same JSON without the difference between 1 and 1.0, but with the one between 1 and true."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (type(value).__name__, value)
    if isinstance(value, dict):
        return {key: as_postgres_reads(item) for key, item in value.items()}
    return [as_postgres_reads(item) for item in value] if isinstance(value, list) else value


class TestIds:
    @FEW
    @given(one=moments, other=moments)
    def test_ids_are_in_the_order_of_their_age(self, ask: Ask, one: datetime, other: datetime) -> None:
        assume(abs((one - other).total_seconds()) >= 0.001)
        first, second = (ask("select analysis_job_id($1)", moment) for moment in (one, other))

        assert (first < second) == (one < other)
        assert first.version == 7
        assert first.variant == "specified in RFC 4122"
