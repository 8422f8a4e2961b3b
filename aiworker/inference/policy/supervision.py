"""When a child is started again, and whose fault its death was. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LaneState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DEAD = "dead"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The first restart comes after `base_s`, each further one in a row `factor` later, at most `cap_s`.

    After `give_up_after` lives in a row that answered nothing the lane counts as failed. It goes on trying at `cap_s`,
    since what starved it (memory, a driver) may come back. A child that served for `stable_s` had started well.
    """

    base_s: float = 0.2
    factor: float = 2.0
    cap_s: float = 30.0
    give_up_after: int = 5
    stable_s: float = 60.0


class RestartBackoff:
    """Counts one lane's lives that ended without an answer."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._barren = 0

    def answered(self) -> None:
        """The child did its work: whatever was wrong is over."""
        self._barren = 0

    def died(self, served_s: float) -> float:
        """Seconds until the next start; `served_s` is how long the child was ready, 0 if it never was."""
        if served_s >= self._policy.stable_s:
            self._barren = 0
        exponent = min(self._barren, 64)
        self._barren += 1
        return min(self._policy.cap_s, self._policy.base_s * self._policy.factor**exponent)

    @property
    def gave_up(self) -> bool:
        return self._barren >= self._policy.give_up_after


class Verdict(StrEnum):
    RETRY = "retry"
    RETRY_ALONE = "retry_alone"
    REJECT = "reject"


def judge(deaths: int, *, was_alone: bool) -> Verdict:
    """What becomes of a request whose child died; `deaths` counts this one.

    One death may be anybody's fault. After two the request runs alone, so that it can harm no other, and a third death
    with nobody else in the child is its own doing.
    """
    if deaths >= 3 and was_alone:
        return Verdict.REJECT
    return Verdict.RETRY_ALONE if deaths >= 2 else Verdict.RETRY
