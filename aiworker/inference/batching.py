"""Which waiting requests go through the model together now. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in line. `deadline_at` is on the clock of `now`; `shape` is the letterboxed one, None if unknown.

    `alone` marks a request that must not share a batch, because children died with it before.
    """

    id: int
    deadline_at: float
    shape: Shape | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """`batch` most urgent first; `late` are those whose deadline has passed, to be taken out of the line."""

    batch: tuple[int, ...] = ()
    late: tuple[int, ...] = ()


def choose_batch(waiting: Iterable[Waiting], now: float, limit: int, idle_lanes: int = 1) -> Choice:
    """The batch for a lane that is idle now.

    Work-conserving: while anything in time is waiting, the batch is not empty. The most urgent request leads; others
    of its shape join in order of deadline, up to `limit` and up to this lane's share of the line, so that the first
    of several idle lanes does not take what the others could start at once.
    """
    ordered = sorted(waiting, key=lambda each: (each.deadline_at, each.id))
    late = tuple(each.id for each in ordered if each.deadline_at <= now)
    line = ordered[len(late) :]
    if not line:
        return Choice((), late)
    first = line[0]
    if first.alone:
        return Choice((first.id,), late)
    share = -(-len(line) // max(1, idle_lanes))
    fellows = [each.id for each in line if each.shape == first.shape and not each.alone]
    return Choice(tuple(fellows[: max(1, min(limit, share))]), late)
