from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.llm.allowance import DayBudget, TokenBucket


@given(st.integers(2, 600), st.lists(st.floats(0, 30), min_size=1, max_size=80))
def test_never_more_than_allowed_in_any_minute(per_minute: int, pauses: list[float]) -> None:
    bucket, now, taken = TokenBucket(per_minute), 0.0, []
    for pause in pauses:
        now = max(now + pause, bucket.ready_at(now + pause))
        bucket.take(now)
        taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= per_minute + 1e-6


@given(st.integers(2, 600), st.floats(0.1, 2000))
def test_whatever_is_asked_for_is_ready_at_some_time(per_minute: int, amount: float) -> None:
    bucket = TokenBucket(per_minute)
    bucket.take(0, amount)
    ready_at = bucket.ready_at(0, amount)
    assert ready_at < 1e6
    assert bucket.ready_at(ready_at + 1e-6, amount) == ready_at + 1e-6


def test_what_was_not_used_comes_back() -> None:
    bucket = TokenBucket(100)
    bucket.take(0, 10)
    assert bucket.ready_at(0, 5) > 0
    bucket.take(0, -8)
    assert bucket.ready_at(0, 5) == 0


def test_budget_closes_until_midnight_in_california() -> None:
    budget = DayBudget(1.0)
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
    budget.spend(noon, 0.6)
    assert budget.closed_for_s(noon) == 0
    budget.spend(noon, 0.6)
    assert budget.closed_for_s(noon) == 19 * 3600
    assert budget.spent_usd(noon) == pytest.approx(1.2)
    assert budget.closed_for_s(noon + 19 * 3600) == 0
    assert budget.spent_usd(noon + 19 * 3600) == 0


def test_what_others_and_earlier_processes_spent_counts() -> None:
    budget = DayBudget(1.0)
    noon = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
    day, usd = budget.unsaved(noon)
    assert usd == 0
    budget.saved(day, 0, 0.9)
    assert (budget.spent_usd(noon), budget.closed_for_s(noon)) == (0.9, 0)
    budget.spend(noon, 0.3)
    assert budget.closed_for_s(noon) > 0
    _, usd = budget.unsaved(noon)
    budget.spend(noon, 0.1)
    budget.saved(day, usd, 1.2)
    assert budget.spent_usd(noon) == pytest.approx(1.3)
    assert budget.unsaved(noon)[1] == pytest.approx(0.1)
    # The ledger's answer may come after midnight.
    tomorrow = noon + 86_400
    budget.spend(tomorrow, 0.2)
    budget.saved(day, 0.1, 1.3)
    assert budget.spent_usd(tomorrow) == pytest.approx(0.2)


def test_no_limit_counts_all_the_same() -> None:
    budget = DayBudget(None)
    budget.spend(0, 5)
    assert (budget.spent_usd(0), budget.closed_for_s(0)) == (5, 0)
