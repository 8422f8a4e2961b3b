"""The scheduler as a whole, driven by a simulation with a virtual clock."""

from __future__ import annotations

import math
import random

import pytest
from fakes.inference_simulation import Arrival, Record, SimulatedLane, Simulation, linear
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.inference.policy.actions import Cause, Dispatch, TakeOut
from aiworker.inference.policy.scheduler import Scheduler
from aiworker.inference.policy.supervision import Verdict

_SHAPES = st.sampled_from([None, (640, 480), (480, 640)])
_ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 3),
        patience_s=st.one_of(st.floats(0.001, 0.5), st.just(1000.0)),
        shape=_SHAPES,
        kills=st.sampled_from([False] * 30 + [True]),
    ),
    max_size=60,
).map(lambda arrivals: sorted(arrivals, key=lambda each: each.at))
_LANES = st.lists(
    st.builds(lambda a, b, cap: (a, b, cap), st.floats(0, 0.05), st.floats(0.001, 0.05), st.integers(1, 8)),
    min_size=1,
    max_size=3,
)
_MOMENTS = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2)), max_size=3)


def _ended(record: Record) -> list[int]:
    return sorted([*record.answered_at, *record.taken_out, *record.rejected])


@settings(max_examples=150, deadline=None)
@given(_ARRIVALS, _LANES, st.integers(1, 8), _MOMENTS, _MOMENTS, st.sampled_from([64, 64, 3, 1, 0]), st.booleans())
def test_no_request_is_lost_starved_or_answered_twice_and_no_lane_idles(
    arrivals: list[Arrival],
    lanes: list[tuple[float, float, int]],
    max_batch: int,
    deaths: list[tuple[float, int]],
    drains: list[tuple[float, int]],
    room: int,
    queues: bool,
) -> None:
    deaths = [(at, lane % len(lanes)) for at, lane in deaths]
    drains = [(at, lane % len(lanes)) for at, lane in drains]
    simulation = Simulation(
        arrivals,
        [SimulatedLane(linear(a, b), cap, room=room, queues=queues) for a, b, cap in lanes],
        max_batch=max_batch,
        deaths=deaths,
        drains=drains,
    )
    record = simulation.run()

    assert _ended(record) == list(range(len(arrivals))), "each ends once"
    patient = {item for item, each in enumerate(arrivals) if each.patience_s > 100 and not each.kills}
    assert patient <= record.answered_at.keys() | set(record.rejected), "who can wait is served"
    for sent in record.sent:
        items = sent.dispatch.items
        assert len(items) <= min(max_batch, simulation.lanes[sent.dispatch.lane].pass_size)
        assert len({arrivals[item].shape for item in items}) == 1
    for item, (at, cause) in record.taken_out.items():
        deadline = arrivals[item].at + arrivals[item].patience_s
        assert (at >= deadline) == (cause is Cause.DEADLINE_PASSED)
    if len({lane[:2] for lane in lanes}) == 1:
        assert not record.idle_while_waiting, "work-conserving"


@settings(max_examples=100, deadline=None)
@given(_ARRIVALS, st.integers(1, 3), st.integers(1, 8))
def test_within_a_shape_nobody_more_urgent_is_overtaken(arrivals: list[Arrival], lanes: int, cap: int) -> None:
    arrivals = [Arrival(each.at, each.patience_s, each.shape) for each in arrivals]
    simulation = Simulation(arrivals, [SimulatedLane(linear(0.01, 0.01), cap) for _ in range(lanes)])
    record = simulation.run()
    sent_at = {item: sent.at for sent in record.sent for item in sent.dispatch.items}
    for item, at in sent_at.items():
        for other, other_at in sent_at.items():
            same = arrivals[item].shape == arrivals[other].shape
            if same and _deadline(arrivals[other]) < _deadline(arrivals[item]) and arrivals[other].at < at:
                assert other_at <= at


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 19), st.integers(1, 3), st.integers(1, 8))
def test_a_picture_that_kills_is_rejected_alone(poison: int, lanes: int, cap: int) -> None:
    arrivals = [Arrival(0.0, 1000.0, kills=item == poison) for item in range(20)]
    simulation = Simulation(arrivals, [SimulatedLane(linear(0.01, 0.01), cap) for _ in range(lanes)])
    record = simulation.run()
    assert record.rejected == [poison]
    assert len(record.answered_at) == 19
    assert sum(lane.lives for lane in simulation.lanes) - lanes == 3, "three children, whatever the batch"


