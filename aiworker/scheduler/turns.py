"""Whose turn it is at a worker: a suspect's, which has the worker to itself, or everybody else's. Pure: times come in.

However many suspects a crash has left, the others have as much of the time as they; and however many others there are,
a suspect's turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass

# A worker that a suspect has killed starts anew, and must not spend all its lives on suspects.
_OTHERS_FIRST_S = 5.0


@dataclass(slots=True)
class Turns:
    """Times in seconds of one monotonic clock."""

    others_until_s: float
    _since_s: float | None = None

    @classmethod
    def starting(cls, now_s: float) -> Turns:
        """A worker that starts at `now_s`."""
        return cls(now_s + _OTHERS_FIRST_S)

    def of_suspects(self, now_s: float) -> bool:
        """Whether the next claim may bring a suspect."""
        return now_s >= self.others_until_s

    def nobody_else_waits(self, now_s: float) -> None:
        """A claim without suspects has found nothing."""
        self.others_until_s = now_s

    def claimed(self, now_s: float, *, suspect: bool) -> None:
        """A claim has come back, maybe with a suspect, which may have to be claimed again when the worker is idle: its
        turn begins at the first time."""
        if not suspect:
            self.over(now_s)
        elif self._since_s is None:
            self._since_s = now_s

    def over(self, now_s: float) -> None:
        """The suspect is done, or somebody else has it. The others get as long a turn as it had, waiting included."""
        if self._since_s is not None:
            self.others_until_s = now_s + (now_s - self._since_s)
            self._since_s = None
