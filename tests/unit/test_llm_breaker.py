from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.errors import (
    AnswerInvalid,
    KeyRejected,
    LocalOnly,
    ModelNotFound,
    PromptBlocked,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ProviderUnreachable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm.allowance import quota_day, seconds_to_reset
from aiworker.llm.breaker import FAILURES_BEFORE_REST, Breaker
from aiworker.llm.evidence import Evidence, Sign, evidence_of
from aiworker.llm.tuning import Tuning

TUNING = Tuning()
WALL = datetime(2026, 7, 1, 12, tzinfo=UTC).timestamp()
WELL, FAILING, DOWN = Evidence(Sign.WELL), Evidence(Sign.FAILING, "f"), Evidence(Sign.DOWN, "d")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProviderUnreachable(), Evidence(Sign.DOWN, "provider_unreachable")),
        (ProviderTimeout(phase="connect"), Evidence(Sign.DOWN, "provider_timeout")),
        (ProviderTimeout(phase="first_token"), Evidence(Sign.FAILING, "provider_timeout")),
        (ProviderUnavailable(retry_after=9), Evidence(Sign.FAILING, "provider_unavailable", 9)),
        (ProviderUnavailable(status=503), Evidence(Sign.DOWN, "provider_unavailable")),
        (StreamBroken(), Evidence(Sign.FAILING, "provider_stream_broken")),
        (ProviderRateLimited(retry_after=53), Evidence(Sign.LIMITED, "provider_rate_limited", 53)),
        (ProviderRateLimited(), Evidence(Sign.LIMITED, "provider_rate_limited")),
        # Noon in UTC is 5 in the morning in California's summer.
        (ProviderRateLimited(retry_after=2, scope="day"), Evidence(Sign.LIMITED, "provider_rate_limited", 19 * 3600)),
        (KeyRejected(), Evidence(Sign.BROKEN, "provider_key_rejected")),
        (ModelNotFound(), Evidence(Sign.WELL, "provider_model_not_found")),
        (ModelNotFound(only_model=True), Evidence(Sign.BROKEN, "provider_model_not_found")),
        (RequestRejected(), Evidence(Sign.WELL, "provider_request_rejected")),
        (PromptBlocked(), Evidence(Sign.WELL, "prompt_blocked")),
        (AnswerInvalid(), Evidence(Sign.WELL, "answer_invalid")),
        (LocalOnly(), Evidence(Sign.NOTHING)),
    ],
)
def test_evidence(error: ProviderError, expected: Evidence) -> None:
    assert evidence_of(error, WALL) == expected


@given(st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)))
def test_quotas_come_back_at_the_next_midnight_in_california(moment: datetime) -> None:
    wall = moment.replace(tzinfo=UTC).timestamp()
    left = seconds_to_reset(wall)
    # The days when clocks change have 23 and 25 hours.
    assert 0 < left <= 25 * 3600
    assert quota_day(wall + left) > quota_day(wall)
    assert quota_day(wall + left - 1) == quota_day(wall)


def test_refused_connection_opens_at_once_and_rests_double() -> None:
    breaker = Breaker(TUNING)
    now = 0.0
    for rest in (1, 2, 4, 8, 16, 30, 30):
        breaker.end(now, DOWN)
        assert breaker.state(now) == "open"
        assert breaker.ready_at(now) == now + rest
        now += rest
        assert breaker.state(now) == "half_open"
    assert not breaker.worth_waiting(now)
    breaker.end(now, WELL)
    assert breaker.state(now) == "closed"
    assert breaker.worth_waiting(now)
    breaker.end(now, DOWN)
    assert breaker.ready_at(now) == now + 1


def test_only_failures_in_a_row_open() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, WELL)
    for _ in range(5):
        for _ in range(FAILURES_BEFORE_REST - 1):
            breaker.end(0, FAILING)
        breaker.end(0, WELL)
    assert breaker.state(0) == "closed"
    for _ in range(FAILURES_BEFORE_REST):
        breaker.end(0, FAILING)
    assert breaker.state(0) == "open"


def test_who_has_not_answered_yet_has_no_credit() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, FAILING)
    assert breaker.state(0) == "open"


def test_who_hangs_rests_as_long_as_it_takes_to_see_it() -> None:
    breaker = Breaker(TUNING)
    breaker.end(6, FAILING, took_s=6)
    assert breaker.ready_at(6) == 12
    breaker.end(18, FAILING, probe=breaker.begin(12, expected_s=6), took_s=6)
    assert breaker.ready_at(18) == 30


def outage(breaker: Breaker, began: float, seconds: float) -> int:
    """How many calls fail in an outage of `seconds`, of one that is asked as soon as it may be."""
    breaker.end(began, DOWN)
    failed, now = 1, breaker.ready_at(began)
    while now < began + seconds:
        failed += 1
        breaker.end(now, DOWN, probe=breaker.begin(now, 1))
        now = breaker.ready_at(now)
    breaker.end(now, WELL, probe=breaker.begin(now, 1))
    assert breaker.state(now) == "closed"
    return failed


