"""When a claim may leave out what was in line before, and when it has to look at everything. Pure: times come in.

A transaction that stays open for minutes keeps vacuum from removing the index entries of jobs that have ended. A claim
that starts where the lines were last found empty does not have to step over them.
"""

from __future__ import annotations

from dataclasses import dataclass

_WHOLE_EVERY_S = 1.0
# However many dead entries there are, stepping over all of them takes at most this share of the time; and however long
# a look took, for whatever reason, the next one comes before anybody has to wait for long.
_WHOLE_SHARE = 0.005
_WHOLE_AT_LEAST_EVERY_S = 20.0


@dataclass(slots=True)
class Looks:
    """One claimer's memory. `empty_at_s` is of the database's clock, all other times of a monotonic one of ours."""

    empty_at_s: float | None = None
    _whole_due_s: float = 0.0

    def since(self, now_s: float) -> float | None:
        """What the next claim passes as `p_since_s`; None is a look at everything."""
        return None if now_s >= self._whole_due_s else self.empty_at_s

    def looked(self, since: float | None, began_s: float, ended_s: float, emptied_at_s: float | None) -> None:
        """A claim that passed `since` has come back; `emptied_at_s` is the database's time of one that left nothing
        behind, else None."""
        if since is None:
            pause_s = max(_WHOLE_EVERY_S, (ended_s - began_s) / _WHOLE_SHARE)
            self._whole_due_s = ended_s + min(pause_s, _WHOLE_AT_LEAST_EVERY_S)
            if emptied_at_s is None:
                # What it left behind may be older than any mark: until a look leaves nothing, all are whole.
                self.empty_at_s = None
        if emptied_at_s is not None:
            self.empty_at_s = emptied_at_s
