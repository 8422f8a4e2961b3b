"""What a decision about one request is made from, and what it may be. Times in seconds of one monotonic clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiworker.llm.forecast import Outlook

NOT_CONFIGURED = "not_configured"
NO_VISION = "no_vision"
LOCAL_ONLY = "local_only"
TOO_LATE = "deadline_exceeded"
SLOTS_FULL = "slots_full"
RATE_LIMITED = "rate_limited_here"
BUDGET_SPENT = "budget_spent"
LOST_RACE = "lost_race"
TIMED_OUT = "provider_timeout"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `end_at` is when the caller must know, `total_s` the time there was when it came.

    hedge: a second provider may be asked as soon as the first is later than 19 of 20, not only when it must be.
    """

    order: Sequence[str]
    end_at: float
    total_s: float
    least_s: float
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One provider for one request, now.

    ready_at: when a call may go, `reason` says why not before. wait_s: then, in line. outlook: None where nothing is
    known. unexpected_load_s: what loading its model took last, where a call under way may have to wait for it though
    the model was thought to be there. may_load: loading its model drives no other one out. never: a code where it can
    not answer this request at all.
    """

    ready_at: float = 0.0
    reason: str = ""
    wait_s: float = 0.0
    outlook: Outlook | None = None
    unexpected_load_s: float = 0.0
    may_load: bool = True
    never: str = ""
    worth_waiting: bool = True
    last_resort_at: float | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """What came of asking one provider for this request so far, last at `at`. `final` when asking again cannot help."""

    code: str
    count: int = 1
    not_before: float = 0.0
    final: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A call under way: in line from `since`, and with its provider from `sent_at`."""

    name: str
    since: float
    sent_at: float | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Ask `name` now, beside what is running."""

    name: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Take the call to `name` back, because of `code`."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless a call ends, a slot is granted or a provider comes back."""

    until: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nobody can make it. `reasons` has a code for all of the order; `back_in_s` is when one may be ready."""

    reasons: dict[str, str]
    back_in_s: float | None


Decision = Send | Leave | Wait | GiveUp
