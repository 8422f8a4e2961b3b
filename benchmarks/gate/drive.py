"""Sends what the plan says when the plan says it, whatever happens to what was sent before.

Every latency counts from the moment at which the request was meant to be sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import aiohttp

from gate.mix import Kind
from gate.plan import Arrival, Phase, arrivals

_POLL_S = 2.0
_THINK_S = 1.0
_ONE_HOUR_S = 3600
_PATIENCE_S = 30.0
_ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Sent:
    """A job that was meant to be sent at `due` (seconds since 1970) and got `job_id`."""

    job_id: UUID
    phase: str
    kind: str
    due: float


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. `ms` from due to the whole answer; `status` 0 is no answer."""

    phase: str
    what: str
    ms: float
    status: int

    @property
    def refused(self) -> bool:
        """The plan asks for nothing that may be refused: a 401 or 429 is load that was not there."""
        return not 200 <= self.status < 300


@dataclass
class Log:
    """What happened so far, shared with the display. `seen_s` is what users who poll saw, from due to result; `unseen`
    users were still polling when the gate gave up."""

    sent: list[Sent] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    seen_s: list[float] = field(default_factory=list)
    put_off: list[UUID] = field(default_factory=list)
    unseen: int = 0
    phase: str = ""


class Driver:
    """`base` is the gateway's address, `key` its service key."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        key: str,
        kinds: Sequence[Kind],
        photos: Sequence[str],
        rng: Random,
    ) -> None:
        self._session = session
        self._base = f"{base}/functions/v1"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._kinds = kinds
        self._photos = photos
        self._rng = rng
        self._users: list[asyncio.Task[None]] = []
        self.log = Log()

    async def run(self, phase: Phase) -> None:
        """Returns when everything of the phase has been sent and answered; its jobs and users may still run."""
        self.log.phase = phase.name
        start = time.time()
        match phase.load:
            case "jobs":
                sends = self._jobs(phase, start)
            case "requests":
                sends = self._requests(phase, phase.rate, start)
            case "users":
                self._arrive(phase, phase.rate, start)
                sends = []
            case "everything":
                sends = self._jobs(phase, start) + self._requests(phase, 5 * phase.rate, start)
                self._arrive(phase, 2 * phase.rate, start)
        await asyncio.gather(*sends, _until(start + phase.seconds))
        await self._cancel_put_off(phase.name)

    async def finish(self, patience_s: float = _PATIENCE_S) -> None:
        """Returns when every user has seen the result of the last job, or when that takes too long: who polls a job
        that is lost, or a gateway that is gone, would poll for good."""
        if self._users:
            done, late = await asyncio.wait(self._users, timeout=patience_s)
            for user in late:
                user.cancel()
            self.log.unseen += len(late)
            await asyncio.gather(*done)
        self._users.clear()

    def _jobs(self, phase: Phase, start: float) -> list[Coroutine[Any, Any, None]]:
        plan = arrivals(phase, self._kinds, self._rng)
        return [self._at(start + each.at, self._job(phase.name, each, start)) for each in plan]

    def _requests(self, phase: Phase, rate: float, start: float) -> list[Coroutine[Any, Any, None]]:
        dues = [start + number / rate for number in range(int(rate * phase.seconds))]
        return [self._at(due, self._request(phase.name, due)) for due in dues]

    def _arrive(self, phase: Phase, users: float, start: float) -> None:
        """They stay until each has seen the result of its last job."""
        dues = [start + self._rng.uniform(0, _POLL_S) for _ in range(int(users))]
        end = start + phase.seconds
        self._users += [asyncio.create_task(self._user(phase.name, due, end)) for due in dues]

    async def _at(self, due: float, send: Callable[[], Awaitable[Any]]) -> None:
        await _until(due)
        await send()

    def _job(self, phase: str, arrival: Arrival, start: float) -> Callable[[], Awaitable[Any]]:
        return lambda: self._enqueue(phase, arrival.kind, start + arrival.at)

    def _request(self, phase: str, due: float) -> Callable[[], Awaitable[Any]]:
        dice = self._rng.random()
        return lambda: self._other(phase, due, dice)

    async def _other(self, phase: str, due: float, dice: float) -> None:
        """Half ask for a status, the rest is new jobs (put off, so that they cost the gateway and not the worker),
        cancels of those, and requests that the cache answers."""
        text = next((kind for kind in self._kinds if kind.name == "sofia_text"), self._kinds[0])
        if dice < 0.2 or (dice < 0.4 and not self.log.put_off):
            await self._enqueue(phase, text, due, delaySeconds=_ONE_HOUR_S)
        elif dice < 0.4:
            await self._cancel(phase, due)
        elif dice < 0.5 or not self.log.sent:
            await self._enqueue(phase, text, due, useCache=True, input={"text": "um pão com manteiga"})
        else:
            await self._status(phase, self._rng.choice(self.log.sent).job_id, due)

    async def _user(self, phase: str, at: float, end: float) -> None:
        while at < end:
            await _until(at)
            kind = self._rng.choices(self._kinds, [each.calls_a_day for each in self._kinds])[0]
            job_id = await self._enqueue(phase, kind, at)
            if job_id is None:
                return
            at = await self._followed(phase, job_id, at) + _THINK_S

    async def _followed(self, phase: str, job_id: UUID, due: float) -> float:
        """Polls until the job has ended; when that was seen, in seconds since 1970."""
        poll_at = due
        while True:
            poll_at += _POLL_S
            await _until(poll_at)
            job = await self._status(phase, job_id, poll_at)
            if job.get("status") in _ENDED:
                self.log.seen_s.append(time.time() - due)
                return time.time()

    async def _enqueue(self, phase: str, kind: Kind, due: float, **fields: Any) -> UUID | None:
        body = {
            "type": kind.name,
            "input": kind.make(self._rng, self._rng.choice(self._photos)),
            "userId": str(UUID(int=self._rng.getrandbits(128), version=4)),
            "useCache": False,
        } | fields
        reply = await self._call(phase, "enqueue", "POST", "enqueue-analysis", due, json=body)
        if not reply.get("jobId"):
            return None
        job_id = UUID(reply["jobId"])
        if "delaySeconds" in fields:
            self.log.put_off.append(job_id)
        else:
            self.log.sent.append(Sent(job_id, phase, kind.name, due))
        return job_id

    async def _status(self, phase: str, job_id: UUID, due: float) -> dict[str, Any]:
        return await self._call(phase, "status", "GET", "get-analysis-status", due, params={"jobId": str(job_id)})

    async def _cancel(self, phase: str, due: float) -> None:
        if self.log.put_off:
            body = {"jobId": str(self.log.put_off.pop())}
            await self._call(phase, "cancel", "POST", "cancel-analysis", due, json=body)

    async def _cancel_put_off(self, phase: str) -> None:
        while self.log.put_off:
            await self._cancel(f"{phase}, after", time.time())

    async def _call(self, phase: str, what: str, method: str, path: str, due: float, **more: Any) -> dict[str, Any]:
        status, reply = 0, {}
        try:
            async with self._session.request(method, f"{self._base}/{path}", headers=self._headers, **more) as response:
                reply = await response.json()
                status = response.status
        except (aiohttp.ClientError, TimeoutError):
            reply = {}
        self.log.calls.append(Call(phase, what, 1000 * (time.time() - due), status))
        return reply


async def _until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.time()))
