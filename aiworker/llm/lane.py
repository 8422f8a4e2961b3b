"""All that is known of one provider: breaker, slots, allowances, forecast, money. Pure: the time comes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aiworker.domain.completion import Completion
from aiworker.domain.errors import ProviderError
from aiworker.llm.allowance import DayBudget, Spend, TokenBucket
from aiworker.llm.breaker import Breaker
from aiworker.llm.evidence import Evidence, Sign, evidence_of
from aiworker.llm.forecast import Forecast, Outlook, Size
from aiworker.llm.residence import Residence
from aiworker.llm.situation import (
    BUDGET_SPENT,
    LOCAL_ONLY,
    LOST_RACE,
    NO_VISION,
    RATE_LIMITED,
    SLOTS_FULL,
    TIMED_OUT,
    Standing,
)
from aiworker.llm.slots import Slots, Ticket
from aiworker.llm.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Moment:
    """`now` in seconds of the monotonic clock, `wall` in seconds since 1970."""

    now: float
    wall: float


@dataclass(frozen=True, slots=True)
class LaneRules:
    """How one provider may be used. None is no limit.

    slots: calls at the same time; max_waiting: in line for them. keep_alive_s: how long a model stays loaded after a
    call, where the provider loads models. local: on this server, so nothing leaves it.
    """

    slots: int = 1
    max_waiting: int = 64
    local: bool = False
    keep_alive_s: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_per_day: float | None = None
    usd_per_job: float | None = None


@dataclass(eq=False, slots=True)
class Call:
    """One call to the provider. `late_s`: beyond this it is late, seen from when it was sent. `loads`: the model comes
    into memory for it, and those behind it find it there."""

    size: Size
    ticket: Ticket
    entered_at: float
    late_s: float
    load_s: float
    loads: bool = False
    probe: bool = False
    over: bool = False


class Lane:
    """One provider's state. Every call that `enter`s must end in `answered`, `failed` or `left`."""

    def __init__(self, name: str, rules: LaneRules, tuning: Tuning) -> None:
        self.name = name
        self.rules = rules
        self.slots = Slots(rules.slots, rules.max_waiting)
        self.breaker = Breaker(tuning)
        self.forecast = Forecast(tuning.memory_s)
        self.residence = Residence(rules.keep_alive_s)
        self.budget = DayBudget(rules.usd_per_day)
        self.answers = 0
        self.failures = 0
        self._tuning = tuning
        self._requests = TokenBucket(rules.requests_per_minute) if rules.requests_per_minute else None
        self._tokens = TokenBucket(rules.tokens_per_minute) if rules.tokens_per_minute else None

    def standing(
        self, moment: Moment, size: Size, *, deadline: float, sees: bool, local_only: bool, call: Call | None = None
    ) -> Standing:
        """For a request of `size`; `call` is the request's own call here, where it has one."""
        if local_only and not self.rules.local:
            return Standing(never=LOCAL_ONLY)
        if size.images and not sees:
            return Standing(never=NO_VISION)
        now = moment.now
        wait_s = self.slots.wait_s(now, deadline, call.ticket if call else None)
        outlook = self.outlook(now, size, wait_s, call)
        if call is not None:
            unexpected_s = 0.0 if call.load_s else self.residence.last_load_s(size.images > 0)
            return Standing(now, wait_s=wait_s, outlook=outlook, unexpected_load_s=unexpected_s)
        may_at, lacking = self._may_at(moment, size)
        rested_at = self.breaker.ready_at(now)
        return Standing(
            max(may_at, rested_at),
            lacking if may_at > rested_at else self.breaker.code,
            wait_s,
            outlook,
            may_load=self.residence.may_load(now, size.images > 0),
            worth_waiting=self.breaker.worth_waiting(now),
            last_resort_at=max(may_at, self.breaker.last_resort_at(now)),
        )

    def outlook(self, now: float, size: Size, wait_s: float, call: Call | None = None) -> Outlook | None:
        """Seconds for the answer after `wait_s`, with loading the model where it will not be there."""
        outlook = self.forecast.outlook(now, size)
        load_s = self.residence.load_s(now, size.images > 0, wait_s) if call is None else call.load_s
        if outlook is None:
            # Long unasked, so nothing is known but that the model has to be loaded first.
            return Outlook(load_s, load_s, load_s, load_s, hearsay=True, load_s=load_s) if load_s else None
        return replace(outlook.plus(load_s), load_s=load_s)

    def enter(
        self,
        moment: Moment,
        size: Size,
        *,
        deadline: float,
        likely_s: float,
        unknown_s: float,
        on_end_of_line: Callable[[bool], None],
    ) -> Call:
        """A call takes its place in line, or its slot. Where there is no forecast, it will likely be over by `likely_s`
        and is late by `unknown_s`."""
        now, vision = moment.now, size.images > 0
        wait_s = self.slots.wait_s(now, deadline)
        outlook = self.outlook(now, size, wait_s)
        outlook = outlook and outlook.tempered(unknown_s)
        late_s = max(outlook.late_s if outlook else unknown_s, self._tuning.least_s)
        ticket = Ticket(deadline, outlook.mean_s if outlook else likely_s, on_end_of_line)
        load_s = self.residence.load_s(now, vision, wait_s)
        call = Call(size, ticket, now, late_s, load_s, loads=load_s > 0 and not self.residence.loading(vision))
        if call.loads:
            self.residence.begins(now + wait_s, vision)
        call.probe = self.breaker.begin(now, wait_s + late_s)
        if self._requests:
            self._requests.take(now)
        if self._tokens:
            self._tokens.take(now, size.prompt_tokens + size.max_tokens)
        self.slots.enter(ticket, now)
        return call

    def repairs(self, moment: Moment) -> None:
        """A call that is under way sends a second one."""
        if self._requests:
            self._requests.take(moment.now)

    def answered(self, moment: Moment, call: Call, completion: Completion, cost_usd: float = 0.0) -> None:
        now, vision = moment.now, call.size.images > 0
        load_s = completion.load_ms / 1000
        self.answers += 1
        self._spend(moment, cost_usd)
        self._end(now, call, Evidence(Sign.WELL))
        self.forecast.note(now, call.size.kind, max(0.0, self._sent_s(now, call) - load_s))
        self.forecast.note_speed(now, call.size, completion)
        self.residence.answered(now, vision, load_s)
        if self._tokens:
            used = completion.prompt_tokens + completion.answer_tokens
            self._tokens.take(now, used - call.size.prompt_tokens - call.size.max_tokens)

    def failed(self, moment: Moment, call: Call, error: ProviderError, cost_usd: float = 0.0) -> None:
        self.failures += 1
        self._spend(moment, cost_usd)
        evidence = evidence_of(error, moment.wall)
        if evidence.sign is Sign.DOWN:
            self.residence.gone()
        if evidence.sign in (Sign.DOWN, Sign.LIMITED):
            # It was turned away, and nothing was read.
            self._give_back_tokens(moment.now, call)
        self._end(moment.now, call, evidence)

    def left(self, moment: Moment, call: Call, cost_usd: float = 0.0) -> str:
        """We took the call back: it lost a race, or its time was over. Being late speaks against the provider.

        Why it was sent in vain; "" where it was still in line, or had ended, which changes nothing.
        """
        if call.over:
            return ""
        self._spend(moment, cost_usd)
        now = moment.now
        sent_s = self._sent_s(now, call)
        late = call.ticket.granted_at is not None and sent_s >= call.late_s
        if late:
            self.forecast.note_unfinished(now, call.size.kind, max(0.0, sent_s - call.load_s))
        if call.ticket.granted_at is None:
            self._give_back(now, call)
        self._end(now, call, Evidence(Sign.FAILING, TIMED_OUT) if late else Evidence(Sign.NOTHING))
        if call.ticket.granted_at is None:
            return ""
        return TIMED_OUT if late else LOST_RACE

    def unsaved_spend(self, moment: Moment) -> Spend:
        """What only this process knows of."""
        return Spend(self.name, *self.budget.unsaved(moment.wall))

    def spend_saved(self, moment: Moment, spend: Spend, total_usd: float) -> None:
        """`spend` is part of `total_usd` now, which is that day's of all workers."""
        self.budget.saved(spend.day, spend.usd, total_usd)
        self._close_where_spent(moment)

    def rests_because(self, moment: Moment) -> str:
        """The code of what keeps calls away now; "" where nothing does."""
        if self.budget.closed_for_s(moment.wall):
            return BUDGET_SPENT
        return "" if self.breaker.state(moment.now) == "closed" else self.breaker.code

    def _spend(self, moment: Moment, usd: float) -> None:
        self.budget.spend(moment.wall, usd)
        self._close_where_spent(moment)

    def _close_where_spent(self, moment: Moment) -> None:
        if self.budget.closed_for_s(moment.wall):
            # Before the slot is free: who waits for it would be sent, and paid for.
            self.slots.send_line_away()

    def _may_at(self, moment: Moment, size: Size) -> tuple[float, str]:
        """When quotas, money and slots allow a call, and what they lack until then."""
        now = moment.now
        if closed_for_s := self.budget.closed_for_s(moment.wall):
            return now + closed_for_s, BUDGET_SPENT
        moments = [(now, "")]
        if self._requests:
            moments.append((self._requests.ready_at(now), RATE_LIMITED))
        if self._tokens:
            moments.append((self._tokens.ready_at(now, size.prompt_tokens + size.max_tokens), RATE_LIMITED))
        if self.slots.full:
            moments.append((now + self._tuning.backoff_s, SLOTS_FULL))
        return max(moments)

    def _sent_s(self, now: float, call: Call) -> float:
        return 0.0 if call.ticket.granted_at is None else now - call.ticket.granted_at

    def _give_back(self, now: float, call: Call) -> None:
        if self._requests:
            self._requests.take(now, -1)
        self._give_back_tokens(now, call)

    def _give_back_tokens(self, now: float, call: Call) -> None:
        if self._tokens:
            self._tokens.take(now, -(call.size.prompt_tokens + call.size.max_tokens))

    def _end(self, now: float, call: Call, evidence: Evidence) -> None:
        call.over = True
        if call.loads:
            self.residence.ended(call.size.images > 0)
        was_open = self.breaker.state(now) == "open"
        self.breaker.end(now, evidence, probe=call.probe, took_s=self._sent_s(now, call))
        if not was_open and self.breaker.state(now) == "open":
            self.forecast.forget_unfinished()
            self.slots.send_line_away()
        self.slots.leave(call.ticket, now)
