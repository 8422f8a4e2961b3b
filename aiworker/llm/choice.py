"""What one request does next: send, hedge, leave, wait, or give up while there is time to answer without. Pure.

A provider is *safe* when 19 of 20 of its answers would come in time, *possible* when half of them would. Where nobody
else can be asked, it is while they might.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiworker.llm.forecast import Outlook
from aiworker.llm.situation import (
    NOT_CONFIGURED,
    SLOTS_FULL,
    TIMED_OUT,
    TOO_LATE,
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

# Pauses between them double, so time is the limit that counts.
MOST_TRIES = 6
# Of the whole time, for a provider of which nothing is known: one that hangs leaves the next one its chance.
UNKNOWN_LIKELY = 0.1
UNKNOWN_SAFE = 0.4
# A rescue has none behind it: 19 of 20 is not enough for it, and least where one lucky answer is all that is known.
_RESCUE = 1.4
# A call that takes so many times what is late already will not come any more.
_HOPELESS = 2.0
_HOPELESS_LEAST = 4.0
# Predictions of a moment are compared with clocks: this much apart is the same moment.
_SAME_S = 1e-6


@dataclass(frozen=True, slots=True)
class _Option:
    name: str
    ready_at: float
    last_resort_at: float
    likely_s: float
    hoped_s: float
    safe_s: float
    late_s: float
    sure_s: float
    load_s: float
    unexpected_load_s: float
    known: bool

    def safe(self, end_at: float) -> bool:
        return self.ready_at + self.safe_s <= end_at + _SAME_S

    def last_moment(self, end_at: float) -> float:
        """When it must be sent to come in time almost surely."""
        return end_at - self.sure_s

    def possible(self, end_at: float) -> bool:
        return self.last_resort_at + self.hoped_s <= end_at + _SAME_S

    def possible_once_loaded(self, end_at: float) -> bool:
        return self.load_s > 0 and self.last_resort_at + self.hoped_s - self.load_s <= end_at + _SAME_S


def decide(
    ask: Ask, standings: Mapping[str, Standing], tries: Mapping[str, Try], runs: Sequence[Run], now: float
) -> Decision:
    """The next step of `ask`. Every `Wait` ends after `now`; without runs it ends where a provider is ready."""
    if now >= ask.end_at - _SAME_S:
        return _give_up(ask, standings, tries, runs, now)
    busy = {run.name for run in runs}
    usable = _usable(ask, standings)
    alone = len(usable) == 1
    options = {name: _option(ask, standings[name], tries.get(name), name, now, alone=alone) for name in usable}
    free = [
        option
        for name, option in options.items()
        if name not in busy
        and not _spent(tries.get(name))
        and option.possible(ask.end_at)
        and (standings[name].worth_waiting or option.last_resort_at <= now)
    ]
    sent = [run for run in runs if run.sent_at is not None]
    if sent:
        return _beside(ask, sent, options, free, tries, now)
    if runs:
        return _in_line(ask, runs[0], options[runs[0].name], free, now)
    ready = [option for option in free if option.ready_at <= now]
    if ready:
        safe = [option for option in ready if option.safe(ask.end_at)]
        return Send((safe or sorted(ready, key=lambda option: option.likely_s))[0].name)
    for option in free:
        if option.last_resort_at <= now:
            return Send(option.name)
    if free:
        return Wait(min(option.last_resort_at for option in free))
    for name, option in options.items():
        standing = standings[name]
        idle = standing.wait_s == 0 and name not in tries and option.last_resort_at <= now
        if idle and standing.may_load and option.possible_once_loaded(ask.end_at):
            # Too late for this request, most likely. But the load goes on, and without a first call it never begins.
            return Send(name)
    return _give_up(ask, standings, tries, runs, now)


def _usable(ask: Ask, standings: Mapping[str, Standing]) -> list[str]:
    return [name for name in dict.fromkeys(ask.order) if name in standings and not standings[name].never]


def _spent(tried: Try | None) -> bool:
    return tried is not None and (tried.final or tried.count >= MOST_TRIES)


def _option(ask: Ask, standing: Standing, tried: Try | None, name: str, now: float, *, alone: bool) -> _Option:
    unknown_s = max(ask.least_s, UNKNOWN_SAFE * ask.total_s)
    outlook = (standing.outlook or _unknown(ask)).tempered(unknown_s)
    sure_s = outlook.load_s + unknown_s if outlook.hearsay else outlook.doubt * outlook.safe_s
    not_before = max(now, tried.not_before) if tried else now
    last_resort_at = standing.ready_at if standing.last_resort_at is None else standing.last_resort_at
    wait_s = standing.wait_s
    # With nobody else to ask, one slow answer after a quiet minute must not turn away all that come next.
    doubt = outlook.doubt if alone else 1.0
    return _Option(
        name,
        ready_at=max(not_before, standing.ready_at),
        last_resort_at=max(not_before, last_resort_at),
        likely_s=wait_s + outlook.likely_s,
        hoped_s=wait_s + outlook.load_s + (outlook.likely_s - outlook.load_s) / doubt,
        safe_s=wait_s + outlook.safe_s,
        late_s=outlook.late_s,
        sure_s=_RESCUE * (wait_s + sure_s),
        load_s=outlook.load_s,
        unexpected_load_s=standing.unexpected_load_s,
        known=not outlook.hearsay,
    )


def _unknown(ask: Ask) -> Outlook:
    likely_s, safe_s = max(ask.least_s, UNKNOWN_LIKELY * ask.total_s), UNKNOWN_SAFE * ask.total_s
    return Outlook(likely_s, likely_s, safe_s, safe_s, hearsay=True)


def _in_line(ask: Ask, run: Run, own: _Option, free: Sequence[_Option], now: float) -> Decision:
    """Stays while it can make it, but no longer than until another one's last safe moment; with `hedge`, no longer than
    an answer may take."""
    others = [option for option in free if option.ready_at <= now]
    last_moments = [option.last_moment(ask.end_at) for option in others]
    if ask.hedge:
        last_moments.append(run.since + max(own.late_s, ask.least_s))
    due = any(moment <= now + _SAME_S for moment in last_moments)
    safe_elsewhere = any(option.safe(ask.end_at) for option in others)
    if not own.safe(ask.end_at) and safe_elsewhere:
        return Leave(own.name, SLOTS_FULL)
    if own.safe(ask.end_at) and due and safe_elsewhere:
        return Leave(own.name, SLOTS_FULL)
    if not own.possible(ask.end_at):
        return Leave(own.name, SLOTS_FULL)
    moments = [*last_moments, ask.end_at - own.safe_s, ask.end_at - own.hoped_s, ask.end_at]
    moments += [option.ready_at for option in free]
    return Wait(min(moment for moment in moments if moment > now + _SAME_S))


def _beside(
    ask: Ask,
    sent: Sequence[Run],
    options: Mapping[str, _Option],
    free: Sequence[_Option],
    tries: Mapping[str, Try],
    now: float,
) -> Decision:
    """A call is out. Another one goes out beside it when it is late, or when this is the other one's last moment."""
    moments = [ask.end_at]
    for option in free:
        start_at = _second_at(ask, sent, options, option, tries.get(option.name))
        if start_at <= now + _SAME_S:
            return Send(option.name)
        moments.append(start_at)
    for run in sent:
        own = options.get(run.name)
        if own is None or not own.known or run.sent_at is None:
            continue
        # A load that nobody waits for any more is broken off, and the next call would begin it anew.
        hopeless_at = run.sent_at + own.unexpected_load_s + max(_HOPELESS * own.late_s, _HOPELESS_LEAST * ask.least_s)
        if hopeless_at > now + _SAME_S:
            moments.append(hopeless_at)
        elif now + own.late_s <= ask.end_at:
            return Leave(run.name, TIMED_OUT)
    return Wait(min(moment for moment in moments if moment > now + _SAME_S))


