"""One request on its way to an answer: does what `choice.decide` says, and tells the lanes what came of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerInvalid,
    NoProvider,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
)
from aiworker.llm.choice import decide, why_not
from aiworker.llm.forecast import Size
from aiworker.llm.lane import Call, Lane, Moment
from aiworker.llm.measures import LOST_RACE, Measures
from aiworker.llm.situation import (
    NOT_CONFIGURED,
    TIMED_OUT,
    Ask,
    Decision,
    GiveUp,
    Leave,
    Run,
    Send,
    Standing,
    Try,
    Wait,
)
from aiworker.llm.tuning import Tuning

_UNKNOWN_LATE = 0.4
_FINAL = (AnswerInvalid, ProviderMisconfigured, ProviderRefused)


class Provider(Protocol):
    """A TextModel with a name and a session to close."""

    @property
    def name(self) -> str: ...

    @property
    def sees_images(self) -> bool: ...

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all requests share. `changed` wakes those that wait for a provider to come back."""

    providers: Mapping[str, Provider]
    lanes: Mapping[str, Lane]
    tuning: Tuning
    clock: Callable[[], Moment]
    measures: Measures
    changed: Callable[[], None]


class _LineSentAway(Exception):
    """The provider failed while the call was in line for it."""


@dataclass(eq=False, slots=True)
class _Flight:
    """One call. `granted` becomes True with the slot, False when the line is sent away."""

    name: str
    since: float
    granted: asyncio.Future[bool]
    call: Call | None = None
    task: asyncio.Task[Completion] | None = None

    def as_run(self) -> Run:
        return Run(self.name, self.since, self.call.ticket.granted_at if self.call else None)


