"""Tells a stopped child, a hung one and a slow one apart by their progress. Pure, but for a look into /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Look(NamedTuple):
    """What the kernel says of a process: its state's letter ("T" is stopped by a signal), CPU time in ticks, and
    resident memory in MiB."""

    state: str
    cpu_ticks: int
    rss_mb: float


def look_at(pid: int) -> Look | None:
    """None when there is no such process."""
    try:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Look(fields[0], int(fields[11]) + int(fields[12]), int(fields[21]) * _PAGE_MB)
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A child may be stopped by a signal for `stopped_s`; owing an answer, it may neither speak nor use the
    CPU for `hung_s`, and may not speak for `stall_s` however busy it is. An idle one is asked every `ping_s`."""

    stopped_s: float = 0.5
    hung_s: float = 10.0
    stall_s: float = 30.0
    ping_s: float = 5.0


class Watch:
    """One life of one child."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._heard_at = self._worked_at = self._running_at = now
        self._owes_since: float | None = None
        self._ticks = -1

    def heard(self, now: float, *, owes: bool) -> None:
        """The child spoke; `owes` says whether more is expected of it."""
        self._heard_at = now
        self._owes_since = now if owes else None

    def asked(self, now: float) -> None:
        """It was sent something that it must answer."""
        if self._owes_since is None:
            self._owes_since = now

    def silent_s(self, now: float) -> float:
        """How long it has owed an answer without a word."""
        return 0.0 if self._owes_since is None else now - max(self._owes_since, self._heard_at)

    def wants_ping(self, now: float) -> bool:
        return self._owes_since is None and now - self._heard_at >= self._patience.ping_s

    def complaint(self, look: Look | None, now: float) -> str | None:
        """Why the child should be killed now; None while it should not."""
        if look is None:
            return None  # its end is told by the process itself
        if look.state != "T":
            self._running_at = now
        elif now - self._running_at >= self._patience.stopped_s:
            return "stopped by a signal"
        if look.cpu_ticks != self._ticks:
            self._ticks, self._worked_at = look.cpu_ticks, now
        silent = self.silent_s(now)
        if silent >= self._patience.stall_s:
            return f"slow: no progress for {silent:.0f} s"
        if min(silent, now - self._worked_at) >= self._patience.hung_s:
            return f"hung: neither progress nor work for {silent:.0f} s"
        return None
