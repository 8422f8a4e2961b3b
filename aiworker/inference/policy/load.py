"""What one lane has in hand, and when it will be through with it. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aiworker.inference.policy.choice import Release
from aiworker.inference.policy.shape import Shape

MAX_IN_FLIGHT = 2
_MARGIN_S = 0.003
_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_RAISE_CAP_AFTER = 50

MeanSeconds = Callable[[Shape | None, int], float]


@dataclass(slots=True)
class Flight:
    """A batch that the lane has not finished. `expected_s` is what it should take once it is its turn."""

    batch: int
    items: tuple[int, ...]
    shape: Shape | None
    release: Release
    expected_s: float
    slack_s: float
    sent_at: float
    unanswered: set[int]


@dataclass(slots=True)
class LaneLoad:
    """`cap` is the most pictures that the lane is given together now, `full_cap` what its engine gains from. One that
    `queues` begins a batch on its device before it has answered the last.
    """

    index: int
    engine: str
    full_cap: int
    cap: int
    free_since: float
    queues: bool = False
    flights: deque[Flight] = field(default_factory=deque)
    draining: bool = False
    reserved: bool = False
    paused_until: float = 0.0
    _decode_s: float = 0.0
    _pause_s: float = _PAUSE_S
    _starved: bool = False
    _full_batches: int = 0

    def idle(self, now: float) -> bool:
        """It could start a batch this moment."""
        return not self.flights and self.open and self.paused_until <= now

    @property
    def open(self) -> bool:
        """It gets batches from the line."""
        return not (self.draining or self.reserved)

    def free_at(self, now: float) -> float:
        """When it should be through with what it has; a batch that is overdue is expected every moment."""
        at = self.free_since
        for flight in self.flights:
            at = max(max(at, flight.sent_at) + flight.expected_s, now)
        return max(at, now, self.paused_until)

    def prefetches_at(self, waiting: int) -> float:
        """When a lane with one batch in hand should get its next: late, so that it is full and urgent, but not too late
        to be decoded by then. Never while it runs a picture that must be alone.

        Of so many `waiting`, a lane that queues gets a full batch at once: its device is through before it says so.
        """
        if len(self.flights) != MAX_IN_FLIGHT - 1 or not self.open:
            return math.inf
        if self.flights[0].release in (Release.ALONE, Release.CANARY):
            return math.inf
        if self.queues and waiting >= self.cap:
            return -math.inf
        ends_at = max(self.flights[0].sent_at, self.free_since) + self.flights[0].expected_s
        return ends_at - _MARGIN_S - self.cap * self._decode_s

    def finish(self, decode_s: float, now: float) -> tuple[Flight, float] | None:
        """The first batch in hand has ended: it, and the seconds that it took the lane up.

        `decode_s` is what the child spent on decoding it. None when pictures of it are unanswered.
        """
        if not self.flights or self.flights[0].unanswered:
            return None
        flight = self.flights.popleft()
        size = len(flight.items)
        seconds = now - max(flight.sent_at, self.free_since)
        self.free_since = now
        self._decode_s = max(decode_s / size, 0.8 * self._decode_s)
        self._full_batches += size == self.cap
        if self.cap < self.full_cap and self._full_batches >= _RAISE_CAP_AFTER:
            self.cap += 1
            self._full_batches = 0
        return flight, seconds

    def lower_cap(self, failed_size: int) -> None:
        """So many pictures found no memory. The cap comes back by one after many batches that filled it."""
        self.cap = max(1, min(self.cap, failed_size // 2))
        self._full_batches = 0

    def starved(self, now: float) -> None:
        """Not even one picture found memory. The first time it may be the picture; after that the lane rests, longer
        each time in a row."""
        if self._starved:
            self.paused_until = now + self._pause_s
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        self._starved = True

    def fed(self) -> None:
        """A picture found memory."""
        self._starved = False
        self._pause_s = _PAUSE_S
