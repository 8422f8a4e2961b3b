"""One provider's state as a request sees it: what is forecast, what is in the way, and what a call's end changes."""

from __future__ import annotations

import pytest

from aiworker.domain.completion import Completion
from aiworker.domain.errors import (
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    ProviderUnreachable,
    StreamBroken,
)
from aiworker.llm.forecast import Size
from aiworker.llm.lane import Call, Lane, LaneRules, Moment
from aiworker.llm.measures import described
from aiworker.llm.situation import BUDGET_SPENT, LOCAL_ONLY, LOST_RACE, NO_VISION, RATE_LIMITED, SLOTS_FULL, TIMED_OUT
from aiworker.llm.tuning import Tuning

TEXT = Size("sofia_text 1024", chars=350, images=0, max_tokens=900)
PHOTO = Size("sofia_image 2048", chars=350, images=1, max_tokens=900)


def lane(**rules) -> Lane:
    return Lane("ollama", LaneRules(**rules), Tuning())


def at(now: float) -> Moment:
    return Moment(now, 1.8e9 + now)


def standing(one: Lane, now: float, size: Size = TEXT, *, call: Call | None = None, local_only: bool = False):
    return one.standing(at(now), size, deadline=now + 15, sees=False, local_only=local_only, call=call)


def enter(one: Lane, now: float, size: Size = TEXT) -> Call:
    return one.enter(at(now), size, deadline=now + 15, likely_s=1.5, unknown_s=6, on_end_of_line=lambda _granted: None)


def completion(**fields) -> Completion:
    plain = {"prompt_tokens": 100, "answer_tokens": 100, "answer_ms": 1000}
    return Completion(text="x", provider="ollama", model="m", finish="stop", **(plain | fields))


def answer(one: Lane, now: float, seconds: float, size: Size = TEXT, *, cost_usd: float = 0, **fields) -> None:
    call = enter(one, now, size)
    one.answered(at(now + seconds), call, completion(**fields), cost_usd)


def test_what_can_never_be() -> None:
    assert standing(lane(), 0, local_only=True).never == LOCAL_ONLY
    assert standing(lane(local=True), 0, local_only=True).never == ""
    assert standing(lane(), 0, PHOTO).never == NO_VISION


def test_a_stranger_is_ready_and_unknown() -> None:
    seen = standing(lane(), 5)
    assert (seen.ready_at, seen.reason, seen.wait_s, seen.outlook) == (5, "", 0, None)


def test_load_is_learned_and_expected_when_keep_alive_is_over() -> None:
    one = lane(keep_alive_s=20, local=True)
    answer(one, 0, 9, load_ms=7000)
    answer(one, 10, 2, load_ms=60)
    assert standing(one, 20).outlook.likely_s == pytest.approx(1.97, abs=0.05)
    assert standing(one, 40).outlook.likely_s == pytest.approx(8.97, abs=0.05)


def test_a_call_is_not_late_when_its_load_is_just_over() -> None:
    """Long unasked, nothing is known but the load; the answer comes after it."""
    one = lane(keep_alive_s=20, local=True)
    answer(one, 0, 9, load_ms=7000)
    outlook = standing(one, 100).outlook
    assert (outlook.likely_s, outlook.load_s, outlook.hearsay) == (7, 7, True)
    call = enter(one, 100)
    assert one.left(at(108), call) == LOST_RACE
    assert one.breaker.state(108) == "closed"


def test_a_load_is_waited_for_once() -> None:
    """Those behind the call that loads the model find it there: each was taken to load it again."""
    one = lane(keep_alive_s=20, local=True)
    answer(one, 0, 9, load_ms=7000)
    loading = enter(one, 100)
    for waiting in range(4):
        behind = standing(one, 101)
        assert behind.outlook is None
        assert behind.wait_s == pytest.approx(6 + 1.5 * waiting)
        enter(one, 101)
    one.left(at(102), loading)
    assert standing(one, 102).outlook.load_s == 7


def test_who_comes_while_the_model_is_loaded_waits_for_the_rest_of_it() -> None:
    one = lane(keep_alive_s=20, local=True, slots=2)
    answer(one, 0, 9, load_ms=7000)
    first = enter(one, 100)
    assert standing(one, 102).outlook.load_s == 5
    assert enter(one, 102).load_s == 5
    one.answered(at(108), first, completion(load_ms=7000))
    assert standing(one, 108).outlook.load_s == 0


def test_load_is_expected_after_the_models_were_put_away() -> None:
    one = lane(keep_alive_s=1800, local=True)
    answer(one, 0, 9, load_ms=7000)
    assert standing(one, 10).outlook.likely_s == pytest.approx(2)
    one.residence.gone()
    assert standing(one, 10).outlook.likely_s == pytest.approx(9)


def test_a_call_under_way_may_have_to_load_unexpectedly() -> None:
    one = lane(keep_alive_s=1800, local=True)
    answer(one, 0, 9, load_ms=7000)
    assert standing(one, 10, call=enter(one, 10)).unexpected_load_s == 7
    one.residence.gone()
    assert standing(one, 20, call=enter(one, 20)).unexpected_load_s == 0


