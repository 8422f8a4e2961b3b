from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.completion import Completion
from aiworker.llm.forecast import Forecast, Size
from aiworker.llm.residence import Residence

TEXT = Size("sofia_text", chars=350, images=0, max_tokens=1000)


def completion(prompt_tokens: int, answer_tokens: int, prompt_ms: float, answer_ms: float) -> Completion:
    return Completion(
        text="x",
        provider="ollama",
        model="m",
        finish="stop",
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        prompt_ms=prompt_ms,
        answer_ms=answer_ms,
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60))
def test_outlook_is_ordered_and_within_what_was_seen(seconds: list[float]) -> None:
    forecast = Forecast(60)
    for one in seconds:
        forecast.note(0, "sofia_text", one)
    outlook = forecast.outlook(0, TEXT)
    assert outlook
    last = seconds[-32:]
    assert min(last) <= outlook.likely_s <= outlook.safe_s <= 2 * max(last)
    assert min(last) - 1e-9 <= outlook.mean_s <= max(last) + 1e-9


def test_nothing_is_known_at_first_and_old_samples_are_forgotten() -> None:
    forecast = Forecast(60)
    assert forecast.outlook(0, TEXT) is None
    forecast.note(0, "sofia_text", 2)
    assert forecast.outlook(60, TEXT)
    assert forecast.outlook(61, TEXT) is None


def test_a_slow_provider_does_not_look_as_fast_as_its_fast_answers() -> None:
    forecast = Forecast(60)
    for _ in range(10):
        forecast.note(0, "sofia_text", 2)
        forecast.note_unfinished(0, "sofia_text", 9)
    outlook = forecast.outlook(0, TEXT)
    assert outlook
    assert outlook.safe_s > 15
    forecast.forget_unfinished()
    again = forecast.outlook(0, TEXT)
    assert again
    assert again.safe_s < 3


def test_hanging_alone_says_nothing_of_how_long_an_answer_takes() -> None:
    forecast = Forecast(60)
    forecast.note_unfinished(0, "sofia_text", 9)
    assert forecast.outlook(0, TEXT) is None


def test_a_new_kind_is_forecast_by_tokens_a_second() -> None:
    forecast = Forecast(60)
    # 100 tokens of prompt a second, 10 tokens of answer a second, a fifth of what was allowed.
    forecast.note_speed(0, TEXT, completion(100, 200, 1000, 20_000))
    assert forecast.tokens_per_s() == pytest.approx(10)
    outlook = forecast.outlook(0, Size("other", chars=700, images=0, max_tokens=500))
    assert outlook
    assert outlook.likely_s == pytest.approx(700 / 3.5 / 100 + 0.2 * 500 / 10)
    assert outlook.safe_s > outlook.likely_s
    assert outlook.hearsay
    # One that did not end is no answer: taken for proof, it would have the next one given up as well, and so on.
    forecast.note_unfinished(1, "other", 5)
    forecast.note_unfinished(2, "other", 50)
    again = forecast.outlook(2, Size("other", chars=700, images=0, max_tokens=500))
    assert again
    assert again.hearsay
    assert again.likely_s == outlook.likely_s
    # Who is safe goes first, though.
    assert again.safe_s == 100
    # The other model, which sees, is a stranger still.
    assert forecast.outlook(0, Size("photo", chars=700, images=1, max_tokens=500)) is None


@given(st.integers(1, 1000), st.floats(1, 1e5))
def test_worst_case_is_bounded_by_the_tokens_that_may_come(max_tokens: int, answer_ms: float) -> None:
    forecast = Forecast(60)
    forecast.note_speed(0, TEXT, completion(100, 900, 10, answer_ms))
    outlook = forecast.outlook(0, Size("other", 0, 0, max_tokens))
    assert outlook
    assert outlook.safe_s <= max_tokens * answer_ms / 1000 / 900 * 1.0001


def test_two_models_without_room_for_both_are_known_by_their_loads() -> None:
    residence = Residence(keep_alive_s=1800)
    residence.answered(0, False, 7.0)
    residence.answered(10, True, 9.0)
    assert residence.load_s(11, vision=False) == 0
    residence.answered(20, False, 7.0)
    assert residence.load_s(21, vision=True) == 9.0
    assert residence.may_load(21, vision=False)
    assert not residence.may_load(21, vision=True)
    residence.answered(30, True, 9.0)
    assert residence.load_s(31, vision=False) == 7.0
    assert residence.load_s(31, vision=True) == 0
    # What is gone by itself is driven out by nobody.
    assert residence.may_load(1831, vision=False)


def test_a_model_that_is_there_after_all_says_that_both_fit() -> None:
    residence = Residence(keep_alive_s=1800)
    for now, vision, load_s in ((0, False, 7.0), (10, True, 9.0), (20, False, 7.0), (30, True, 9.0)):
        residence.answered(now, vision, load_s)
    residence.answered(40, False, 0.08)
    assert residence.load_s(41, vision=True) == 0
    residence.answered(50, True, 0.08)
    assert residence.load_s(51, vision=False) == 0
    assert residence.may_load(51, vision=True)


def test_a_load_is_expected_where_the_model_is_not_there_any_more() -> None:
    residence = Residence(keep_alive_s=1800)
    assert residence.load_s(0, vision=False) == 0
    residence.answered(0, False, 7.0)
    residence.answered(10, False, 0.08)
    assert residence.load_s(1809, vision=False) == 0
    assert residence.load_s(1811, vision=False) == 7.0
    assert residence.load_s(20, vision=True) == 0
    residence.gone()
    assert residence.load_s(20, vision=False) == 7.0
    assert Residence(None).loaded(0, vision=True)
