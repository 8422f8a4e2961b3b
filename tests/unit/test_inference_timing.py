from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.policy.timing import ServiceTime, TimingBook

_SAMPLES = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 100)), min_size=1, max_size=60)


@given(st.floats(0, 1), st.floats(1e-3, 1), st.integers(0, 10**6))
def test_a_line_is_found_through_noise(a: float, b: float, seed: int) -> None:
    source, time = random.Random(seed), ServiceTime()
    for _ in range(200):
        n = source.randint(1, 8)
        time.observe(n, (a + b * n) * source.uniform(0.97, 1.03))
    for n in (1, 4, 8):
        assert time.mean(n) == pytest.approx(a + b * n, rel=0.1)
        assert time.mean(n) <= time.bound(n) <= 1.3 * (a + b * n)


@given(_SAMPLES)
def test_predictions_are_never_negative_and_grow_with_the_batch(samples: list[tuple[int, float]]) -> None:
    time = ServiceTime()
    for n, seconds in samples:
        time.observe(n, seconds)
    assert time.a >= -1e-9
    assert time.b >= 0
    assert 0 <= time.mean(1) <= time.mean(8) + 1e-9


def test_one_hiccup_proves_nothing_but_a_slower_machine_is_believed_soon() -> None:
    time = ServiceTime()
    for _ in range(100):
        time.observe(2, 0.1)
    time.observe(2, 60.0)
    assert time.mean(2) < 0.12
    for _ in range(40):
        time.observe(2, 0.4)
    assert time.mean(2) > 0.3


def test_one_size_seen_makes_larger_batches_look_slow_rather_than_fast() -> None:
    time = ServiceTime()
    time.observe(1, 0.1)
    assert time.mean(1) == pytest.approx(0.1)
    assert time.mean(8) == pytest.approx(0.8)


@given(_SAMPLES)
def test_what_was_learned_survives_a_restart(samples: list[tuple[int, float]]) -> None:
    book, after = TimingBook(), TimingBook()
    for n, seconds in samples:
        book.observe("engine", (640, 480), n, seconds)
    after.load(json.loads(json.dumps(book.dump())))
    for n in (1, 8):
        assert after.of("engine", (640, 480)).mean(n) == pytest.approx(book.of("engine", (640, 480)).mean(n))


def test_a_new_machine_overrules_what_was_kept() -> None:
    book, after = TimingBook(), TimingBook()
    for _ in range(1000):
        book.observe("engine", None, 1, 1.0)
    after.load(book.dump())
    for _ in range(30):
        after.observe("engine", None, 1, 0.1)
    assert after.of("engine", None).mean(1) < 0.2


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        3,
        [3],
        [{}],
        [{"engine": "e", "shape": [1], "sums": [1, 1, 1, 1, 1], "deviation": 0}],
        [{"engine": "e", "shape": None, "sums": [1, 1], "deviation": 0}],
        [{"engine": "e", "shape": None, "sums": [1, 1, 1, -1, 1], "deviation": 0}],
        [{"engine": "e", "shape": None, "sums": ["x"] * 5, "deviation": 0}],
        [{"engine": "e", "shape": None, "sums": [1, 0, 0, 1, 0], "deviation": 0}],
        [{"engine": "e", "shape": None, "sums": [1, 1, 1, 1, 1], "deviation": "inf"}],
    ],
)
def test_a_damaged_book_is_learned_again(damaged: object) -> None:
    book = TimingBook()
    book.load(damaged)
    assert not book.of("e", None).known


def test_a_shape_not_seen_yet_counts_as_slow_as_the_slowest() -> None:
    book = TimingBook()
    book.observe("engine", (640, 640), 1, 0.2)
    book.observe("engine", (320, 640), 1, 0.1)
    assert book.of("engine", (480, 640)).mean(1) == pytest.approx(0.2)
    assert not book.of("another", (640, 640)).known