def test_load_is_expected_after_the_server_was_gone() -> None:
    one = lane(keep_alive_s=1800, local=True)
    answer(one, 0, 9, load_ms=7000)
    one.failed(at(10), enter(one, 10), ProviderUnreachable(phase="connect"))
    assert standing(one, 20).outlook.likely_s == pytest.approx(9)


def test_slots_wait_is_predicted() -> None:
    one = lane(slots=1)
    answer(one, 0, 4)
    enter(one, 10)
    enter(one, 10)
    assert standing(one, 11).wait_s == pytest.approx(7)


def test_nobody_despairs_of_a_line_by_hearsay() -> None:
    """Short prompts' time a token says of a long one that it will take a minute."""
    one = lane(slots=1)
    answer(one, 0, 1, prompt_tokens=30, prompt_ms=900)
    enter(one, 1, Size("long", 7000, 0, 300))
    assert standing(one, 1, Size("long", 7000, 0, 300)).outlook.likely_s > 60
    assert standing(one, 1).wait_s == 6


def test_full_line_is_not_ready() -> None:
    one = lane(slots=1, max_waiting=1)
    enter(one, 0)
    enter(one, 0)
    seen = standing(one, 0)
    assert (seen.ready_at > 0, seen.reason) == (True, SLOTS_FULL)


def test_requests_a_minute() -> None:
    one = lane(slots=9, requests_per_minute=10)
    call = enter(one, 0)
    seen = standing(one, 0)
    assert (round(seen.ready_at, 2), seen.reason) == (6.67, RATE_LIMITED)
    one.answered(at(1), call, completion())
    assert standing(one, 7).ready_at == 7


def test_unused_tokens_come_back() -> None:
    one = lane(slots=9, tokens_per_minute=20_000)
    call = enter(one, 0)
    assert standing(one, 0).ready_at == 0
    enter(one, 0)
    # 2000 at once, 300 a second from then on.
    assert standing(one, 0).ready_at == pytest.approx(1000 / 300)
    one.answered(at(0), call, completion(prompt_tokens=100, answer_tokens=10))
    assert standing(one, 0).ready_at == pytest.approx(110 / 300)


@pytest.mark.parametrize(
    ("error", "used"),
    [(ProviderRateLimited(retry_after=0.25), False), (ProviderUnavailable(status=503), False), (StreamBroken(), True)],
)
def test_who_is_turned_away_has_used_no_tokens(error: ProviderError, used: bool) -> None:
    one = lane(slots=9, tokens_per_minute=20_000)
    one.failed(at(0), enter(one, 0), error)
    # 2000 at once: after two calls of 1000 the third one waits longer than for the failed one's rest.
    enter(one, 0)
    assert (standing(one, 0).reason == RATE_LIMITED) == used


def test_a_call_that_leaves_the_line_gives_its_request_back() -> None:
    one = lane(slots=1, requests_per_minute=20)
    enter(one, 0)
    waiting = enter(one, 0)
    assert standing(one, 0).ready_at > 0
    assert one.left(at(0), waiting) == ""
    assert standing(one, 0).ready_at == 0


def test_budget() -> None:
    one = lane(usd_per_day=0.01)
    answer(one, 0, 1, cost_usd=0.02)
    seen = standing(one, 1)
    assert seen.reason == BUDGET_SPENT
    assert seen.ready_at > 3600


@pytest.mark.parametrize("error", [ProviderUnreachable(phase="connect"), ProviderRateLimited(retry_after=5)])
def test_line_is_sent_away_when_the_provider_fails(error: ProviderError) -> None:
    one, ends = lane(slots=1), []
    running = enter(one, 0)
    one.enter(at(0), TEXT, deadline=15, likely_s=1.5, unknown_s=6, on_end_of_line=ends.append)
    one.failed(at(1), running, error)
    assert ends == [False]
    assert (one.slots.in_use, one.slots.waiting) == (0, 0)
    assert standing(one, 1).reason == error.code


def test_losing_a_race_early_says_nothing_and_late_speaks_against() -> None:
    one = lane(slots=9)
    answer(one, 0, 2)
    for _ in range(3):
        assert one.left(at(11), enter(one, 10)) == LOST_RACE
    assert one.breaker.state(11) == "closed"
    for call in [enter(one, 10) for _ in range(3)]:
        assert one.left(at(19), call) == TIMED_OUT
    assert one.breaker.state(19) == "open"
    # Having hung is the breaker's business now: the next chance is not judged by it.
    assert standing(one, 21).outlook.likely_s == 2


def test_an_end_counts_once() -> None:
    one = lane(slots=1)
    call = enter(one, 0)
    one.failed(at(1), call, ProviderUnavailable(phase="total"))
    assert one.left(at(9), call) == ""
    assert (one.failures, one.slots.in_use) == (1, 0)


def test_described_is_plain_and_knows_the_speed() -> None:
    one = lane(slots=2)
    answer(one, 0, 1)
    seen = described(one, at(1))
    assert seen["tokens_per_s"] == 100
    assert (seen["state"], seen["breaker"], seen["reason"], seen["resting_s"]) == ("up", "closed", None, 0)
    one.failed(at(2), enter(one, 2), ProviderRateLimited(retry_after=30))
    seen = described(one, at(2))
    assert (seen["state"], seen["breaker"], seen["resting_s"]) == ("resting", "open", 30)
    assert seen["reason"] == "provider_rate_limited"
