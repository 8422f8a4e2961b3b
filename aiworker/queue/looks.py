"""What a worker remembers of the lines, so that it need not read again what has ended. Pure: times come in.

A transaction that stays open for minutes keeps vacuum from removing the index entries of jobs that have ended. Whoever
starts behind the last place where it saw that nothing was left does not have to step over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from aiworker.domain.job import LEVEL_S, PRIORITIES

_COMMIT_S = 2.0
"""An enqueue whose commit takes longer may be missed, until a walk over everything finds it."""

_WHOLE_AGAIN_S = 2.0
_WHOLE_SHARE = 0.005
_WHOLE_AT_LEAST_EVERY_S = 120.0


@dataclass(slots=True)
class Floors:
    """What a claimer remembers: for each priority, most urgent first, the place before which nothing waits for it."""

    places: list[float] | None = None
    _at_s: float = 0.0

    def looked(self, at_s: float, last_place: float | None) -> None:
        """A claim that began at `at_s` has taken what there was, or, where there was more, all up to `last_place`.
        Both are seconds since 1970, by the database's clock; when that was put back, nothing is known any more."""
        if at_s < self._at_s - _COMMIT_S / 2:
            self.places = None
        self._at_s = at_s
        seen = [
            min(at_s - _COMMIT_S + priority * LEVEL_S, inf if last_place is None else last_place)
            for priority in PRIORITIES
        ]
        self.places = seen if self.places is None else list(map(max, self.places, seen))


@dataclass(slots=True)
class Walks:
    """What a rescuer remembers: how far back unfinished jobs reach, and when it last went over everything.

    Going over everything takes at most a two hundredth of the time, however many dead entries there are, but comes
    every two minutes at the latest. `earliest_s` is of the database's clock, all other times of our monotonic one.
    """

    _earliest_s: float | None = None
    _whole_due_s: float = 0.0

    def since(self, now_s: float) -> float | None:
        """Where the next walk begins, without priorities; None is one over everything."""
        return None if now_s >= self._whole_due_s else self._earliest_s

    def walked(self, since: float | None, began_s: float, ended_s: float, earliest_s: float) -> None:
        """A walk from `since` has come back, having met nothing unfinished that was due before `earliest_s`."""
        if since is None:
            pause_s = max(_WHOLE_AGAIN_S, (ended_s - began_s) / _WHOLE_SHARE)
            self._whole_due_s = ended_s + min(pause_s, _WHOLE_AT_LEAST_EVERY_S)
        self._earliest_s = earliest_s
