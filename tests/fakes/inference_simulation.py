"""A discrete-event simulation of the pool: the real scheduler, a virtual clock, and lanes that are only arithmetic."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from aiworker.inference.policy.actions import BatchReport, Cause, Dispatch
from aiworker.inference.policy.scheduler import Scheduler
from aiworker.inference.policy.shape import Shape


@dataclass(frozen=True)
class Arrival:
    """`kills` marks a picture that no child survives."""

    at: float
    patience_s: float
    shape: Shape | None = None
    kills: bool = False


@dataclass
class SimulatedLane:
    """Takes `seconds(n)` for a batch of n, one batch after the other, and `restart_s` to come back from the dead.

    `room` is how many pictures find memory together; what does not fit is halved, as a child does it. With none, every
    second picture is starved. Then it is busy with the answer for `answer_s`, meanwhile with the next batch if it
    `queues`.
    """

    seconds: Callable[[int], float]
    pass_size: int = 8
    engine: str = "simulated"
    restart_s: float = 0.5
    room: int = 64
    queues: bool = False
    answer_s: float = 0.0
    lives: int = 0
    busy_until: float = 0.0
    answered_at: float = 0.0


@dataclass(frozen=True)
class Sent:
    at: float
    dispatch: Dispatch
    was_idle: bool


@dataclass
class Record:
    """What became of every request, by its number in order of arrival; times on the virtual clock."""

    answered_at: dict[int, float] = field(default_factory=dict)
    taken_out: dict[int, tuple[float, Cause]] = field(default_factory=dict)
    rejected: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    reports: list[BatchReport] = field(default_factory=list)
    idle_while_waiting: list[float] = field(default_factory=list)


class Simulation:
    """`deaths` are (time, lane) at which a lane's child is killed from outside, `drains` those at which it is replaced
    by a fresh one that is ready."""

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        lanes: Sequence[SimulatedLane],
        *,
        max_batch: int = 8,
        deaths: Sequence[tuple[float, int]] = (),
        drains: Sequence[tuple[float, int]] = (),
    ) -> None:
        self.scheduler = Scheduler(max_batch)
        self.record = Record()
        self.arrivals = arrivals
        self.lanes = list(lanes)
        self._alone = 0
        self._order = itertools.count()
        self._wakes_at = -math.inf
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        for item, arrival in enumerate(arrivals):
            self._at(arrival.at, lambda now, item=item: self._arrive(item, now))  # type: ignore[misc]
        for index in range(len(lanes)):
            self._at(0.0, lambda now, index=index: self._start(index, now))  # type: ignore[misc]
        for moment, index in deaths:
            self._at(moment, lambda now, index=index: self._die(index, self.lanes[index].lives, now))  # type: ignore[misc]

        for moment, index in drains:
            self._at(moment, lambda now, index=index: self._drain(index, now))  # type: ignore[misc]

    def run(self) -> Record:
        """Until nothing happens any more."""
        steps = 0
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            happen(now)
            self._act(now)
            steps += 1
            assert steps < 1000 * (len(self.arrivals) + 10), "the simulation does not end"
        return self.record

    def _at(self, moment: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), happen))

    def _arrive(self, item: int, now: float) -> None:
        arrival = self.arrivals[item]
        self.scheduler.submit(item, now + arrival.patience_s, arrival.shape)

    def _start(self, index: int, now: float) -> None:
        lane = self.lanes[index]
        lane.lives += 1
        lane.busy_until = lane.answered_at = now
        self.scheduler.lane_up(index, lane.engine, lane.pass_size, now, queues=lane.queues)

    def _drain(self, index: int, now: float) -> None:
        if self.scheduler.load(index) is None:
            return
        old = self.lanes[index]
        self.lanes.append(replace(old, lives=0))
        self._start(len(self.lanes) - 1, now)
        self.scheduler.drain(index)

    def _die(self, index: int, life: int, now: float) -> None:
        lane = self.lanes[index]
        if lane.lives != life or self.scheduler.load(index) is None:
            return
        self.record.rejected += self.scheduler.lane_down(index)
        self._at(now + lane.restart_s, lambda later: self._start(index, later))

    def _act(self, now: float) -> None:
        for action in self.scheduler.decide(now):
            if isinstance(action, Dispatch):
                self._send(action, now)
            else:
                self.record.taken_out |= dict.fromkeys(action.items, (now, action.cause))
        if self.scheduler.ready and any(
            load.idle(now) for index in range(len(self.lanes)) if (load := self.scheduler.load(index))
        ):
            self.record.idle_while_waiting.append(now)
        again = self.scheduler.next_at(now)
        if again is not None and not now < self._wakes_at <= again:
            self._wakes_at = again
            self._at(again, lambda _: None)

    def _send(self, dispatch: Dispatch, now: float) -> None:
        lane = self.lanes[dispatch.lane]
        load = self.scheduler.load(dispatch.lane)
        assert load is not None
        self.record.sent.append(Sent(now, dispatch, was_idle=len(load.flights) == 1))
        begins = max(now, lane.busy_until)
        through = begins + lane.seconds(len(dispatch.items))
        lane.answered_at = ends = max(through, lane.answered_at) + lane.answer_s
        lane.busy_until = through if lane.queues else ends
        life = lane.lives
        if any(self.arrivals[item].kills for item in dispatch.items):
            self._at(ends, lambda later: self._die(dispatch.lane, life, later))
        else:
            self._at(ends, lambda later: self._end(dispatch, life, later))

    def _end(self, dispatch: Dispatch, life: int, now: float) -> None:
        lane, load = self.lanes[dispatch.lane], self.scheduler.load(dispatch.lane)
        if lane.lives != life or load is None:
            return
        size = len(dispatch.items)
        while size > max(1, lane.room):
            load.lower_cap(size)
            size //= 2
        for item in dispatch.items:
            self._alone += lane.room == 0
            if lane.room == 0 and self._alone % 2:
                assert self.scheduler.starved(dispatch.lane, item, now)
                continue
            assert self.scheduler.answered(dispatch.lane, item)
            assert item not in self.record.answered_at, "answered twice"
            self.record.answered_at[item] = now
        report = self.scheduler.batch_done(dispatch.lane, dispatch.batch, 0.0, now)
        assert report is not None
        self.record.reports.append(report)

    def in_time(self) -> int:
        """Requests answered before their deadline."""
        return sum(
            at <= self.arrivals[item].at + self.arrivals[item].patience_s
            for item, at in self.record.answered_at.items()
        )


def linear(a: float, b: float) -> Callable[[int], float]:
    """a + b*n seconds."""
    return lambda n: a + b * n
