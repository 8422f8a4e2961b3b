"""One call to one provider: in line, then sent, then over. Its lane and the metrics hear how it ended."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import ProviderError
from aiworker.llm.bill import Bill
from aiworker.llm.forecast import Size
from aiworker.llm.lane import Lane, Moment
from aiworker.llm.measures import Measures
from aiworker.llm.situation import Run
from aiworker.llm.tuning import Tuning


class Provider(Protocol):
    """A TextModel with a name, a session to close, and a bill."""

    @property
    def name(self) -> str: ...

    @property
    def sees_images(self) -> bool: ...

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill) -> Completion: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all requests share. `changed` wakes those that wait for a provider to come back; `dice` is in [0, 1)."""

    providers: Mapping[str, Provider]
    lanes: Mapping[str, Lane]
    tuning: Tuning
    clock: Callable[[], Moment]
    measures: Measures
    changed: Callable[[], None]
    dice: Callable[[], float]


class LineSentAway(Exception):
    """The provider failed while the call was in line for it."""


class Flight:
    """Takes its place in line when it is made. `nudge` is called when it gets its slot, and when it is over."""

    def __init__(
        self,
        around: Surroundings,
        name: str,
        request: PromptRequest,
        size: Size,
        deadline: Deadline,
        *,
        likely_s: float,
        unknown_s: float,
        nudge: Callable[..., None],
    ) -> None:
        self._around = around
        self._lane = lane = around.lanes[name]
        self._nudge = nudge
        loop = asyncio.get_running_loop()
        self._granted: asyncio.Future[bool] = loop.create_future()
        moment = around.clock()
        self.since = moment.now
        # Nothing that the flight holds may hold the flight: such a circle keeps the request's pictures.
        self.bill = Bill(on_repair=lambda: lane.repairs(around.clock()))
        self.call = self._lane.enter(
            moment,
            size,
            deadline=deadline.at,
            likely_s=likely_s,
            unknown_s=unknown_s,
            on_end_of_line=self._end_of_line,
        )
        self.task = loop.create_task(self._fly(request, deadline))
        self.task.add_done_callback(nudge)

    def as_run(self) -> Run:
        return Run(self._lane.name, self.since, self.call.ticket.granted_at)

    def _end_of_line(self, granted: bool) -> None:
        if not self._granted.done():
            self._granted.set_result(granted)
        self._nudge()

    async def _fly(self, request: PromptRequest, deadline: Deadline) -> Completion:
        clock, lane, measures = self._around.clock, self._lane, self._around.measures
        state = lane.breaker.state(clock().now)
        try:
            if not await self._granted:
                raise LineSentAway
            waited_s = clock().now - self.since
            measures.waited(lane.name, waited_s)
            completion = await self._around.providers[lane.name].complete(request, deadline, self.bill)
        except ProviderError as error:
            lane.failed(clock(), self.call, error, self.bill.cost_usd)
            measures.failed(lane.name, error, self.bill.cost_usd)
            raise
        except BaseException:
            self._left()
            raise
        else:
            moment = clock()
            lane.answered(moment, self.call, completion, self.bill.cost_usd)
            measures.answered(completion, moment.now - self.since, self.bill.cost_usd)
            return dataclasses.replace(completion, wait_ms=completion.wait_ms + 1000 * waited_s)
        finally:
            if lane.breaker.state(clock().now) != state:
                self._around.changed()

    def _left(self) -> None:
        if reason := self._lane.left(self._around.clock(), self.call, self.bill.cost_usd):
            self._around.measures.left(self._lane.name, reason, self.bill.cost_usd)

    @staticmethod
    async def take_back(flights: Iterable[Flight]) -> None:
        """Cancels them and waits until they are over."""
        flights = list(flights)
        for flight in flights:
            flight.task.cancel()
        try:
            await asyncio.gather(*(flight.task for flight in flights), return_exceptions=True)
        finally:
            for flight in flights:
                # A task that was cancelled before its first step has told its lane nothing.
                flight._left()
