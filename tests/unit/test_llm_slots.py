from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.llm.slots import Slots, Ticket, predicted_wait


def ticket(deadline: float, log: list[tuple[float, bool]], expected_s: float = 0.0) -> Ticket:
    return Ticket(deadline, expected_s, lambda granted: log.append((deadline, granted)))


@given(st.integers(1, 4), st.lists(st.tuples(st.floats(0, 50), st.booleans()), min_size=1, max_size=30))
def test_slots_go_to_the_most_urgent_and_are_never_lost(size: int, calls: list[tuple[float, bool]]) -> None:
    slots, log = Slots(size, max_waiting=100), []
    tickets = []
    for deadline, gives_up in calls:
        one = ticket(deadline, log)
        slots.enter(one, 0.0)
        tickets.append(one)
        assert slots.in_use == min(size, len([t for t in tickets if not t.gone]))
        if gives_up and one.granted_at is None:
            slots.leave(one, 0.0)
    served = [t for t in tickets if t.granted_at is not None]
    while served:
        waiting = [t.deadline for t in tickets if t.granted_at is None and not t.gone]
        before = len(log)
        slots.leave(served.pop(), 1.0)
        for granted, _ in log[before:]:
            assert granted == min(waiting)
        served = [t for t in tickets if t.granted_at is not None and not t.gone]
    assert (slots.in_use, slots.waiting) == (0, 0)


def test_leaving_twice_frees_one_slot() -> None:
    slots, log = Slots(1, 10), []
    first, second, third = (ticket(deadline, log) for deadline in (1, 2, 3))
    for one in (first, second, third):
        slots.enter(one, 0.0)
    slots.leave(first, 0.0)
    slots.leave(first, 0.0)
    assert log == [(1, True), (2, True)]
    assert (slots.in_use, slots.waiting) == (1, 1)


def test_full_line_says_so() -> None:
    slots, log = Slots(1, 1), []
    slots.enter(ticket(1, log), 0.0)
    assert not slots.full
    slots.enter(ticket(2, log), 0.0)
    assert slots.full


def test_line_can_be_sent_away_while_calls_run() -> None:
    slots, log = Slots(1, 10), []
    running = ticket(1, log)
    slots.enter(running, 0.0)
    slots.enter(ticket(2, log), 0.0)
    slots.send_line_away()
    assert log == [(1, True), (2, False)]
    slots.leave(running, 0.0)
    assert (slots.in_use, slots.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("running", "ahead", "expected"),
    [([3.0], [], 3), ([3.0], [2.0, 2.0], 7), ([3.0, 1.0], [2.0], 3), ([3.0, 1.0], [2.0, 2.0], 3)],
)
def test_predicted_wait(running: list[float], ahead: list[float], expected: float) -> None:
    assert predicted_wait(running, ahead) == expected


def test_wait_counts_only_those_who_are_more_urgent() -> None:
    slots, log = Slots(1, 10), []
    assert slots.wait_s(0, 5) == 0
    slots.enter(ticket(9, log, 4), 0.0)
    mine = ticket(5, log, 2)
    slots.enter(mine, 0.0)
    slots.enter(ticket(7, log, 2), 0.0)
    assert slots.wait_s(1, 4) == 3
    assert slots.wait_s(1, 5, mine) == 3
    assert slots.wait_s(1, 6) == 5
    assert slots.wait_s(1, 8) == 7
    # What has outrun its forecast is taken to need as long again.
    assert slots.wait_s(7, 4) == 3