def _poisson(rate: float, patience_s: float, seconds: float = 15.0) -> list[Arrival]:
    source, at, arrivals = random.Random(7), 1.0, []
    while at < seconds + 1.0:
        at += source.expovariate(rate)
        arrivals.append(Arrival(at, patience_s))
    return arrivals


@pytest.mark.parametrize(("load", "least"), [(0.5, 0.999), (0.8, 0.99)])
@pytest.mark.parametrize(
    ("a", "b", "lanes", "cap", "patience_s"),
    [(0.010, 0.002, 1, 8, 0.1), (0.005, 0.05, 2, 2, 1.0)],
    ids=["gpu-like", "cpu-like"],
)
def test_below_the_ceiling_nearly_everybody_is_in_time(
    a: float, b: float, lanes: int, cap: int, patience_s: float, load: float, least: float
) -> None:
    arrivals = _poisson(load * lanes * cap / (a + b * cap), patience_s)
    simulation = Simulation(arrivals, [SimulatedLane(linear(a, b), cap) for _ in range(lanes)])
    simulation.run()
    assert simulation.in_time() >= least * len(arrivals)


@pytest.mark.parametrize("load", [1.3, 3.0])
@pytest.mark.parametrize(
    ("a", "b", "lanes", "cap", "patience_s"),
    [(0.010, 0.002, 1, 8, 0.1), (0.005, 0.05, 2, 2, 1.0)],
    ids=["gpu-like", "cpu-like"],
)
def test_overload_does_not_take_the_ceiling_away(
    a: float, b: float, lanes: int, cap: int, patience_s: float, load: float
) -> None:
    ceiling = lanes * cap / (a + b * cap)
    simulation = Simulation(
        _poisson(load * ceiling, patience_s), [SimulatedLane(linear(a, b), cap) for _ in range(lanes)]
    )
    record = simulation.run()
    assert simulation.in_time() >= 0.9 * ceiling * 15.0
    early = [at for at, cause in record.taken_out.values() if cause is Cause.CANNOT_MAKE_IT]
    assert len(early) > 0.9 * len(record.taken_out), "they are told before their deadline"


def _scheduler(cap: int = 8) -> Scheduler:
    scheduler = Scheduler(cap)
    scheduler.lane_up(0, "engine", cap, 0.0)
    return scheduler


def test_a_lane_at_work_gets_its_next_batch_just_before_it_is_through() -> None:
    scheduler = _scheduler()
    for _ in range(10):
        scheduler.times.observe("engine", None, 1, 1.0)
    scheduler.submit(1, 100.0, None)
    assert scheduler.decide(0.0) == [Dispatch(0, 1, (1,))]
    scheduler.submit(2, 100.0, None)
    assert scheduler.decide(0.5) == []
    again = scheduler.next_at(0.5)
    assert again is not None
    assert 0.9 < again < 1.0
    scheduler.submit(3, 100.0, None)
    assert scheduler.decide(again) == [Dispatch(0, 2, (2, 3))]
    scheduler.submit(4, 100.0, None)
    assert scheduler.decide(2.0) == [], "two batches in flight at most"


def test_memory_that_runs_out_halves_the_cap_which_comes_back_slowly() -> None:
    scheduler = _scheduler()
    load = scheduler.load(0)
    assert load is not None
    load.lower_cap(8)
    assert load.cap == 4
    load.lower_cap(1)
    assert load.cap == 1
    for number in range(1, 101):
        scheduler.submit(number, 1e9, None)
        (sent,) = scheduler.decide(float(number))
        assert isinstance(sent, Dispatch)
        scheduler.answered(0, number)
        assert scheduler.batch_done(0, sent.batch, 0.0, number + 0.5)
    assert load.cap == 2, "raised once, and batches of one do not fill the new cap"


