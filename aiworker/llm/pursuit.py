"""One request on its way to an answer: does what `choice.decide` says until a call has answered or nobody can."""

from __future__ import annotations

import asyncio
import dataclasses

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerInvalid,
    NoProvider,
    ProviderError,
    ProviderMisconfigured,
    ProviderRefused,
    ProviderTimeout,
)
from aiworker.llm.bill import Bill
from aiworker.llm.choice import UNKNOWN_LIKELY, UNKNOWN_SAFE, decide, why_not
from aiworker.llm.evidence import evidence_of
from aiworker.llm.flight import Flight, LineSentAway, Surroundings
from aiworker.llm.forecast import Size
from aiworker.llm.lane import Moment
from aiworker.llm.situation import (
    BUDGET_SPENT,
    NO_VISION,
    NOT_CONFIGURED,
    TIMED_OUT,
    Ask,
    Decision,
    GiveUp,
    Leave,
    Send,
    Standing,
    Try,
    Wait,
)

# Added to a clock's time, a shorter wait may make no later one.
_LEAST_WAIT_S = 1e-6
_FINAL = (AnswerInvalid, ProviderMisconfigured, ProviderRefused)


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
        # The same analysis may ask for a short answer and for a long one.
        kind = f"{request.purpose} {request.max_tokens}"
        self._size = Size(kind, chars, len(request.images), request.max_tokens)
        self._flights: dict[str, Flight] = {}
        self._tries: dict[str, Try] = {}
        self._errors: dict[str, ProviderError] = {}
        self._bills: list[tuple[str, Bill]] = []
        self._passed_over: dict[str, str] = {}
        self._wake: asyncio.Future[None] | None = None

    async def run(self) -> Completion:
        """The first good answer. Raises what a provider raises that is no ProviderError, and a ProviderError when
        nobody can answer in time; nothing is left running."""
        try:
            while True:
                completion = self._harvest()
                if completion is not None:
                    skipped = self._skipped(completion.provider)
                    await self._take_back()
                    return dataclasses.replace(completion, skipped=skipped, cost_usd=self._cost_usd())
                step = self._step()
                match step:
                    case Send(name):
                        self._send(name)
                    case Leave(name, code):
                        self._tried(name, code)
                        await Flight.take_back([self._flights.pop(name)])
                    case Wait(until):
                        await self._wait(until)
                    case GiveUp():
                        await self._take_back()
                        error = self._nobody(step)
                        error.cost_usd = self._cost_usd()
                        raise error
        finally:
            await self._take_back()

    def nudge(self, *_: object) -> None:
        """Something happened: decide again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _take_back(self) -> None:
        if self._flights:
            await Flight.take_back(self._flights.values())

    def _cost_usd(self, name: str | None = None) -> float:
        return sum(bill.cost_usd for asked, bill in self._bills if name in (None, asked))

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
        flight, lane = self._flights.get(name), self._around.lanes[name]
        most_usd = lane.rules.usd_per_job
        if flight is None and most_usd is not None and self._cost_usd(name) >= most_usd:
            return Standing(never=BUDGET_SPENT)
        return lane.standing(
            moment,
            self._size,
            deadline=self._deadline.at,
            sees=self._around.providers[name].sees_images,
            local_only=self._request.local_only,
            call=flight.call if flight else None,
        )

    def _send(self, name: str) -> None:
        self._flights[name] = Flight(
            self._around,
            name,
            self._request,
            self._size,
            self._deadline,
            likely_s=UNKNOWN_LIKELY * self._ask.total_s,
            unknown_s=UNKNOWN_SAFE * self._ask.total_s,
            nudge=self.nudge,
        )
        self._bills.append((name, self._flights[name].bill))

    def _harvest(self) -> Completion | None:
        for name, flight in list(self._flights.items()):
            if not flight.task.done():
                continue
            del self._flights[name]
            try:
                return flight.task.result()
            except LineSentAway:
                lane = self._around.lanes[name]
                self._tried(name, lane.rests_because(self._around.clock()) or lane.breaker.code)
            except ProviderError as error:
                # A quota per day names a delay of seconds all the same.
                error.retry_after = evidence_of(error, self._around.clock().wall).rest_s
                # Its frames hold the flight, which holds the error: a circle with the request's pictures in it.
                self._errors[name] = error.with_traceback(None)
                self._tried(name, error.code, final=isinstance(error, _FINAL))
        return None

    def _tried(self, name: str, code: str, *, final: bool = False) -> None:
        """The breaker keeps a longer delay, where the server named one."""
        count = self._tries[name].count + 1 if name in self._tries else 1
        # Who failed together is not to come back together.
        pause_s = self._around.tuning.backoff_s * 2.0 ** (count - 1) * (1 + self._around.dice() / 2)
        now = self._around.clock().now
        self._tries[name] = Try(code, count, now + pause_s, final, now)

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(max(_LEAST_WAIT_S, until - self._around.clock().now), self.nudge)
        try:
            await self._wake
        finally:
            self._wake = None
            timer.cancel()

    def _skipped(self, answered_by: str) -> dict[str, str]:
        order = list(dict.fromkeys(self._ask.order))
        skipped = {name: self._why_not(name) for name in order[: order.index(answered_by)]}
        for name, code in skipped.items():
            self._around.measures.spilled(name, code)
        return skipped

    def _why_not(self, name: str) -> str:
        if name in self._tries:
            return self._tries[name].code
        return TIMED_OUT if name in self._flights else self._passed_over.get(name, NOT_CONFIGURED)

    def _nobody(self, step: GiveUp) -> ProviderError:
        self._around.measures.unanswered()
        able = {name: code for name, code in step.reasons.items() if code not in (NOT_CONFIGURED, NO_VISION)}
        if len(able) == 1:
            name, code = able.popitem()
            if name in self._errors:
                return self._errors[name]
            if code == TIMED_OUT:
                return ProviderTimeout("no answer in time", provider=name, phase="total")
        waits = [error.retry_after or 0.0 for error in self._errors.values() if error.retryable]
        if step.back_in_s is not None:
            waits.append(step.back_in_s)
        return NoProvider("nobody could answer in time", reasons=step.reasons, retry_after=min(waits, default=None))
