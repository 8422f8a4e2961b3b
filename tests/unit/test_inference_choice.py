from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.policy.choice import Choice, Offer, Release, Waiting, choose_batch, efficient_size

_SHAPES = st.sampled_from([None, (640, 480), (480, 640)])
_LINES = st.lists(
    st.builds(Waiting, id=st.integers(0, 10**6), deadline_at=st.floats(0.1, 10), shape=_SHAPES, alone=st.booleans()),
    unique_by=lambda each: each.id,
    max_size=40,
).map(lambda line: sorted(line, key=lambda each: (each.deadline_at, each.id)))


def _offer(
    cap: int = 8, a: float = 0.0, b: float = 0.0, idle: int = 1, *, at_work: bool = False, starts_at: float = 0.0
) -> Offer:
    def predict(_: object, n: int) -> float:
        return a + b * n

    def earliest(_: object) -> float:
        return starts_at + a + b

    return Offer(starts_at, cap, predict, earliest, idle_lanes=idle, lanes=idle, at_work=at_work)


@given(_LINES, st.integers(1, 16), st.floats(0, 1), st.floats(0, 1), st.integers(1, 5), st.booleans())
def test_a_batch_keeps_its_promises(
    line: list[Waiting], cap: int, a: float, b: float, idle: int, at_work: bool
) -> None:
    by_id = {each.id: each for each in line}
    choice = choose_batch(line, _offer(cap, a, b, idle, at_work=at_work))
    batch = [by_id[each] for each in choice.batch]
    left = [each for each in line if each not in batch and each.id not in choice.given_up]

    assert len(batch) <= cap
    assert len(set(choice.batch) | set(choice.given_up)) == len(choice.batch) + len(choice.given_up)
    assert bool(batch) == bool(line) or at_work, "an idle lane is given work"
    assert bool(batch) or not choice.given_up, "nobody is given up in favour of nobody"
    assert len(batch) <= 1 or not any(each.alone for each in batch)
    assert not (at_work and any(each.alone for each in batch)), "a suspect has the child to itself"
    if batch:
        assert {each.shape for each in batch} == {batch[0].shape}
        assert [each.deadline_at for each in batch] == sorted(each.deadline_at for each in batch)
        fellows = [e for e in left if e.shape == batch[0].shape and not e.alone]
        assert all(each.deadline_at >= batch[-1].deadline_at for each in fellows), "no fellow is overtaken"
        assert all(each.deadline_at >= batch[0].deadline_at for each in left)
        on_time = choice.predicted_s <= batch[0].deadline_at
        assert on_time or choice.release in (Release.LATE_ANYWAY, Release.ALONE)


@given(_LINES, st.integers(1, 16), st.floats(0, 1), st.floats(0, 1))
def test_the_line_is_emptied_and_nobody_served_twice(line: list[Waiting], cap: int, a: float, b: float) -> None:
    rounds = 0
    while line:
        choice = choose_batch(line, _offer(cap, a, b))
        assert choice.batch
        line = [each for each in line if each.id not in {*choice.batch, *choice.given_up}]
        rounds += 1
    assert rounds <= 40


def test_idle_lanes_share_a_short_line() -> None:
    line = [Waiting(number, 10.0 + number) for number in range(4)]
    assert choose_batch(line, _offer(idle=2)) == Choice((0, 1), Release.SHARE)
    assert choose_batch(line, _offer(idle=1)) == Choice((0, 1, 2, 3), Release.EVERYTHING)
    assert choose_batch(line, _offer(cap=3)) == Choice((0, 1, 2), Release.FULL)


def test_the_most_urgent_leads_and_its_shape_follows() -> None:
    line = [
        Waiting(2, 3.0, (480, 640)),
        Waiting(3, 5.0, (640, 480)),
        Waiting(4, 7.0, (480, 640)),
        Waiting(1, 9.0, (640, 480)),
    ]
    assert choose_batch(line, _offer()).batch == (2, 4)


def test_a_batch_is_as_large_as_its_leader_can_wait_for() -> None:
    line = [Waiting(0, 0.5), *(Waiting(number, 10.0) for number in range(1, 8))]
    assert choose_batch(line, _offer(b=0.1)).batch == (0, 1, 2, 3, 4)


def test_under_overload_a_leader_that_would_force_a_tiny_batch_is_given_up() -> None:
    urgent, rest = Waiting(0, 0.012), [Waiting(number, 0.027) for number in range(1, 9)]
    choice = choose_batch([urgent, *rest], _offer(a=0.010, b=0.002))
    assert choice.given_up == (0,)
    assert choice.batch == (1, 2, 3, 4, 5, 6, 7, 8)


def test_with_time_to_spare_behind_it_an_urgent_one_gets_its_small_batch() -> None:
    urgent, rest = Waiting(0, 0.012), [Waiting(number, 1.0) for number in range(1, 9)]
    choice = choose_batch([urgent, *rest], _offer(a=0.010, b=0.002))
    assert choice == Choice((0,), Release.DEADLINE, (), 0.012)


def test_when_all_seem_late_they_are_tried() -> None:
    line = [Waiting(number, 0.1) for number in range(3)]
    assert choose_batch(line, _offer(b=1.0)).batch == (0, 1, 2)
    assert choose_batch(line, _offer(b=1.0)).release is Release.LATE_ANYWAY
    assert choose_batch(line, _offer(b=1.0, at_work=True)) == Choice()


def test_one_that_a_faster_lane_can_answer_is_left_to_it() -> None:
    slow = Offer(0.0, 8, lambda _, n: 1.0 * n, lambda _: 0.2)
    assert choose_batch([Waiting(1, 0.5)], slow) == Choice()
    assert choose_batch([Waiting(1, 0.5), Waiting(2, 1.5)], slow).batch == (2,)
    assert choose_batch([Waiting(1, 0.5), Waiting(2, 1.5)], slow).given_up == ()


def test_a_suspect_runs_alone_and_stops_what_would_run_beside_it() -> None:
    line = [Waiting(3, 1.0), Waiting(2, 2.0, alone=True), Waiting(1, 3.0)]
    assert choose_batch(line, _offer()).batch == (3, 1)
    assert choose_batch(line[1:], _offer()).batch == (2,)
    assert choose_batch(line[1:], _offer(at_work=True)) == Choice()


def _line(a: float, b: float) -> Callable[[int], float]:
    return lambda n: a + b * n


def test_the_floor_follows_what_batching_gains() -> None:
    assert efficient_size(8, _line(0.0, 0.05)) == 1, "nothing gained by batching"
    assert efficient_size(8, _line(0.010, 0.002)) == 7
    assert efficient_size(8, _line(0.05, 0.0)) == 8
    assert efficient_size(8, _line(0.0, 0.0)) == 1, "nothing known"