def test_one_that_found_no_memory_even_alone_waits_and_is_tried_again() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 100.0, None)
    (sent,) = scheduler.decide(0.0)
    assert isinstance(sent, Dispatch)
    assert scheduler.starved(0, 1, 0.1)
    assert scheduler.batch_done(0, sent.batch, 0.0, 0.1)
    assert scheduler.decide(0.1) == []
    again = scheduler.next_at(0.1)
    assert again == pytest.approx(0.35)
    assert scheduler.decide(again) == [Dispatch(0, 2, (1,))]


def _starve(scheduler: Scheduler, item: int, now: float) -> None:
    """It is given to the lane, and finds no memory."""
    (sent,) = scheduler.decide(now)
    assert isinstance(sent, Dispatch)
    assert sent.items == (item,)
    assert scheduler.starved(0, item, now)
    assert scheduler.batch_done(0, sent.batch, 0.0, now)


def test_one_that_never_finds_memory_lets_the_others_go_first() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 10.0, None)
    now = 0.0
    for rest_s in (0.25, 0.5, 1.0, 2.0):
        _starve(scheduler, 1, now)
        scheduler.submit(2, 100.0, None)
        assert scheduler.waiting == 2
        (sent,) = scheduler.decide(now)
        assert isinstance(sent, Dispatch)
        assert sent.items == (2,), "less urgent, but it may fit"
        assert scheduler.answered(0, 2)
        assert scheduler.batch_done(0, sent.batch, 0.0, now)
        assert scheduler.next_at(now) == pytest.approx(now + rest_s)
        now += rest_s
    assert scheduler.withdraw(1) is True
    assert scheduler.waiting == 0


def test_one_that_rests_is_taken_out_at_its_deadline() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 0.2, None)
    _starve(scheduler, 1, 0.0)
    assert scheduler.next_at(0.0) == pytest.approx(0.2)
    assert scheduler.decide(0.2) == [TakeOut((1,), Cause.DEADLINE_PASSED)]
    assert scheduler.waiting == 0
    assert scheduler.next_at(0.2) is None


def test_a_lane_rests_when_two_in_a_row_find_no_memory_and_longer_each_time() -> None:
    scheduler = _scheduler()
    now = 0.0
    for item, rest_s in ((1, 0.0), (2, 0.25), (3, 0.5), (4, 1.0)):
        scheduler.submit(item, 100.0 + item, None)
        _starve(scheduler, item, now)
        assert scheduler.withdraw(item)
        load = scheduler.load(0)
        assert load is not None
        assert load.idle(now) is (rest_s == 0)
        now += rest_s
        assert load.idle(now)


def test_nothing_runs_beside_a_suspect() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 1e9, None)
    for death in range(2):
        assert len(scheduler.decide(float(death))) == 1
        assert scheduler.lane_down(0) == ()
        scheduler.lane_up(0, "engine", 8, float(death))
    assert len(scheduler.decide(3.0)) == 1
    scheduler.submit(2, 1e9, None)
    assert scheduler.decide(100.0) == []
    assert scheduler.lane_down(0) == (1,)


def test_a_picture_is_blamed_for_the_failures_of_sound_children_only() -> None:
    """One that had failed just before may be broken by what it had then, and others come to it alone."""
    scheduler = _scheduler()
    scheduler.submit(1, 1e9, None)
    verdicts = []
    for now, blamed in enumerate([False, False, False, True, False, True, False, True]):
        assert len(scheduler.decide(float(now))) == 1
        verdicts.append(scheduler.failed(0, 1, blamed=blamed))
        assert scheduler.lane_down(0) == ()
        scheduler.lane_up(0, "engine", 8, float(now))
    assert verdicts == [Verdict.RETRY] * 5 + [Verdict.RETRY_ALONE, Verdict.RETRY, Verdict.REJECT]
    assert scheduler.decide(9.0) == []