@given(st.floats(2, 20))
def test_how_long_outages_last_is_learned(seconds: float) -> None:
    breaker = Breaker(TUNING)
    failed = [outage(breaker, 100.0 * number, seconds) for number in range(23)]
    assert sum(failed[3:]) <= 0.75 * 20 * failed[0], failed
    # What was is forgotten.
    for number in range(23, 60):
        outage(breaker, 100.0 * number, 0.5)
    breaker.end(9000, DOWN)
    assert breaker.ready_at(9000) == 9000 + TUNING.first_rest_s


def test_one_long_outage_is_no_habit() -> None:
    breaker = Breaker(TUNING)
    outage(breaker, 0, 20)
    breaker.end(100, DOWN)
    assert breaker.ready_at(100) == 100 + TUNING.first_rest_s


@pytest.mark.parametrize("named", [Evidence(Sign.BROKEN, "b"), Evidence(Sign.FAILING, "f", 20.0)])
def test_what_was_named_or_mended_is_no_usual_outage(named: Evidence) -> None:
    breaker = Breaker(TUNING)
    for began in (0, 1000, 2000):
        for now in (began, began + 60):
            breaker.end(now, named)
        breaker.end(began + 200, WELL, probe=breaker.begin(began + 200, expected_s=3))
    breaker.end(3000, DOWN)
    assert breaker.ready_at(3000) == 3000 + TUNING.first_rest_s


def test_calls_that_fail_together_are_one_outage() -> None:
    breaker = Breaker(TUNING)
    for _ in range(20):
        breaker.end(0, DOWN)
    assert breaker.ready_at(0) == 1


def test_half_open_lets_one_call_through() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, DOWN)
    assert breaker.begin(1, expected_s=3)
    assert breaker.ready_at(1) == 4
    # One that is late is followed by another: it may have been bad luck.
    assert breaker.begin(4, expected_s=3)
    assert breaker.ready_at(4) == 7
    # A probe that is taken back frees its place; one that fails opens again, even with a single failure.
    breaker.release(True)
    assert breaker.ready_at(4) == 4
    assert breaker.begin(4, expected_s=3)
    breaker.end(5, FAILING, probe=True)
    assert breaker.ready_at(5) == 7


def test_who_has_nowhere_else_to_go_may_try_every_second() -> None:
    breaker = Breaker(TUNING)
    now = 0.0
    for _ in range(4):
        breaker.end(now, DOWN)
        now = breaker.ready_at(now)
    breaker.end(now, DOWN)
    assert breaker.ready_at(now) == now + 16
    assert breaker.last_resort_at(now) == now + 1
    assert breaker.begin(now + 1, expected_s=3)
    assert breaker.last_resort_at(now + 1) == now + 2
    # Failing, it does not make the rest longer; answered, it ends it.
    breaker.end(now + 1.5, DOWN, probe=True)
    assert breaker.ready_at(now + 1.5) == now + 16
    breaker.end(now + 3, WELL, probe=breaker.begin(now + 2.5, expected_s=3))
    assert breaker.state(now + 3) == "closed"


def test_an_answer_from_before_the_rest_does_not_end_it() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, DOWN)
    breaker.end(0.5, WELL)
    assert breaker.state(0.6) == "open"


def test_time_that_a_server_named_is_no_last_resort() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, Evidence(Sign.LIMITED, "limited", 53))
    assert breaker.last_resort_at(2) == 53


def test_delay_that_a_server_names_is_kept_even_when_an_older_call_still_succeeds() -> None:
    breaker = Breaker(TUNING)
    breaker.end(0, Evidence(Sign.LIMITED, "limited", 53))
    breaker.end(1, WELL)
    breaker.end(2, Evidence(Sign.LIMITED, "limited", 10))
    assert breaker.ready_at(2) == 53
    assert breaker.worth_waiting(2)
    assert breaker.code == "limited"


ends = st.sampled_from([WELL, FAILING, DOWN, Evidence(Sign.LIMITED, "l", 5.0), Evidence(Sign.NOTHING)])


@given(st.lists(st.tuples(ends, st.floats(0, 20), st.booleans()), max_size=40))
def test_any_history_ends_in_a_finite_rest_and_one_success_after_it_closes(history) -> None:
    breaker, now = Breaker(TUNING), 0.0
    for evidence, passed, probing in history:
        now += passed
        probe = breaker.state(now) == "half_open" and probing and breaker.begin(now, 1.0)
        breaker.end(now, evidence, probe=probe)
        assert now <= breaker.ready_at(now) <= now + 30
    now = breaker.ready_at(now)
    breaker.end(now, WELL, probe=breaker.begin(now, 1.0))
    assert breaker.state(now) == "closed"
