from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.batching import Choice, Waiting, choose_batch

_SHAPES = st.sampled_from([None, (640, 480), (480, 640)])
_LINES = st.lists(
    st.builds(Waiting, id=st.integers(0, 10**6), deadline_at=st.floats(0, 100), shape=_SHAPES, alone=st.booleans()),
    unique_by=lambda each: each.id,
    max_size=40,
)
_NOW = st.floats(0, 100)
_LIMIT = st.integers(1, 16)
_IDLE = st.integers(1, 5)


@given(_LINES, _NOW, _LIMIT, _IDLE)
def test_a_batch_keeps_its_promises(line: list[Waiting], now: float, limit: int, idle: int) -> None:
    by_id = {each.id: each for each in line}
    choice = choose_batch(line, now, limit, idle)
    batch = [by_id[each] for each in choice.batch]
    in_time = [each for each in line if each.deadline_at > now]

    assert set(choice.late) == {each.id for each in line if each.deadline_at <= now}
    assert len(batch) <= limit
    assert len({each.id for each in batch}) == len(batch)
    assert all(each.deadline_at > now for each in batch)
    assert bool(batch) == bool(in_time), "work-conserving"
    if batch:
        assert batch[0].deadline_at == min(each.deadline_at for each in in_time)
        assert {each.shape for each in batch} == {batch[0].shape}
        assert [each.deadline_at for each in batch] == sorted(each.deadline_at for each in batch)
        assert len(batch) == 1 or not any(each.alone for each in batch)
        left = [e for e in in_time if e not in batch and e.shape == batch[0].shape and not e.alone]
        assert all(each.deadline_at >= batch[-1].deadline_at for each in left), "no fellow is overtaken"


@given(_LINES, _LIMIT, st.integers(1, 5))
def test_the_line_is_emptied_and_nobody_served_twice(line: list[Waiting], limit: int, idle: int) -> None:
    left = {each.id: each for each in line}
    rounds = 0
    while left:
        choice = choose_batch(left.values(), -1.0, limit, idle)
        assert choice.batch
        for served in choice.batch:
            del left[served]
        rounds += 1
    assert rounds <= len(line)


def test_idle_lanes_share_a_short_line() -> None:
    line = [Waiting(number, 10.0 + number) for number in range(4)]
    assert choose_batch(line, 0.0, limit=8, idle_lanes=2) == Choice((0, 1))
    assert choose_batch(line, 0.0, limit=8, idle_lanes=1) == Choice((0, 1, 2, 3))


def test_the_most_urgent_leads_and_its_shape_follows() -> None:
    line = [
        Waiting(1, 9.0, (640, 480)),
        Waiting(2, 3.0, (480, 640)),
        Waiting(3, 5.0, (640, 480)),
        Waiting(4, 7.0, (480, 640)),
        Waiting(5, 1.0, (480, 640)),
    ]
    assert choose_batch(line, 2.0, limit=8) == Choice(batch=(2, 4), late=(5,))


def test_a_suspect_runs_alone_when_its_turn_comes() -> None:
    line = [Waiting(1, 3.0), Waiting(2, 2.0, alone=True), Waiting(3, 1.0)]
    assert choose_batch(line, 0.0, limit=8).batch == (3, 1)
    assert choose_batch(line[:2], 0.0, limit=8).batch == (2,)
