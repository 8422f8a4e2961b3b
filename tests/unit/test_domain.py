"""The pure decisions of the domain."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain import errors
from aiworker.domain.errors import (
    DatabaseUnavailable,
    ImageUnreadable,
    MediaUnavailable,
    NoProvider,
    ProviderError,
    ProviderRateLimited,
    WorkerError,
)
from aiworker.domain.messages import CODES, sentence
from aiworker.domain.outcome import Failed, Retry, outcome_of_error
from aiworker.domain.retry import RetryPolicy

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, WorkerError)]


def test_those_that_failed_together_do_not_come_back_together() -> None:
    assert RetryPolicy().delay(1, 0.0, None) < RetryPolicy().delay(1, 0.5, None) < RetryPolicy().delay(1, 0.999, None)


@given(attempt=st.integers(1, 200), random=st.floats(0, 1, exclude_max=True))
def test_delay_is_jittered_within_half_and_never_above_the_cap(attempt: int, random: float) -> None:
    policy = RetryPolicy(base_s=1.0, factor=2.0, cap_s=60.0)
    full = min(60.0, 2.0 ** min(attempt - 1, 64))
    assert full / 2 <= policy.delay(attempt, random) <= full


@given(attempt=st.integers(1, 10), random=st.floats(0, 1, exclude_max=True), asked=st.floats(0, 3600))
def test_a_provider_is_never_asked_earlier_than_it_said(attempt: int, random: float, asked: float) -> None:
    assert RetryPolicy().delay(attempt, random, retry_after=asked) >= asked


@pytest.mark.parametrize(
    ("error", "attempt", "expected", "code"),
    [
        (MediaUnavailable(), 1, Retry, "media_unavailable"),
        (MediaUnavailable(), 3, Failed, "media_unavailable"),
        (ImageUnreadable(), 1, Failed, "image_unreadable"),
        (NoProvider(reasons={"ollama": "not_configured"}), 1, Failed, "no_provider"),
        (NoProvider(reasons={"ollama": "provider_timeout", "gemini": "not_configured"}), 1, Retry, "no_provider"),
        (NoProvider(reasons={"gemini": "provider_rate_limited"}, retry_after=300), 1, Retry, "no_provider"),
        (NoProvider(reasons={"gemini": "provider_rate_limited"}, retry_after=54_000), 1, Failed, "no_provider"),
        (DatabaseUnavailable(), 1, Retry, "database_unavailable"),
        (TimeoutError(), 1, Retry, "deadline_exceeded"),
        (TimeoutError(), 3, Failed, "deadline_exceeded"),
        (ZeroDivisionError("secret text"), 1, Retry, "internal_error"),
        (ZeroDivisionError("secret text"), 3, Failed, "internal_error"),
    ],
)
def test_outcome_of_error(error: Exception, attempt: int, expected: type, code: str) -> None:
    outcome = outcome_of_error(error, attempt=attempt, max_attempts=3, policy=RetryPolicy(), random=0.5)
    assert type(outcome) is expected
    assert outcome.error_code == code
    assert outcome.error == sentence(code)
    assert "secret" not in outcome.error


def test_retry_after_becomes_the_delay() -> None:
    error = ProviderRateLimited(retry_after=30.0)
    outcome = outcome_of_error(error, attempt=1, max_attempts=3, policy=RetryPolicy(), random=0.0)
    assert isinstance(outcome, Retry)
    assert outcome.delay_s == 30.0


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_can_be_said_to_a_person(kind: type[WorkerError]) -> None:
    if kind.code not in ("gateway_error", "job_not_completed"):
        assert kind.code in CODES


def test_every_sentence_exists_in_both_languages_and_says_what_to_do() -> None:
    for code in CODES:
        portuguese, english = sentence(code), sentence(code, "en")
        assert portuguese != english
        assert portuguese.endswith(".")
        assert english.endswith(".")


def test_an_unknown_code_still_reads() -> None:
    assert sentence("no_such_code") == sentence("internal_error")


def test_error_text_is_code_and_note() -> None:
    assert str(MediaUnavailable("status 503", host="example.org")) == "media_unavailable: status 503"


def test_a_job_is_not_tried_again_for_errors_that_stay() -> None:
    for kind in ERRORS:
        if issubclass(kind, ProviderError) and kind is not NoProvider:
            assert NoProvider(reasons={"gemini": kind.code}).retryable == kind.retryable, kind
