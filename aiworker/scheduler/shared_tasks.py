"""Works jobs off in as few tasks as they need: one that waits for something has a task to itself meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection

from aiworker.domain.outcome import Outcome
from aiworker.scheduler.running import RunningJob


class SharedTasks:
    """A task takes one job after another until none is left or it is cancelled. Before each it lets a successor be made
    for the rest, which begins as soon as this one waits. A task for each job costs a job that never waits as much as
    all else here.

    Args:
        work: begins one job and answers what to wait for: how it ended.
        worked: is told that, or None where the work was cancelled.
    """

    def __init__(
        self, work: Callable[[RunningJob], Awaitable[Outcome]], worked: Callable[[RunningJob, Outcome | None], None]
    ) -> None:
        self._work = work
        self._worked = worked
        self._waiting: deque[RunningJob] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._successor: asyncio.Task[None] | None = None

    def begin(self, jobs: Collection[RunningJob]) -> None:
        """Their work begins at the loop's next turn, in their order."""
        self._waiting.extend(jobs)
        if self._waiting and self._successor is None:
            self._make_successor()

    def _make_successor(self) -> None:
        self._successor = task = asyncio.get_running_loop().create_task(self._work_off())
        self._tasks.add(task)
        task.add_done_callback(self._over)

    async def _work_off(self) -> None:
        task = asyncio.current_task()
        self._successor = None
        # A cancel cannot be taken back in full: the next job is left to the successor.
        while self._waiting and task is not None and not task.cancelling():
            running = self._waiting.popleft()
            if self._waiting and self._successor is None:
                self._make_successor()
            running.task = task
            try:
                outcome = await self._work(running) if running.stop_reason is None else None
            except asyncio.CancelledError:
                outcome = None
            running.task = None
            self._worked(running, outcome)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._successor:
            # Somebody cancelled it before it had begun.
            self._successor = None
            if self._waiting:
                self._make_successor()
