"""A moment on this process's monotonic clock by which an answer is wanted."""

from __future__ import annotations

import time
from typing import NamedTuple


class Deadline(NamedTuple):
    """`at` is in seconds of `time.monotonic()`; deadlines order by urgency."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        # Every job has one, and the constructor of a named tuple takes four times as long.
        return tuple.__new__(cls, (time.monotonic() + seconds,))

    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - time.monotonic())

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now."""
        return min(self, Deadline.after(seconds))