class Pursuit:
    """`await Pursuit(...).run()` once."""

    def __init__(self, around: Surroundings, request: PromptRequest, deadline: Deadline) -> None:
        self._around = around
        self._request = request
        started = around.clock().now
        total_s = max(0.0, deadline.at - started)
        reserve_s = min(around.tuning.reserve_s, total_s / 10) if request.allow_degraded else 0.0
        self._deadline = Deadline(deadline.at - reserve_s)
        self._ask = Ask(request.order, self._deadline.at, total_s, least_s=around.tuning.least_s, hedge=request.hedge)
        chars = len(request.system) + len(request.prompt) + sum(len(turn.text) for turn in request.history)
        self._size = Size(request.purpose, chars, len(request.images), request.max_tokens)
        self._flights: dict[str, _Flight] = {}
        self._tries: dict[str, Try] = {}
        self._errors: dict[str, ProviderError] = {}
        self._passed_over: dict[str, str] = {}
        self._wake: asyncio.Future[None] | None = None

    async def run(self) -> Completion:
        """The first good answer. Raises what a provider raises that is no ProviderError, and a ProviderError when
        nobody can answer in time; nothing is left running."""
        try:
            while True:
                completion = self._harvest()
                if completion is not None:
                    return self._described(completion)
                step = self._step()
                match step:
                    case Send(name):
                        self._send(name)
                    case Leave(name, code):
                        self._tried(name, code)
                        await self._end([self._flights.pop(name)])
                    case Wait(until):
                        await self._wait(until)
                    case GiveUp():
                        raise self._nobody(step)
        finally:
            if self._flights:
                await self._end(list(self._flights.values()))

    def nudge(self, *_: object) -> None:
        """Something happened: decide again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _step(self) -> Decision:
        moment = self._around.clock()
        names = [name for name in self._request.order if name in self._around.lanes]
        standings = {name: self._standing(name, moment) for name in names}
        runs = [flight.as_run() for flight in self._flights.values()]
        step = decide(self._ask, standings, self._tries, runs, moment.now)
        if isinstance(step, Send):
            for name in self._ask.order[: self._ask.order.index(step.name)]:
                self._passed_over[name] = why_not(self._ask, standings.get(name), None, moment.now)
        return step

    def _standing(self, name: str, moment: Moment) -> Standing:
        flight = self._flights.get(name)
        return self._around.lanes[name].standing(
            moment,
            self._size,
            deadline=self._deadline.at,
            sees=self._around.providers[name].sees_images,
            local_only=self._request.local_only,
            call=flight.call if flight else None,
        )

    def _send(self, name: str) -> None:
        moment = self._around.clock()
        flight = _Flight(name, moment.now, asyncio.get_running_loop().create_future())
        self._flights[name] = flight

        def end_of_line(granted: bool) -> None:
            if not flight.granted.done():
                flight.granted.set_result(granted)
            self.nudge()

        flight.call = self._around.lanes[name].enter(
            moment,
            self._size,
            deadline=self._deadline.at,
            unknown_s=_UNKNOWN_LATE * self._ask.total_s,
            on_end_of_line=end_of_line,
        )
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, flight.call))
        flight.task.add_done_callback(self.nudge)

    async def _fly(self, flight: _Flight, call: Call) -> Completion:
        lane, measures = self._around.lanes[flight.name], self._around.measures
        state = lane.breaker.state(self._around.clock().now)
        try:
            if not await flight.granted:
                raise _LineSentAway
            waited_s = self._around.clock().now - call.entered_at
            measures.waited(lane.name, waited_s)
            completion = await self._around.providers[lane.name].complete(self._request, self._deadline)
        except ProviderError as error:
            lane.failed(self._around.clock(), call, error)
            measures.failed(lane.name, error)
            raise
        except BaseException:
            if lane.left(self._around.clock(), call):
                measures.wasted(lane.name, LOST_RACE)
            raise
        else:
            moment = self._around.clock()
            lane.answered(moment, call, completion)
            measures.answered(completion, moment.now - call.entered_at)
            return dataclasses.replace(completion, wait_ms=completion.wait_ms + 1000 * waited_s)
        finally:
            if lane.breaker.state(self._around.clock().now) != state:
                self._around.changed()

    def _harvest(self) -> Completion | None:
        for name, flight in list(self._flights.items()):
            if flight.task is None or not flight.task.done():
                continue
            del self._flights[name]
            try:
                return flight.task.result()
            except _LineSentAway:
                self._tried(name, self._around.lanes[name].breaker.code)
            except ProviderError as error:
                self._errors[name] = error
                self._tried(name, error.code, final=isinstance(error, _FINAL), error=error)
        return None

    def _tried(self, name: str, code: str, *, final: bool = False, error: ProviderError | None = None) -> None:
        count = self._tries[name].count + 1 if name in self._tries else 1
        now = self._around.clock().now
        # The breaker keeps the delay that a server asked for; a second one here would only be longer.
        asked = isinstance(error, ProviderRateLimited) and error.retry_after is not None
        pause_s = 0.0 if asked else self._around.tuning.backoff_s * 2.0 ** (count - 1)
        self._tries[name] = Try(code, count, now + pause_s, final)

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(max(0.0, until - self._around.clock().now), self.nudge)
        try:
            await self._wake
        finally:
            self._wake = None
            timer.cancel()

    async def _end(self, flights: list[_Flight]) -> None:
        tasks = [flight.task for flight in flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for flight in flights:
            # A task that was cancelled before its first step has told its lane nothing.
            if flight.call is not None:
                self._around.lanes[flight.name].left(self._around.clock(), flight.call)

    def _described(self, completion: Completion) -> Completion:
        order = list(dict.fromkeys(self._ask.order))
        skipped = {name: self._why_not(name) for name in order[: order.index(completion.provider)]}
        for name, code in skipped.items():
            self._around.measures.spilled(name, code)
        return dataclasses.replace(completion, skipped=skipped)

    def _why_not(self, name: str) -> str:
        if name in self._tries:
            return self._tries[name].code
        return TIMED_OUT if name in self._flights else self._passed_over.get(name, NOT_CONFIGURED)

    def _nobody(self, step: GiveUp) -> ProviderError:
        self._around.measures.unanswered()
        configured = {name: code for name, code in step.reasons.items() if code != NOT_CONFIGURED}
        if len(configured) == 1:
            name, code = configured.popitem()
            if name in self._errors:
                return self._errors[name]
            if code == TIMED_OUT:
                return ProviderTimeout("no answer in time", provider=name, phase="total")
        waits = [error.retry_after or 0.0 for error in self._errors.values() if error.retryable]
        if step.back_in_s is not None:
            waits.append(step.back_in_s)
        return NoProvider("nobody could answer in time", reasons=step.reasons, retry_after=min(waits, default=None))
