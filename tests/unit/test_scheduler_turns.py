"""Suspects and everybody else take turns, whatever the jobs last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiworker.scheduler.turns import Turns

durations = st.floats(0.01, 100)


def test_a_worker_that_starts_is_there_for_the_others_first() -> None:
    turns = Turns.starting(100.0)

    assert not turns.of_suspects(104.9)
    assert turns.of_suspects(105.0)


def test_it_waits_for_nobody_who_is_not_there() -> None:
    turns = Turns.starting(100.0)
    turns.nobody_else_waits(101.0)

    assert turns.of_suspects(101.0)


@given(runs=st.lists(st.tuples(durations, durations), min_size=1, max_size=20))
def test_the_others_have_as_long_as_a_suspect_and_its_turn_comes(runs: list[tuple[float, float]]) -> None:
    """Each run: what the worker waits to be idle, and what the suspect lasts."""
    now = 0.0
    turns = Turns(others_until_s=now)
    for waited, lasted in runs:
        assert turns.of_suspects(now)
        turns.claimed(now, suspect=True)
        turns.claimed(now + waited, suspect=True)
        now += waited + lasted
        turns.over(now)

        assert not turns.of_suspects(now + 0.99 * (waited + lasted))
        now += 1.01 * (waited + lasted)


def test_a_suspect_that_another_worker_took_meanwhile_ends_its_turn() -> None:
    turns = Turns(others_until_s=0.0)
    turns.claimed(10.0, suspect=True)
    turns.claimed(13.0, suspect=False)

    assert not turns.of_suspects(15.9)
    assert turns.of_suspects(16.0)
    turns.claimed(16.0, suspect=False)
    assert turns.of_suspects(16.0)