def test_an_eye_test_waits_for_the_lane_and_has_it_to_itself() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 1e9, None)
    assert len(scheduler.decide(0.0)) == 1
    scheduler.reserve(0)
    scheduler.submit(2, 1e9, None)
    assert scheduler.decide(1.0) == []
    assert scheduler.occupy(0, 0, None, 1.0) is None
    assert scheduler.answered(0, 1)
    assert scheduler.batch_done(0, 1, 0.0, 1.0)
    assert scheduler.decide(1.0) == []
    batch = scheduler.occupy(0, 0, None, 1.0)
    assert batch == 2
    assert scheduler.decide(100.0) == []
    assert scheduler.answered(0, 0)
    assert scheduler.batch_done(0, batch, 0.0, 101.0)
    assert scheduler.decide(101.0) == [Dispatch(0, 3, (2,))]


def test_a_drained_lane_finishes_what_it_has_and_gets_nothing_more() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 100.0, None)
    assert len(scheduler.decide(0.0)) == 1
    scheduler.drain(0)
    scheduler.submit(2, 100.0, None)
    assert scheduler.answered(0, 1)
    assert scheduler.batch_done(0, 1, 0.0, 0.1)
    assert scheduler.decide(0.2) == []
    scheduler.lane_up(1, "engine", 8, 0.3)
    assert scheduler.decide(0.3) == [Dispatch(1, 2, (2,))]


def test_nonsense_of_a_child_is_not_believed() -> None:
    scheduler = _scheduler()
    assert not scheduler.answered(0, 5)
    assert not scheduler.starved(0, 5, 0.0)
    assert scheduler.batch_done(0, 1, 0.0, 0.0) is None
    scheduler.submit(1, 100.0, None)
    scheduler.decide(0.0)
    assert scheduler.batch_done(0, 1, 0.0, 0.0) is None, "an answer is missing"


def test_who_gave_up_is_forgotten() -> None:
    scheduler = _scheduler()
    scheduler.submit(1, 1.0, None)
    assert scheduler.withdraw(1)
    assert not scheduler.withdraw(1)
    scheduler.submit(2, 1.0, None)
    assert scheduler.decide(1.0) == [TakeOut((2,), Cause.DEADLINE_PASSED)]
    assert scheduler.next_at(1.0) is None


def test_a_deadline_that_is_no_number_has_passed_and_harms_no_other() -> None:
    scheduler = Scheduler(4)
    for item, deadline_at in ((1, 5.0), (2, math.nan), (3, 4.0), (4, math.inf), (5, -math.inf)):
        scheduler.submit(item, deadline_at, None)
    scheduler.lane_up(0, "fake", 64, 0.0)
    assert scheduler.decide(0.0) == [TakeOut((2, 5), Cause.DEADLINE_PASSED), Dispatch(0, 1, (3, 1, 4))]
    scheduler.submit(6, math.nan, None)
    assert scheduler.withdraw(6)
    assert scheduler.waiting == 0


def _deadline(arrival: Arrival) -> float:
    return arrival.at + arrival.patience_s


@pytest.mark.parametrize(("queues", "least", "most"), [(True, 0.99, 1.0), (False, 0.0, 0.75)])
def test_a_device_that_queues_never_waits_for_the_answer_to_its_last_pass(
    queues: bool, least: float, most: float
) -> None:
    pictures, cap, device_s = 640, 8, 0.026
    lane = SimulatedLane(linear(device_s, 0.0), cap, queues=queues, answer_s=0.010)
    record = Simulation([Arrival(0.0, 1000.0) for _ in range(pictures)], [lane]).run()
    took = max(record.answered_at.values())
    assert least <= pictures / cap * device_s / took <= most


def test_a_device_that_queues_still_waits_for_a_fuller_batch() -> None:
    lane = SimulatedLane(linear(0.1, 0.0), 8, queues=True)
    arrivals = [Arrival(2 + at / 100, 1000.0) for at in range(8)]
    # After the first batches, which nobody knows the time of.
    known = [Arrival(0.5, 1000.0), Arrival(1.0, 1000.0)]
    record = Simulation([*known, *arrivals], [lane]).run()
    assert [sent.dispatch.items for sent in record.sent] == [(0,), (1,), (2,), tuple(range(3, 10))]
