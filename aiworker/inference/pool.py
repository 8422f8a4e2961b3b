"""The pool of inference children: one line of requests, served by lanes. It never loses a picture.

`policy` decides; of `lanes`, `driver` does it, `fleet` keeps them and `caretaker` looks after them. When a child dies,
what it had not answered goes to another lane at once; see `policy.supervision.judge` for the picture that kills.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import DeadlineExceeded, InferenceUnavailable
from aiworker.inference.interface import Box
from aiworker.inference.lanes.caretaker import Caretaker
from aiworker.inference.lanes.driver import Driver
from aiworker.inference.lanes.fleet import Fleet
from aiworker.inference.lanes.lane import Lane, LanePolicy
from aiworker.inference.lanes.reports import Reports
from aiworker.inference.messages import ChildSpec
from aiworker.inference.policy.canary import Canary
from aiworker.inference.policy.care import CareRules
from aiworker.inference.policy.supervision import LaneState
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger(__name__)
_STOPPING = "the pool is stopping"
_CARE_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolRules:
    """At most `max_batch` pictures (1..64) are given to one child at a time.

    `canary` is an encoded picture on which the weights find something; empty, children have no eye test. `known` is
    what is on it, by `edition_of` the weights, where somebody knows. `times` is the file that keeps what was learned
    about service times. `relief` is called, at most every `relief_s`, when not even one picture finds memory: somebody
    else may be able to give some back.
    """

    max_batch: int = 8
    lane: LanePolicy = field(default_factory=LanePolicy)
    care: CareRules = field(default_factory=CareRules)
    canary: bytes = field(default=b"", repr=False)
    known: Mapping[str, Sequence[Box]] = field(default_factory=dict)
    times: Path | None = None
    relief: Callable[[], Coroutine[Any, Any, None]] | None = None
    relief_s: float = 30.0


class InferencePool:
    """Implements the `Detector` port. Belongs to one event loop. One child for each of `specs`."""

    def __init__(
        self, specs: Sequence[ChildSpec], rules: PoolRules | None = None, metrics: Metrics | None = None
    ) -> None:
        rules = rules or PoolRules()
        reports = Reports(metrics or Metrics())
        self._specs = specs
        self._driver = Driver(rules.max_batch, specs[0].image_size, Canary(rules.canary, rules.known), reports)
        self._driver.on_starved = self._starved
        self._rules = rules
        self._relief: asyncio.Task[None] | None = None
        self._relieved_at = -math.inf
        self._fleet = Fleet(self._driver, rules.lane, self._changed)
        self._caretaker = Caretaker(self._driver, self._fleet, rules.care, reports, rules.times)
        self._care_task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """Starts the children and returns; `wait_ready` says when one can serve."""
        self._care()
        for spec in self._specs:
            self._fleet.add(spec)

    async def stop(self) -> None:
        """Stops the children, kills those that do not listen, and refuses what was still waiting."""
        self._stopping = True
        if self._care_task is not None:
            self._care_task.cancel()
            await asyncio.wait([self._care_task])
        if self._relief is not None:
            self._relief.cancel()
        self._caretaker.close()
        await self._fleet.stop()
        self._driver.close()
        self._driver.requests.reject_all(InferenceUnavailable, _STOPPING)
        self._settled.set()

    def _starved(self) -> None:
        now = time.monotonic()
        if self._rules.relief is not None and now - self._relieved_at >= self._rules.relief_s:
            self._relieved_at = now
            self._relief = asyncio.create_task(self._rules.relief(), name="relief")

    def _care(self) -> None:
        self._care_task = asyncio.create_task(self._caretaker.run(), name="caretaker")
        self._care_task.add_done_callback(self._care_ended)

    def _care_ended(self, task: asyncio.Task[None]) -> None:
        """It ends by being cancelled; after a bug it starts again, for nobody else finds a stopped child."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("caretaker ended by a bug", exc_info=error)
            asyncio.get_running_loop().call_later(_CARE_AGAIN_S, lambda: None if self._stopping else self._care())

    @property
    def ready(self) -> bool:
        """At least one child has the model loaded and warm, and sees."""
        return any(self._driver.serves(lane) for lane in self._fleet.lanes)

    async def wait_ready(self) -> None:
        """Raises InferenceUnavailable with the cause when every lane has given up."""
        while not self.ready:
            if self._stopping or self._all_failed():
                raise InferenceUnavailable(self._cause())
            await self._settled.wait()

    async def detect(self, image: bytes, deadline: Deadline) -> Detections:
        """The boxes of one encoded picture.

        Raises ImageUnreadable, MediaTooLarge, ImageKillsChild, InferenceUnavailable, DeadlineExceeded.
        """
        self._refuse_where_nobody_serves()
        if self._caretaker.paused:
            try:
                async with asyncio.timeout(deadline.remaining()):
                    await self._caretaker.admitted()
            except TimeoutError:
                raise DeadlineExceeded("memory was short for too long") from None
            self._refuse_where_nobody_serves()
        return await self._driver.ask(image, deadline)

    async def reload(self, weights: str) -> None:
        """Takes up another file of weights, child by child, without losing a request.

        Raises InferenceUnavailable with the cause when children do not start with it; the old ones then serve on.
        """
        async with self._fleet.turn():
            for lane in self._fleet.staying:
                await self._fleet.replace(lane, replace(lane.spec, weights=weights))

    @property
    def waiting(self) -> int:
        """Requests that no child has yet."""
        return self._driver.scheduler.waiting

    @property
    def state(self) -> str:
        """For health: ready, short of memory, starting, or crash loop, whose cause is in `snapshot`."""
        if self.ready:
            return "ready" if self.admitting else "short of memory"
        return "crash loop" if self._all_failed() else "starting"

    @property
    def memory_mb(self) -> float:
        """What all children use, in MiB."""
        return sum(lane.rss_mb for lane in self._fleet.lanes)

    @property
    def admitting(self) -> bool:
        """False while new requests wait outside, because memory is short."""
        return not self._caretaker.paused

    def snapshot(self) -> list[dict[str, str | int | float | None]]:
        """One entry for each lane, for health endpoints: sizes in MiB, times in seconds."""
        return [self._described(lane) for lane in self._fleet.lanes]

    def _described(self, lane: Lane) -> dict[str, str | int | float | None]:
        load = self._driver.scheduler.load(lane.index)
        busy = load is not None and bool(load.flights)
        return {
            "lane": lane.index,
            "pid": lane.pid,
            "state": (LaneState.BUSY if busy else lane.state).value,
            "model": lane.model,
            "engine": lane.ready.engine if lane.ready else None,
            "restarts": max(0, lane.lives - 1),
            "batches_in_hand": len(load.flights) if load else 0,
            "cap": load.cap if load else None,
            "rss_mb": round(lane.rss_mb, 1),
            "silent_s": round(lane.silent_s(time.monotonic()), 1),
            "last_error": lane.last_error,
        }

    def _changed(self) -> None:
        if self.ready:
            self._settled.set()
        elif self._all_failed():
            self._settled.set()
            self._driver.requests.reject_all(InferenceUnavailable, self._cause())
        else:
            self._settled.clear()

    def _refuse_where_nobody_serves(self) -> None:
        if self._stopping or self._all_failed():
            raise InferenceUnavailable(self._cause())

    def _all_failed(self) -> bool:
        return all(lane.state is LaneState.FAILED for lane in self._fleet.lanes)

    def _cause(self) -> str:
        causes = {lane.last_error for lane in self._fleet.lanes if lane.last_error and not self._stopping}
        return "; ".join(sorted(causes)) or _STOPPING
