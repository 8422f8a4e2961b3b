"""One lane: a place for one inference child, across all the lives of that child."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aiworker.inference.lanes.process import ChildProcess
from aiworker.inference.lanes.watch import Patience, Watch, look_at
from aiworker.inference.messages import ChildSpec, FromChild, FromParent, Message, Ready, StartFailed
from aiworker.inference.policy.supervision import LaneState, RestartBackoff, RestartPolicy
from aiworker.inference.weights import edition_of
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LanePolicy:
    """`start_s` is the longest that loading may take, `stop_grace_s` that ending may."""

    start_s: float = 120.0
    stop_grace_s: float = 2.0
    patience: Patience = field(default_factory=Patience)
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class LaneEvents(Protocol):
    """Whom a lane tells. Each call returns at once."""

    def lane_ready(self, lane: Lane, ready: Ready) -> None: ...

    def lane_said(self, lane: Lane, messages: list[FromChild]) -> None: ...

    def lane_doomed(self, lane: Lane) -> None:
        """The child will be killed in a moment, and what it has in hand is better done elsewhere from now on."""
        ...

    def lane_lost(self, lane: Lane) -> None:
        """The child is gone; `state` says whether the lane has given up for now, `last_error` why."""
        ...


class Lane:
    """`run()` for as long as the lane should live. `edition` names the weights as they were when this life began."""

    def __init__(self, index: int, spec: ChildSpec, policy: LanePolicy, events: LaneEvents) -> None:
        self.index = index
        self.spec = spec
        self.model = Path(spec.weights).stem
        self.edition = spec.weights
        self.state = LaneState.STARTING
        self.last_error: str | None = None
        self.ready: Ready | None = None
        self.lives = 0
        self.rss_mb = self.fresh_mb = 0.0
        self._policy = policy
        self._events = events
        self._backoff = RestartBackoff(policy.restart)
        self._child: ChildProcess | None = None
        self._watch = Watch(policy.patience, time.monotonic())
        self._ready_at: float | None = None
        self._verdict: asyncio.Future[str | None] | None = None

    @property
    def life(self) -> str:
        """Another one for each child."""
        return f"{self.index}.{self.lives}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    async def run(self) -> None:
        """One life after the other, until cancelled or retired. Leaves no process behind."""
        while self.state is not LaneState.STOPPED:
            try:
                reason = await self._live()
            except OSError as error:
                # The machine would not give us a process or a socket; it may later.
                reason = str(error)
            if reason is None:
                return
            await asyncio.sleep(self._bury(reason))

    def send(self, message: FromParent) -> None:
        """The child owes an answer from now on. Without a child: nothing, its batches are taken back anyway."""
        if self._child is not None:
            self._watch.asked(time.monotonic())
            self._child.send(message)

    def heard(self, *, owes: bool) -> None:
        """What the child said was understood, and `owes` says whether more is expected of it."""
        self._watch.heard(time.monotonic(), owes=owes)

    def answered(self) -> None:
        """The child did some of its work: whatever was wrong with those before it is over."""
        self._backoff.answered()

    def condemn(self, reason: str) -> None:
        """The child is killed and replaced by the next life."""
        if self._decide(reason) and self.ready is not None:
            self.last_error = reason
            self._events.lane_doomed(self)

    def retire(self) -> None:
        """The child is told to stop, and there is no next life."""
        self.state = LaneState.STOPPED
        self._decide(None)

    def check(self, now: float) -> bool:
        """Condemns a child that is stopped, hung or stalled. True when an idle one should be asked for a sign."""
        if self._child is None:
            return False
        look = look_at(self._child.pid)
        self.rss_mb = look.rss_mb if look else self.rss_mb
        complaint = self._watch.complaint(look, now)
        if complaint is not None:
            self.condemn(complaint)
        return complaint is None and self.ready is not None and self._watch.wants_ping(now)

    def silent_s(self, now: float) -> float:
        """How long the child has owed an answer without a word."""
        return self._watch.silent_s(now)

    async def _live(self) -> str | None:
        """Why the child died; None when the lane was retired."""
        self.lives += 1
        self.ready = self._ready_at = None
        if not self._backoff.gave_up:
            self.state = LaneState.STARTING
        self._verdict = verdict = asyncio.get_running_loop().create_future()
        self.edition = edition_of(self.spec.weights)
        child = await ChildProcess.spawn(self.spec, self._hear)
        self._child, self._watch = child, Watch(self._policy.patience, time.monotonic())
        try:
            limit = asyncio.get_running_loop().call_later(self._policy.start_s, self._check_started)
            try:
                await asyncio.wait([verdict, child.gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                limit.cancel()
            if verdict.done() and verdict.result() is None:
                await child.stop(self._policy.stop_grace_s)
                return None
            return str(verdict.result() if verdict.done() else child.gone.result())
        except asyncio.CancelledError:
            self.state = LaneState.STOPPED
            await child.stop(self._policy.stop_grace_s)
            raise
        finally:
            self._verdict = self._child = None
            await child.kill()

    def _hear(self, messages: list[Message]) -> None:
        if self._verdict is None or self._verdict.done():
            return
        if self.ready is not None:
            self._events.lane_said(self, messages)  # type: ignore[arg-type]
            return
        first, *rest = messages
        if isinstance(first, StartFailed):
            self.condemn(first.reason)
        elif not isinstance(first, Ready) or rest:
            self.condemn(f"said {first.kind} before it was ready")
        else:
            now = time.monotonic()
            self.ready, self._ready_at, self._watch = first, now, Watch(self._policy.patience, now)
            self.state = LaneState.READY
            self.rss_mb = self.fresh_mb = first.rss_mb
            _log.info("inference child ready", lane=self.index, pid=self.pid, engine=first.engine, load_s=first.load_s)
            self._events.lane_ready(self, first)

    def _check_started(self) -> None:
        if self.ready is None:
            self.condemn(f"not ready after {self._policy.start_s:g} s")

    def _decide(self, verdict: str | None) -> bool:
        """False when it was decided before."""
        if self._verdict is None or self._verdict.done():
            return False
        self._verdict.set_result(verdict)
        return True

    def _bury(self, reason: str) -> float:
        """Notes the death; how long to wait before the next life, in seconds."""
        served = time.monotonic() - self._ready_at if self._ready_at is not None else 0.0
        delay = self._backoff.died(served)
        _log.warning("inference child gone", lane=self.index, reason=reason, restart_in_s=delay)
        self.last_error = reason
        self.ready = None
        self.rss_mb = 0.0
        self.state = LaneState.FAILED if self._backoff.gave_up else LaneState.DEAD
        self._events.lane_lost(self)
        return delay
