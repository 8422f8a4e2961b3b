from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.domain.errors import (
    AnswerInvalid,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnavailable,
)
from aiworker.llm.choice import (
    LEAST_S,
    NO_VISION,
    NOT_CONFIGURED,
    REST_S,
    TOO_LATE,
    Standing,
    choose,
    outages_after,
    rest_after,
)

NAMES = ("a", "b", "c")
STANDINGS = st.builds(
    lambda sees, rest: Standing(sees, rest, "provider_unavailable" if rest else ""),
    st.booleans(),
    st.one_of(st.just(0.0), st.floats(0.1, 60)),
)
ORDERS = st.lists(st.sampled_from(NAMES), max_size=5)


@given(
    ORDERS,
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, STANDINGS)),
    st.dictionaries(st.sampled_from(NAMES), st.just("provider_error")),
    st.booleans(),
    st.floats(0, 120),
)
@settings(deadline=None)
def test_choice_holds_its_promises(
    order: list[str], standings: dict[str, Standing], failed: dict[str, str], needs_images: bool, remaining_s: float
) -> None:
    choice = choose(order, standings, failed=failed, needs_images=needs_images, remaining_s=remaining_s)
    able = [
        name
        for name in order
        if name in standings
        and name not in failed
        and standings[name].resting_s == 0
        and (standings[name].sees_images or not needs_images)
        and remaining_s >= LEAST_S
    ]
    assert set(choice.skipped) == set(order) - set(failed) - set(able)
    if not able:
        assert choice.name is None
        return
    assert choice.name == able[0]
    assert 0 < choice.budget_s <= remaining_s
    if len(set(able)) == 1:
        assert choice.budget_s == remaining_s
    elif remaining_s >= 2:
        assert remaining_s - choice.budget_s >= LEAST_S


def test_each_reason_is_told() -> None:
    standings = {
        "ollama": Standing(sees_images=False),
        "gemini": Standing(sees_images=True, resting_s=4.0, rest_code="provider_rate_limited"),
    }
    choice = choose(("other", "ollama", "gemini"), standings, failed={}, needs_images=True, remaining_s=9)
    assert choice.name is None
    assert choice.skipped == {"other": NOT_CONFIGURED, "ollama": NO_VISION, "gemini": "provider_rate_limited"}
    assert choice.back_in_s == 4.0


def test_too_little_time_is_not_spent() -> None:
    choice = choose(("a",), {"a": Standing(True)}, failed={}, needs_images=False, remaining_s=LEAST_S / 2)
    assert (choice.name, choice.skipped) == (None, {"a": TOO_LATE})


@pytest.mark.parametrize(
    ("error", "in_row", "rest_s"),
    [
        (ProviderUnavailable(phase="connect"), 1, REST_S),
        (ProviderTimeout(phase="connect"), 1, REST_S),
        (ProviderUnavailable(phase="total"), 1, 0),
        (ProviderUnavailable(phase="total"), 3, REST_S),
        (ProviderUnavailable(retry_after=9), 1, 9),
        (ProviderTimeout(phase="first_token"), 2, 0),
        (ProviderTimeout(phase="first_token"), 3, REST_S),
        (ProviderTimeout(phase="slot"), 30, 0),
        (ProviderRateLimited(retry_after=53), 1, 53),
        (ProviderRateLimited(), 1, REST_S),
        (ProviderRateLimited(retry_after=2, scope="day"), 1, 3600),
        (ProviderMisconfigured(), 9, 0),
        (ProviderRefused(), 9, 0),
        (AnswerInvalid(), 9, 0),
    ],
)
def test_rest(error: ProviderError, in_row: int, rest_s: float) -> None:
    assert rest_after(error, in_row) == rest_s


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (ProviderUnavailable(phase="total"), 2, 3),
        (ProviderTimeout(phase="first_token"), 0, 1),
        (ProviderTimeout(phase="slot"), 2, 2),
        (AnswerInvalid(), 2, 0),
        (ProviderRefused(), 2, 0),
    ],
)
def test_outages_in_row(error: ProviderError, before: int, after: int) -> None:
    assert outages_after(error, before) == after
