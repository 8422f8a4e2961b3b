"""When a claim looks at everything and when only at what is new."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiworker.queue.looks import Looks


def test_the_first_look_is_a_whole_one_and_then_one_every_second() -> None:
    looks = Looks()
    assert looks.since(100.0) is None
    looks.looked(None, 100.0, 100.001, 7.0)
    assert looks.since(100.5) == 7.0
    looks.looked(7.0, 100.5, 100.501, 7.5)
    assert looks.since(100.9) == 7.5
    assert looks.since(101.1) is None


def test_what_may_have_left_jobs_behind_does_not_move_the_mark() -> None:
    looks = Looks()
    looks.looked(None, 0.0, 0.001, 7.0)
    looks.looked(7.0, 0.1, 0.101, None)
    assert looks.since(0.2) == 7.0


def test_what_a_whole_look_leaves_behind_is_looked_for_at_once() -> None:
    """A queue that was paused while 60,000 jobs came gave out 50 of them a second."""
    looks = Looks()
    looks.looked(None, 0.0, 0.001, 7.0)
    looks.looked(None, 1.1, 1.101, None)
    assert looks.since(1.2) is None


def test_a_look_that_took_for_ever_is_not_the_last_for_long() -> None:
    looks = Looks()
    looks.looked(None, 0.0, 600.0, 7.0)
    assert looks.since(601.0) == 7.0
    assert looks.since(621.0) is None


def test_without_a_mark_every_look_is_a_whole_one() -> None:
    looks = Looks()
    looks.looked(None, 0.0, 0.001, None)
    assert looks.since(0.5) is None


@given(st.lists(st.floats(0.0001, 0.1), min_size=3, max_size=40))
def test_whole_looks_take_at_most_a_two_hundredth_of_the_time(costs: list[float]) -> None:
    looks, now, whole = Looks(), 0.0, 0.0
    for cost in costs:
        while (since := looks.since(now)) is not None:
            looks.looked(since, now, now + 0.01, now)
            now += 0.01
        looks.looked(None, now, now + cost, now)
        whole += cost
        now += cost
    rest = max(1.0, costs[-1] / 0.005)
    assert whole <= 0.005 * (now + rest) + costs[-1]
