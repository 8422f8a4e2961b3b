"""Where a claim begins to look, and when a rescue goes over everything."""

from __future__ import annotations

from operator import itemgetter

from hypothesis import given
from hypothesis import strategies as st

from aiworker.queue.looks import Floors, Walks

moments = st.floats(1.7e9, 1.9e9)


def test_a_claim_that_left_nothing_behind_is_followed_by_one_of_what_came_since() -> None:
    floors = Floors()
    assert floors.places is None
    floors.looked(1000.0, None)
    assert floors.places == [998.0 + 10 * priority for priority in range(1, 11)]


def test_a_claim_that_took_all_it_wanted_is_followed_by_one_of_what_stood_behind() -> None:
    """A queue that was paused while 60,000 jobs came gave out 50 of them a second."""
    floors = Floors()
    floors.looked(1000.0, 500.0)
    assert floors.places == [500.0] * 10


def test_one_old_job_takes_back_nothing_that_was_known() -> None:
    floors = Floors()
    floors.looked(1000.0, None)
    known = floors.places
    floors.looked(1001.0, 20.0)
    assert floors.places == known


def test_a_clock_that_was_put_back_makes_it_forget() -> None:
    """Else what is enqueued for the next hour would stand before every floor."""
    floors = Floors()
    floors.looked(4600.0, None)
    floors.looked(1000.0, 990.0)
    assert floors.places == [990.0] * 10


@given(st.lists(st.tuples(moments, st.none() | moments), min_size=1, max_size=20))
def test_a_floor_never_sinks_and_never_passes_what_is_enqueued_later(looks: list[tuple[float, float | None]]) -> None:
    floors, before = Floors(), [0.0] * 10
    for at_s, last_place in sorted(looks, key=itemgetter(0)):
        floors.looked(at_s, last_place)
        assert floors.places is not None
        assert all(now >= then for now, then in zip(floors.places, before, strict=True))
        before = floors.places
    latest = max(at_s for at_s, _ in looks)
    assert all(place < latest + 10 * priority for priority, place in enumerate(before, 1))


def test_the_first_walk_goes_over_everything_and_then_one_every_two_seconds() -> None:
    walks = Walks()
    assert walks.since(100.0) is None
    walks.walked(None, 100.0, 100.001, 7.0)
    assert walks.since(101.9) == 7.0
    walks.walked(7.0, 101.9, 101.901, 7.5)
    assert walks.since(102.0) == 7.5
    assert walks.since(102.1) is None


def test_a_walk_that_took_for_ever_is_not_the_last_for_long() -> None:
    walks = Walks()
    walks.walked(None, 0.0, 600.0, 7.0)
    assert walks.since(601.0) == 7.0
    assert walks.since(721.0) is None


@given(st.lists(st.floats(0.0001, 0.5), min_size=3, max_size=40))
def test_going_over_everything_takes_at_most_a_two_hundredth_of_the_time(costs: list[float]) -> None:
    walks, now, whole = Walks(), 0.0, 0.0
    for cost in costs:
        while (since := walks.since(now)) is not None:
            walks.walked(since, now, now + 0.25, now)
            now += 0.25
        walks.walked(None, now, now + cost, now)
        whole += cost
        now += cost
    rest = max(2.0, costs[-1] / 0.005)
    assert whole <= 0.005 * (now + rest) + costs[-1]
