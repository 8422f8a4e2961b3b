"""The lanes of a pool: started, replaced one by one without losing a request, and stopped."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiworker.domain.errors import InferenceUnavailable
from aiworker.inference.lanes.driver import Driver
from aiworker.inference.lanes.lane import Lane, LanePolicy
from aiworker.inference.messages import ChildSpec, FromChild, Ready
from aiworker.inference.policy.supervision import LaneState
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)


class Fleet:
    """Hears what lanes tell and passes it on to the driver. `on_change` is called after every change of a state.

    A spare takes over when it is ready and has passed its eye test.
    """

    def __init__(self, driver: Driver, policy: LanePolicy, on_change: Callable[[], None]) -> None:
        self._driver = driver
        self._policy = policy
        self._on_change = on_change
        driver.on_proved = self._proved
        self._numbers = itertools.count()
        self._lanes: dict[int, Lane] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._leaving: set[int] = set()
        self._spares: dict[int, tuple[Lane, asyncio.Future[None]]] = {}

    @property
    def lanes(self) -> Sequence[Lane]:
        """Those that serve or should; without the spares that are still being warmed."""
        return [lane for index, lane in self._lanes.items() if index not in self._spares]

    @property
    def staying(self) -> Sequence[Lane]:
        """Of `lanes` those that no spare has taken over from."""
        return [lane for lane in self.lanes if lane.index not in self._leaving]

    @property
    def everyone(self) -> Sequence[Lane]:
        """The spares too."""
        return list(self._lanes.values())

    @property
    def replacing(self) -> bool:
        """A spare is being warmed, or will be: somebody else has to wait."""
        return bool(self._spares) or self._turn.locked()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For who replaces several lanes in a row: nobody replaces one meanwhile."""
        async with self._turn:
            while self._spares:
                await asyncio.wait([done for _, done in self._spares.values()])
            yield

    def add(self, spec: ChildSpec) -> Lane:
        """Starts one more child."""
        lane = Lane(next(self._numbers), spec, self._policy, self)
        self._lanes[lane.index] = lane
        task = asyncio.create_task(lane.run(), name=f"lane-{lane.index}")
        task.add_done_callback(functools.partial(self._ended, lane))
        self._tasks[lane.index] = task
        return lane

    def replace(self, old: Lane, spec: ChildSpec) -> asyncio.Future[None]:
        """Warms a spare with `spec`; once it is ready, `old` finishes what it has in hand and ends.

        The future raises InferenceUnavailable with the cause when the spare cannot be started; `old` then stays.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        spare = self.add(spec)
        self._spares[spare.index] = (old, done)
        return done

    async def stop(self) -> None:
        """Leaves no process behind."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def lane_ready(self, lane: Lane, ready: Ready) -> None:
        self._driver.lane_ready(lane)
        self._on_change()

    def _proved(self, lane: Lane) -> None:
        """Of those who can see, a spare takes over."""
        if (waiting := self._spares.pop(lane.index, None)) is not None:
            old, done = waiting
            self._leaving.add(old.index)
            if not self._driver.drain(old):
                self._drop(old)
            if not done.done():
                done.set_result(None)
        self._on_change()

    def lane_said(self, lane: Lane, messages: list[FromChild]) -> None:
        self._driver.lane_said(lane, messages)

    def lane_doomed(self, lane: Lane) -> None:
        self._driver.lane_lost(lane)

    def lane_lost(self, lane: Lane) -> None:
        self._driver.child_ended(lane)
        self._driver.lane_lost(lane)
        if lane.index in self._leaving:
            self._drop(lane)
        if lane.state is LaneState.FAILED and (waiting := self._spares.pop(lane.index, None)) is not None:
            if not waiting[1].done():
                waiting[1].set_exception(InferenceUnavailable(lane.last_error or "the spare did not start"))
            self._drop(lane)
        self._on_change()

    def _drop(self, lane: Lane) -> None:
        lane.state = LaneState.STOPPED
        self._tasks[lane.index].cancel()

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        """A lane ends by being retired or cancelled; anything else is a bug, and must not look like an idle lane."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("lane ended by a bug", lane=lane.index, exc_info=error)
            lane.last_error, lane.state = f"bug: {type(error).__name__}", LaneState.FAILED
            self._driver.child_ended(lane)
        else:
            del self._lanes[lane.index]
            del self._tasks[lane.index]
            self._leaving.discard(lane.index)
        self._driver.lane_lost(lane)
        self._on_change()
