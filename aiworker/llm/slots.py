"""The bounded line in front of a provider, ordered by deadline, and how long it takes. Pure: the time comes in.

Ollama's own queue is unbounded for a loaded model, first come, first served, and knows no deadline.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


def _nobody(_granted: bool) -> None:
    """There is nobody left to tell."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in line, then a slot. `deadline` orders; `expected_s` is the forecast of the call.

    `on_end_of_line` is called once, with True when the slot is there, with False when the line was sent away.
    `granted_at` is None while the ticket is in line.
    """

    deadline: float
    expected_s: float
    on_end_of_line: Callable[[bool], None]
    granted_at: float | None = None
    gone: bool = field(default=False)

    def end_of_line(self, granted: bool) -> None:
        """Calls and forgets: whoever is told holds the ticket, and a circle of the two would keep a request's pictures
        until the collector comes round."""
        tell, self.on_end_of_line = self.on_end_of_line, _nobody
        tell(granted)


class Slots:
    """`size` calls at the same time and at most `max_waiting` in line."""

    def __init__(self, size: int, max_waiting: int) -> None:
        self.size = size
        self.max_waiting = max_waiting
        self._line: list[tuple[float, int, Ticket]] = []
        self._order = itertools.count()
        self._running: set[Ticket] = set()

    @property
    def in_use(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def full(self) -> bool:
        return len(self._running) >= self.size and len(self._line) >= self.max_waiting

    def enter(self, ticket: Ticket, now: float) -> None:
        """Grants at once where a slot is free."""
        heapq.heappush(self._line, (ticket.deadline, next(self._order), ticket))
        self._grant(now)

    def leave(self, ticket: Ticket, now: float) -> None:
        """Gives the slot back, or the place in line; the most urgent one in line is next. May be called again."""
        if ticket.gone:
            return
        ticket.gone = True
        ticket.on_end_of_line = _nobody
        if ticket.granted_at is None:
            self._line = [item for item in self._line if item[2] is not ticket]
            heapq.heapify(self._line)
        else:
            self._running.discard(ticket)
            self._grant(now)

    def send_line_away(self) -> None:
        """Nobody in line will get a slot any more."""
        line, self._line = self._line, []
        for _, _, ticket in line:
            ticket.gone = True
            ticket.end_of_line(False)

    def wait_s(self, now: float, deadline: float, ticket: Ticket | None = None) -> float:
        """The predicted wait of a call with `deadline`; `ticket` is its own, where it is in line already."""
        granted = ticket is not None and ticket.granted_at is not None
        if granted or len(self._running) < self.size:
            return 0.0
        running = [_left_s(now, one) for one in self._running]
        ahead = sorted(item for item in self._line if item[0] <= deadline)
        before = itertools.takewhile(lambda one: one is not ticket, (one for _, _, one in ahead))
        return predicted_wait(running, (one.expected_s for one in before))

    def _grant(self, now: float) -> None:
        while self._line and len(self._running) < self.size:
            _, _, ticket = heapq.heappop(self._line)
            ticket.granted_at = now
            self._running.add(ticket)
            ticket.end_of_line(True)


def predicted_wait(running: list[float], ahead: Iterable[float]) -> float:
    """Seconds until a slot is free, with `running` the seconds left in each slot and `ahead` the calls before ours."""
    free_at = list(running)
    heapq.heapify(free_at)
    for expected_s in ahead:
        heapq.heapreplace(free_at, free_at[0] + expected_s)
    return max(0.0, free_at[0])


def _left_s(now: float, ticket: Ticket) -> float:
    """What has outrun its forecast is taken to need as long again."""
    passed = 0.0 if ticket.granted_at is None else now - ticket.granted_at
    return abs(ticket.expected_s - passed)
