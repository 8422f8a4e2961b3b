"""One lane: an inference child as its parent sees it, across all of its lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiworker.inference.line import Request, RequestLine
from aiworker.inference.messages import (
    BatchDone,
    ChildSpec,
    DetectBatch,
    ItemDetected,
    ItemFailed,
    OutOfMemory,
    Progress,
    Ready,
    StartFailed,
)
from aiworker.inference.process import ChildGone, ChildProcess
from aiworker.inference.supervision import LaneState, RestartBackoff, RestartPolicy
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """`stall_s` is the longest that a busy child may say nothing, `start_s` the longest that loading may take."""

    stall_s: float = 30.0
    start_s: float = 120.0
    stop_grace_s: float = 2.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class Lane:
    """`run()` for as long as the lane should live; `wake` is set by the pool when there may be work.

    `idle_lanes` says how many lanes could take work now, `on_change` is called after every change of state.
    """

    def __init__(
        self,
        index: int,
        spec: ChildSpec,
        policy: LanePolicy,
        line: RequestLine,
        idle_lanes: Callable[[], int],
        on_change: Callable[[], None],
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.index = index
        self.state = LaneState.STARTING
        self.pid: int | None = None
        self.last_error: str | None = None
        self.wake = asyncio.Event()
        self._spec = spec
        self._policy = policy
        self._line = line
        self._idle_lanes = idle_lanes
        self._on_change = on_change
        self._on_batch = on_batch
        self._backoff = RestartBackoff(policy.restart)
        self._lives = 0
        self._batches = 0
        self._images = 0
        self._rss_mb = 0.0
        self._engine: str | None = None
        self._progress_at = time.monotonic()
        self._ready_at: float | None = None

    async def run(self) -> None:
        """One life after the other, until cancelled. Leaves no process behind."""
        while True:
            try:
                await self._live()
            except (ChildGone, OSError) as error:
                # OSError: the machine would not give us a process or a socket; it may later.
                delay = self._bury(str(error))
            await asyncio.sleep(delay)

    def snapshot(self) -> dict[str, str | int | float | None]:
        """For health endpoints: sizes in MiB, times in seconds."""
        return {
            "lane": self.index,
            "pid": self.pid,
            "state": self.state.value,
            "engine": self._engine,
            "restarts": max(0, self._lives - 1),
            "batches": self._batches,
            "images": self._images,
            "rss_mb": round(self._rss_mb, 1),
            "silent_s": round(time.monotonic() - self._progress_at, 1) if self.state is LaneState.BUSY else 0.0,
            "last_error": self.last_error,
        }

    async def _live(self) -> None:
        self._lives += 1
        self._ready_at = None
        if not self._backoff.gave_up:
            self._change(LaneState.STARTING)
        child = await ChildProcess.spawn(self._spec)
        self.pid = child.pid
        try:
            ready = await self._until_ready(child)
            while True:
                await self._until_work(child)
                batch = self._line.take(self._idle_lanes())
                if batch:
                    await self._run_batch(child, batch, ready)
        except asyncio.CancelledError:
            await child.stop(self._policy.stop_grace_s)
            self.pid = None
            self._change(LaneState.STOPPED)
            raise
        except BaseException:
            await child.kill()
            raise

    async def _until_ready(self, child: ChildProcess) -> Ready:
        await child.send(self._spec, self._policy.start_s)
        message = await child.receive(self._policy.start_s)
        if isinstance(message, StartFailed):
            raise ChildGone(message.reason)
        if not isinstance(message, Ready):
            raise ChildGone(f"said {message.kind} before it was ready")
        self._engine, self._rss_mb, self._ready_at = message.engine, message.rss_mb, time.monotonic()
        _log.info("inference child ready", lane=self.index, pid=child.pid, engine=message.engine, load_s=message.load_s)
        self._change(LaneState.READY)
        self.wake.set()
        return message

    async def _until_work(self, child: ChildProcess) -> None:
        """Returns when `wake` was set; raises ChildGone when the child ends before."""
        work = asyncio.ensure_future(self.wake.wait())
        try:
            await asyncio.wait((work, child.exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if child.exited.done():
            await child.receive(self._policy.stall_s)
            raise ChildGone("spoke without being asked")
        self.wake.clear()

    async def _run_batch(self, child: ChildProcess, batch: Sequence[Request], ready: Ready) -> None:
        begun = time.monotonic()
        self._progress_at = begun
        self._change(LaneState.BUSY)
        pending = {request.id: request for request in batch}
        try:
            images = tuple(request.image for request in batch)
            await child.send(DetectBatch(0, tuple(pending), images), self._policy.stall_s)
            done = await self._collect(child, pending, ready)
        finally:
            self._line.give_back(tuple(pending.values()), was_alone=len(batch) == 1)
        self._rss_mb = done.rss_mb
        self._batches += 1
        self._images += len(batch)
        if self._on_batch is not None:
            self._on_batch(len(batch), time.monotonic() - begun)
        self._change(LaneState.READY)
        self.wake.set()

    async def _collect(self, child: ChildProcess, pending: dict[int, Request], ready: Ready) -> BatchDone:
        """Hands each answer on as it comes, and takes its request out of `pending`."""
        while True:
            message = await child.receive(self._policy.stall_s)
            self._progress_at = time.monotonic()
            match message:
                case ItemDetected(item=item) if item in pending:
                    self._backoff.answered()
                    self._line.detected(pending.pop(item), message, ready)
                case ItemFailed(item=item) if item in pending:
                    self._backoff.answered()
                    self._line.failed(pending.pop(item), message)
                case Progress() | OutOfMemory():
                    pass
                case BatchDone() if not pending:
                    return message
                case _:
                    raise ChildGone(f"said {message.kind} out of turn")

    def _bury(self, reason: str) -> float:
        """Notes the death; how long to wait before the next life, in seconds."""
        served = time.monotonic() - self._ready_at if self._ready_at is not None else 0.0
        delay = self._backoff.died(served)
        _log.warning("inference child gone", lane=self.index, pid=self.pid, reason=reason, restart_in_s=delay)
        self.pid = None
        self.last_error = reason
        self._change(LaneState.FAILED if self._backoff.gave_up else LaneState.DEAD)
        return delay

    def fail(self, reason: str) -> None:
        """This lane will not run again."""
        self.last_error = reason
        self._change(LaneState.FAILED)

    def _change(self, state: LaneState) -> None:
        self.state = state
        self._on_change()