def _second_at(
    ask: Ask, sent: Sequence[Run], options: Mapping[str, _Option], second: _Option, tried: Try | None
) -> float:
    if tried and all(run.sent_at is not None and run.sent_at < tried.at for run in sent):
        # It was time for it before, and it failed.
        return second.last_resort_at
    last_moment = second.last_moment(ask.end_at)
    late, half_done = [], []
    for run in sent:
        own = options.get(run.name)
        sent_at = run.since if run.sent_at is None else run.sent_at
        late.append(sent_at + max(own.late_s if own else 0.0, ask.least_s))
        # Who will probably make it gets its chance first; for who will not, the last moment is now or never.
        # By hearsay it may be safe and take as long as `late_s`, most of all where only the load of its model is known.
        probable = own is not None and sent_at + max(own.safe_s, own.late_s) <= ask.end_at
        half_done.append(sent_at + (own.likely_s if own and probable else 0.0))
    rescue_at = max(second.last_resort_at, last_moment, *half_done)
    return min(rescue_at, max(second.ready_at, *late)) if ask.hedge else rescue_at


def why_not(ask: Ask, standing: Standing | None, tried: Try | None, now: float) -> str:
    """The code of what keeps a provider that is not being asked from answering."""
    if standing is None:
        return NOT_CONFIGURED
    if standing.never:
        return standing.never
    if tried:
        return tried.code
    if standing.ready_at > now:
        return standing.reason
    return SLOTS_FULL if standing.wait_s > 0 and now < ask.end_at else TOO_LATE


def _give_up(
    ask: Ask, standings: Mapping[str, Standing], tries: Mapping[str, Try], runs: Sequence[Run], now: float
) -> GiveUp:
    asked = {run.name for run in runs if run.sent_at is not None}
    reasons = {
        name: TIMED_OUT if name in asked else why_not(ask, standings.get(name), tries.get(name), now)
        for name in dict.fromkeys(ask.order)
    }
    rests = [
        standing.ready_at - now for standing in standings.values() if not standing.never and standing.ready_at > now
    ]
    return GiveUp(reasons, min(rests, default=None))
