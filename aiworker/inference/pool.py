"""The pool of inference children: one line of requests, served by lanes. It never loses a picture.

When a child dies, what it had not answered goes back into the line at once, for the next lane that is idle; see
`supervision.judge` for the picture that kills.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from pathlib import Path

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import InferenceUnavailable
from aiworker.inference.lane import Lane, LanePolicy
from aiworker.inference.line import RequestLine
from aiworker.inference.messages import MAX_BATCH, ChildSpec
from aiworker.inference.supervision import LaneState
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)
_SERVING = (LaneState.READY, LaneState.BUSY)
_STOPPING = "the pool is stopping"
_PATIENCE = LanePolicy()

OnBatch = Callable[[int, float], None]


def threads_per_child(processes: int, cores: int | None = None) -> int:
    """The cores that this process may use, shared out evenly; at least one."""
    return max(1, (cores or len(os.sched_getaffinity(0))) // processes)


class InferencePool:
    """Implements the `Detector` port. Belongs to one event loop.

    Args:
        spec: what each child is told.
        processes: how many children.
        max_batch: pictures that one child is given at a time, 1..64.
        policy: patience with children, and their restarts.
        on_batch: called with (pictures, seconds from sent to answered) after each batch.
    """

    def __init__(
        self,
        spec: ChildSpec,
        processes: int = 1,
        max_batch: int = 8,
        *,
        policy: LanePolicy = _PATIENCE,
        on_batch: OnBatch | None = None,
    ) -> None:
        self._line = RequestLine(Path(spec.weights).stem, min(max_batch, MAX_BATCH), self._wake_idle)
        self._lanes = [
            Lane(index, spec, policy, self._line, self._lanes_in(LaneState.READY), self._lane_changed, on_batch)
            for index in range(processes)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._settled = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """Starts the children and returns; `wait_ready` says when one can serve."""
        for lane in self._lanes:
            task = asyncio.create_task(lane.run(), name=f"lane-{lane.index}")
            task.add_done_callback(functools.partial(self._lane_ended, lane))
            self._tasks.append(task)

    async def stop(self) -> None:
        """Stops the children, kills those that do not listen, and refuses what was still waiting."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._line.refuse_all(_STOPPING)
        self._settled.set()

    @property
    def ready(self) -> bool:
        """At least one child has the model loaded and warm."""
        return any(lane.state in _SERVING for lane in self._lanes)

    async def wait_ready(self) -> None:
        """Raises InferenceUnavailable with the cause when every lane has given up."""
        while not self.ready:
            if self._stopping or self._all_failed():
                raise self._unavailable()
            await self._settled.wait()

    async def detect(self, image: bytes, deadline: Deadline) -> Detections:
        """The boxes of one encoded picture.

        Raises ImageUnreadable, MediaTooLarge, ImageKillsChild, InferenceUnavailable, DeadlineExceeded.
        """
        if self._stopping or self._all_failed():
            raise self._unavailable()
        return await self._line.ask(image, deadline)

    @property
    def waiting(self) -> int:
        """Requests that no child has yet."""
        return len(self._line)

    def snapshot(self) -> list[dict[str, str | int | float | None]]:
        """One entry for each lane, see Lane.snapshot."""
        return [lane.snapshot() for lane in self._lanes]

    def _lanes_in(self, state: LaneState) -> Callable[[], int]:
        return lambda: sum(lane.state is state for lane in self._lanes)

    def _wake_idle(self) -> None:
        for lane in self._lanes:
            if lane.state is LaneState.READY:
                lane.wake.set()

    def _lane_changed(self) -> None:
        if self.ready:
            self._settled.set()
        elif self._all_failed():
            self._settled.set()
            self._line.refuse_all(self._unavailable().note)
        else:
            self._settled.clear()

    def _all_failed(self) -> bool:
        return all(lane.state is LaneState.FAILED for lane in self._lanes)

    def _unavailable(self) -> InferenceUnavailable:
        causes = {lane.last_error for lane in self._lanes if lane.last_error and not self._stopping}
        return InferenceUnavailable("; ".join(sorted(causes)) or _STOPPING)

    def _lane_ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        """A lane only ends by being cancelled; anything else is a bug, and must not look like an idle lane."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("lane ended by a bug", lane=lane.index, exc_info=error)
            lane.fail(f"bug: {type(error).__name__}")
