"""The scheduler: requests with deadlines and shapes in, actions out. Pure: the clock comes with every call.

It owns the line of waiting requests and knows what each lane has in hand. The pool tells it what happened, then asks
`decide` what to do; a simulation with a clock of its own does just the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aiworker.inference.policy.actions import Action, BatchReport, Cause, Dispatch, TakeOut
from aiworker.inference.policy.choice import Choice, Offer, Release, Waiting, choose_batch
from aiworker.inference.policy.load import Flight, LaneLoad
from aiworker.inference.policy.shape import Shape
from aiworker.inference.policy.supervision import Verdict
from aiworker.inference.policy.timing import TimingBook
from aiworker.inference.policy.waiting import Line


class Scheduler:
    """`max_batch` bounds what one lane is given at a time, beside the cap that the lane's engine sets."""

    def __init__(self, max_batch: int, times: TimingBook | None = None) -> None:
        self.times = times or TimingBook()
        self._max_batch = max_batch
        self._line = Line()
        self._lanes: dict[int, LaneLoad] = {}
        self._batches = 0

    @property
    def waiting(self) -> int:
        """Requests that no lane has."""
        return len(self._line)

    @property
    def ready(self) -> int:
        """Those of them that may be sent this moment: the others rest."""
        return len(self._line.waiting)

    def load(self, lane: int) -> LaneLoad | None:
        """None for a lane without a child that serves."""
        return self._lanes.get(lane)

    def submit(self, item: int, deadline_at: float, shape: Shape | None) -> None:
        """A deadline that is no number has passed; in a line in order it would hide itself and others."""
        self._line.enter(Waiting(item, -math.inf if math.isnan(deadline_at) else deadline_at, shape))

    def withdraw(self, item: int) -> bool:
        """Nobody waits for it any more. True when no lane had it."""
        return self._line.forget(item)

    def lane_up(self, lane: int, engine: str, pass_size: int, now: float, *, queues: bool = False) -> None:
        """A child is loaded and warm. `queues` is as in `LaneLoad`."""
        cap = max(1, min(pass_size, self._max_batch))
        self._lanes[lane] = LaneLoad(lane, engine, cap, cap, now, queues)

    def lane_down(self, lane: int) -> tuple[int, ...]:
        """The lane's child is gone; what it had goes back into the line. Returns the pictures that kill children.

        The batch in work is under suspicion; the one behind it, if there is one, is not.
        """
        gone = self._lanes.pop(lane, None)
        killers: list[int] = []
        for position, flight in enumerate(gone.flights if gone else ()):
            for item in sorted(flight.unanswered):
                if position == 0:
                    verdict = self._line.suspect(item, was_alone=flight.release is Release.ALONE)
                    if verdict is Verdict.REJECT:
                        killers.append(item)
                        self._line.forget(item)
                self._line.put_back(item)
        return tuple(killers)

    def drain(self, lane: int) -> None:
        """The lane finishes what it has and gets nothing more."""
        if lane in self._lanes:
            self._lanes[lane].draining = True

    def reserve(self, lane: int) -> None:
        """The lane gets nothing more until `occupy` has used it."""
        if lane in self._lanes:
            self._lanes[lane].reserved = True

    def occupy(self, lane: int, item: int, shape: Shape | None, now: float) -> int | None:
        """A batch of the caller's own, which is in no line. Its number, or None while the lane is at work."""
        load = self._lanes.get(lane)
        if load is None or load.flights:
            return None
        load.reserved = False
        self._batches += 1
        expected_s = self.times.of(load.engine, shape).mean(1)
        flight = Flight(self._batches, (item,), shape, Release.CANARY, expected_s, 0.0, now, {item})
        load.flights.append(flight)
        return self._batches

    def answered(self, lane: int, item: int) -> bool:
        """True when the lane had it in hand, so that the answer is to be believed."""
        for flight in self._lanes[lane].flights:
            if item in flight.unanswered:
                flight.unanswered.discard(item)
                self._lanes[lane].fed()
                self._line.forget(item)
                return True
        return False

    def starved(self, lane: int, item: int, now: float) -> bool:
        """Not even alone did it find memory: it rests a while and goes back into the line. Where that happened to two
        in a row the lane rests too. As `answered`."""
        load = self._lanes[lane]
        for flight in load.flights:
            if item in flight.unanswered:
                flight.unanswered.discard(item)
                load.starved(now)
                self._line.rest(item, now)
                return True
        return False

    def failed(self, lane: int, item: int, *, blamed: bool) -> Verdict | None:
        """The child's engine failed on it: whose fault that is, is found out as after a death, where it may be the
        picture's. None for what the lane has not in hand; a picture that is not to be rejected is back in the line."""
        for flight in self._lanes[lane].flights:
            if item in flight.unanswered:
                flight.unanswered.discard(item)
                alone = flight.release is Release.ALONE
                verdict = self._line.suspect(item, was_alone=alone) if blamed else Verdict.RETRY
                if verdict is Verdict.REJECT:
                    self._line.forget(item)
                self._line.put_back(item)
                return verdict or Verdict.RETRY
        return None

    def batch_done(self, lane: int, batch: int, decode_s: float, now: float) -> BatchReport | None:
        """The lane has finished a batch. None when that is not so, and the child talks nonsense."""
        load = self._lanes[lane]
        if not load.flights or load.flights[0].batch != batch or (ended := load.finish(decode_s, now)) is None:
            return None
        flight, seconds = ended
        size = len(flight.items)
        self.times.observe(load.engine, flight.shape, size, seconds)
        return BatchReport(lane, size, flight.release, flight.expected_s, seconds, flight.slack_s)

    def decide(self, now: float) -> list[Action]:
        """Takes late requests out, gives every idle lane work, and busy ones their next batch in time to decode it."""
        actions: list[Action] = []
        self._line.wake(now)
        if late := self._line.late(now):
            actions.append(self._take_out(late, Cause.DEADLINE_PASSED))
        for lane in self._idle(now):
            self._give(lane, now, actions)
        for lane in self._lanes.values():
            if self._line.waiting and lane.prefetches_at(self.ready) <= now:
                self._give(lane, now, actions)
        return actions

    def next_at(self, now: float) -> float | None:
        """When to ask again although nothing happens; None when there is nothing to wait for."""
        if not self._line:
            return None
        moments = self._line.moments()
        for lane in self._lanes.values():
            moments += [lane.prefetches_at(self.ready), lane.paused_until]
        return min((moment for moment in moments if moment > now), default=None)

    def _idle(self, now: float) -> list[LaneLoad]:
        """Those that could start now, the fastest first."""
        idle = [lane for lane in self._lanes.values() if lane.idle(now)]
        return sorted(idle, key=lambda lane: self.times.of(lane.engine, None).mean(1)) if len(idle) > 1 else idle

    def _give(self, lane: LaneLoad, now: float, actions: list[Action]) -> None:
        if not self._line.waiting:
            return
        serving = [each for each in self._lanes.values() if each.open]

        def earliest(shape: Shape | None) -> float:
            return min(each.free_at(now) + self.times.of(each.engine, shape).bound(1) for each in serving)

        offer = Offer(
            starts_at=lane.free_at(now),
            cap=lane.cap,
            predict=lambda shape, size: self.times.of(lane.engine, shape).bound(size),
            earliest=earliest,
            idle_lanes=sum(each.idle(now) for each in serving),
            lanes=len(serving),
            at_work=bool(lane.flights),
        )
        choice = choose_batch(self._line.waiting, offer)
        if choice.given_up:
            actions.append(self._take_out(choice.given_up, Cause.CANNOT_MAKE_IT))
        if choice.batch:
            actions.append(self._dispatch(lane, choice, offer.starts_at, now))

    def _dispatch(self, lane: LaneLoad, choice: Choice, starts_at: float, now: float) -> Dispatch:
        self._batches += 1
        leader = self._line.known(choice.batch[0])
        shape = leader.shape if leader else None
        slack_s = (leader.deadline_at if leader else now) - starts_at - choice.predicted_s
        expected_s = self.times.of(lane.engine, shape).mean(len(choice.batch))
        lane.flights.append(
            Flight(self._batches, choice.batch, shape, choice.release, expected_s, slack_s, now, set(choice.batch))
        )
        for item in choice.batch:
            self._line.take(item)
        return Dispatch(lane.index, self._batches, choice.batch)

    def _take_out(self, items: Sequence[int], cause: Cause) -> TakeOut:
        for item in items:
            self._line.forget(item)
        return TakeOut(tuple(items), cause)
