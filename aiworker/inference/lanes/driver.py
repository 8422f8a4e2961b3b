"""Drives the scheduler: tells it what callers and lanes do, and does what it decides. Nothing waits for a child."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import (
    DeadlineExceeded,
    ImageKillsChild,
    InferenceOutOfMemory,
    InferenceUnavailable,
    MediaTooLarge,
)
from aiworker.inference.lanes.lane import Lane
from aiworker.inference.lanes.reports import Reports
from aiworker.inference.lanes.requests import Requests
from aiworker.inference.messages import (
    MAX_BATCH,
    MAX_IMAGE_BYTES,
    BatchDone,
    DetectBatch,
    FromChild,
    ItemDetected,
    ItemFailed,
    OutOfMemory,
    Pong,
    Progress,
)
from aiworker.inference.policy.actions import Cause, Dispatch, TakeOut
from aiworker.inference.policy.canary import Canary
from aiworker.inference.policy.scheduler import Scheduler
from aiworker.inference.policy.shape import letterboxed
from aiworker.inference.policy.supervision import Verdict

_LONGEST_TIMER_S = 1e6
_CANARY = 0
"""The item number that no request has."""
_MOST_FAILURES = 2
"""Of the engine, in a row, before its child is replaced."""
_CHANGES = BatchDone | OutOfMemory | ItemFailed
"""After these, something else may be decided than before."""


class Driver:
    """`image_size` is what the model takes, for grouping by shape; without an image in `canary` there are no eye tests.

    `on_proved` is called when a child is ready and, where there are eye tests, has passed one; `on_starved` when not
    even one picture found memory.
    """

    def __init__(self, max_batch: int, image_size: int, canary: Canary, reports: Reports) -> None:
        self.scheduler = Scheduler(min(max_batch, MAX_BATCH))
        self.requests = Requests()
        self._image_size = image_size
        self._canary = canary
        self._canary_shape = letterboxed(canary.image, image_size)
        self._reports = reports
        self._lanes: dict[int, Lane] = {}
        self._seen_at: dict[int, float] = {}
        self._proved: set[int] = set()
        self.on_proved: Callable[[Lane], None] = lambda lane: None
        self.on_starved: Callable[[], None] = lambda: None
        self._failures: dict[str, int] = {}
        self._kicked = False
        self._wake: asyncio.TimerHandle | None = None

    async def ask(self, image: bytes, deadline: Deadline) -> Detections:
        """Waits in line and for the answer. Raises what `InferencePool.detect` raises."""
        if len(image) > MAX_IMAGE_BYTES:
            raise MediaTooLarge("picture over the limit of a frame", bytes=len(image), limit_bytes=MAX_IMAGE_BYTES)
        number, answer = self.requests.open(image)
        self.scheduler.submit(number, deadline.at, letterboxed(image, self._image_size))
        limit_s = min(deadline.remaining(), _LONGEST_TIMER_S)
        timer = asyncio.get_running_loop().call_later(limit_s, self._expire, number)
        self.kick()
        try:
            return await answer
        finally:
            timer.cancel()
            self.requests.close(number)
            self.scheduler.withdraw(number)

    def close(self) -> None:
        if self._wake is not None:
            self._wake.cancel()

    def lane_ready(self, lane: Lane) -> None:
        assert lane.ready is not None  # noqa: S101 - a lane says so when it is
        self._lanes[lane.index] = lane
        self._seen_at[lane.index] = time.monotonic()
        ready, now = lane.ready, time.monotonic()
        self.scheduler.lane_up(lane.index, ready.engine, ready.pass_size, now, queues=ready.queues)
        if self._canary.image:
            self.test_eyes(lane)
        else:
            self._prove(lane)
        self._step()

    def lane_said(self, lane: Lane, messages: list[FromChild]) -> None:
        """Nonsense costs the child its life."""
        for message in messages:
            if not self._take(lane, message, time.monotonic()):
                lane.condemn(f"said {message.kind} out of turn")
            if lane.index not in self._lanes:
                return
        load = self.scheduler.load(lane.index)
        lane.heard(owes=bool(load and load.flights))
        if any(isinstance(message, _CHANGES) for message in messages):
            self._step()

    def lane_lost(self, lane: Lane) -> None:
        """What its child had goes to another lane now."""
        self._lanes.pop(lane.index, None)
        self._proved.discard(lane.index)
        self._failures.pop(lane.life, None)
        killers = self.scheduler.lane_down(lane.index)
        self._reports.taken_out("kills_child", len(killers))
        self.requests.reject(killers, ImageKillsChild, "every child that took it died, the last one with nothing else")
        self._step()

    def child_ended(self, lane: Lane) -> None:
        """By itself or because it had to; also before it was ready."""
        self._reports.child_ended(lane.last_error or "unknown")

    def drain(self, lane: Lane) -> bool:
        """The lane retires as soon as it has finished what it has in hand. False when it does not serve now."""
        if self.scheduler.load(lane.index) is None:
            return False
        self.scheduler.drain(lane.index)
        self._step()
        return True

    def test_eyes(self, lane: Lane) -> None:
        """Runs the canary on it as soon as it has nothing else in hand."""
        self.scheduler.reserve(lane.index)
        self._send_canary(lane)

    def seen_s(self, lane: Lane, now: float) -> float:
        """How long ago the child passed an eye test; 0 without one."""
        return now - self._seen_at[lane.index] if self._canary.image else 0.0

    def serves(self, lane: Lane) -> bool:
        """Its child is ready and has passed an eye test, where there are any."""
        return lane.index in self._proved

    def kick(self) -> None:
        """Decides soon: what arrives together is decided together."""
        if not self._kicked:
            self._kicked = True
            asyncio.get_running_loop().call_soon(self._step)

    def _take(self, lane: Lane, message: FromChild, now: float) -> bool:
        """False for what no child in its senses would say now."""
        match message:
            case ItemDetected(item=item):
                return self.scheduler.answered(lane.index, item) and self._detected(lane, message, now)
            case ItemFailed(code=InferenceOutOfMemory.code):
                self._reports.out_of_memory(alone=True)
                self.on_starved()
                return self.scheduler.starved(lane.index, message.item, now)
            case ItemFailed(item=item) if item == _CANARY:
                lane.condemn("blind: it cannot take the canary picture")
                return True
            case ItemFailed(code=InferenceUnavailable.code):
                return self._engine_failed(lane, message)
            case ItemFailed(item=item):
                return self.scheduler.answered(lane.index, item) and self._failed(lane, message)
            case BatchDone(batch=batch):
                report = self.scheduler.batch_done(lane.index, batch, message.decode_s, now)
                if report is not None:
                    self._reports.batch(report)
                return report is not None
            case OutOfMemory(size=size):
                self._reports.out_of_memory(alone=False)
                if (load := self.scheduler.load(lane.index)) is not None:
                    load.lower_cap(size)
                return True
            case Progress() | Pong():
                return True
            case _:
                return False

    def _detected(self, lane: Lane, result: ItemDetected, now: float) -> bool:
        if result.item == _CANARY and not self._canary.sees(lane.edition, lane.life, result.boxes):
            lane.condemn("blind: it does not find what is on the canary picture")
            return True
        lane.answered()
        self._failures.pop(lane.life, None)
        if result.item == _CANARY:
            self._seen_at[lane.index] = now
            self._prove(lane)
        elif lane.ready is not None:
            self.requests.detected(result, lane.ready, lane.model)
        return True

    def _prove(self, lane: Lane) -> None:
        self._proved.add(lane.index)
        self.on_proved(lane)

    def _engine_failed(self, lane: Lane, failure: ItemFailed) -> bool:
        """Others may be able to take the picture. A child that fails on one after the other is no use any more: after a
        want of memory torch never takes some shapes again, and failing is fast, so that it would get most pictures."""
        before = self._failures.get(lane.life, 0)
        # A child that failed just now may be broken by what it had then.
        verdict = self.scheduler.failed(lane.index, failure.item, blamed=not before)
        if verdict is None:
            return False
        if verdict is Verdict.REJECT:
            self.requests.failed(failure)
        self._failures[lane.life] = before + 1
        if before + 1 >= _MOST_FAILURES:
            lane.condemn(f"its engine fails: {failure.note}")
        return True

    def _failed(self, lane: Lane, failure: ItemFailed) -> bool:
        lane.answered()
        self.requests.failed(failure)
        return True

    def _step(self) -> None:
        self._kicked = False
        now = time.monotonic()
        for lane in list(self._lanes.values()):
            load = self.scheduler.load(lane.index)
            if load is not None and not load.flights and load.draining:
                lane.retire()
            elif load is not None and not load.flights and load.reserved:
                self._send_canary(lane)
        for action in self.scheduler.decide(now):
            match action:
                case Dispatch(lane=index, batch=batch, items=items):
                    images = tuple(self.requests.image(item) for item in items)
                    self._lanes[index].send(DetectBatch(batch, items, images))
                case TakeOut(items=items, cause=cause):
                    self._taken_out(items, cause)
        self._wake_at(self.scheduler.next_at(now), now)

    def _send_canary(self, lane: Lane) -> None:
        batch = self.scheduler.occupy(lane.index, _CANARY, self._canary_shape, time.monotonic())
        if batch is not None:
            lane.send(DetectBatch(batch, (_CANARY,), (self._canary.image,)))

    def _taken_out(self, items: tuple[int, ...], cause: Cause) -> None:
        self._reports.taken_out(cause.value, len(items))
        note = "no child was free in time" if cause is Cause.DEADLINE_PASSED else "no child can answer it in time"
        self.requests.reject(items, DeadlineExceeded, note)

    def _expire(self, number: int) -> None:
        if number not in self.requests:
            return
        waited = self.scheduler.withdraw(number)
        self._reports.taken_out(Cause.DEADLINE_PASSED.value if waited else "late_in_child")
        self.requests.reject([number], DeadlineExceeded, "no detection in time")

    def _wake_at(self, moment: float | None, now: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay = None if moment is None else min(max(0.0, moment - now), _LONGEST_TIMER_S)
        self._wake = None if delay is None else asyncio.get_running_loop().call_later(delay, self._step)
