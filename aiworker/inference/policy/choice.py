"""Which waiting requests go through the model together, on a lane that can take some. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aiworker.inference.policy.shape import Shape

_EFFICIENT = 0.9
_LOOK_AHEAD_BATCHES = 8

Predict = Callable[[Shape | None, int], float]
"""Seconds that a batch of so many pictures of one shape will seldom exceed; 0 where nothing is known yet."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in line. `deadline_at` is on the clock of `now`; `shape` is the letterboxed one, None if unknown.

    `alone` marks a request that must not share a child, because children died with it before.
    """

    id: int
    deadline_at: float
    shape: Shape | None = None
    alone: bool = False


class Release(StrEnum):
    """Why a batch has the size that it has."""

    FULL = "full"
    EVERYTHING = "everything"
    SHARE = "share"
    DEADLINE = "deadline"
    ALONE = "alone"
    LATE_ANYWAY = "late_anyway"
    CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Offer:
    """A lane that can take a batch: it would start at `starts_at`, with at most `cap` pictures.

    `idle_lanes` are those that can start now, this one included; `lanes` are all that serve. `at_work` says that the
    lane has another batch before this one. `earliest(shape)` is the soonest moment at which any lane could have
    answered one picture.
    """

    starts_at: float
    cap: int
    predict: Predict
    earliest: Callable[[Shape | None], float]
    idle_lanes: int = 1
    lanes: int = 1
    at_work: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """`batch` most urgent first; `given_up` are requests to be taken out, since they cannot make it."""

    batch: tuple[int, ...] = ()
    release: Release = Release.EVERYTHING
    given_up: tuple[int, ...] = ()
    predicted_s: float = 0.0


def choose_batch(line: Sequence[Waiting], offer: Offer) -> Choice:
    """The batch for this lane from a line in order of (deadline, id) in which nobody is late yet.

    The most urgent request leads, and others of its shape join in order of deadline. A leader that could only be met in
    a batch too small to keep up with the line is given up, and so is one that no lane can answer in time, but only in
    favour of others: with nobody to gain, it is tried. One that a faster lane can answer is left to that lane.

    An idle lane gets nothing only from a line whose every request is better left to a faster lane. A lane at work gets
    nothing either while the most urgent request must have a child to itself.
    """
    given_up: list[int] = []
    left_over = False
    for position, leader in enumerate(line):
        if leader.alone and offer.at_work:
            return Choice()
        rest = line[position:]
        size, release = (1, Release.ALONE) if leader.alone else _size(rest, offer)
        if size:
            batch = tuple(_fellows(rest, size))
            return Choice(batch, release, tuple(given_up), offer.predict(leader.shape, size))
        hopeless_here = offer.starts_at + offer.predict(leader.shape, 1) > leader.deadline_at
        if hopeless_here and offer.earliest(leader.shape) <= leader.deadline_at:
            left_over = True
        else:
            given_up.append(leader.id)
    return Choice() if left_over or offer.at_work or not line else _late_anyway(line, offer)


def efficient_size(full: int, predict: Callable[[int], float]) -> int:
    """The smallest batch that gets nearly as many pictures through in a second as one of `full`."""
    most = predict(full)
    for size in range(1, full):
        if size * most >= _EFFICIENT * full * predict(size):
            return size
    return full


def _size(line: Sequence[Waiting], offer: Offer) -> tuple[int, Release]:
    """How many go with the first of `line`; 0 says that the first should not go at all."""
    leader = line[0]
    share = _share(line, offer)
    full = len(_fellows(line, share))
    slack = leader.deadline_at - offer.starts_at

    def seconds(size: int) -> float:
        return offer.predict(leader.shape, size)

    size = full
    while size and seconds(size) > slack:
        size -= 1
    if size == full:
        if size == offer.cap:
            return size, Release.FULL
        return size, Release.SHARE if size == share < len(line) else Release.EVERYTHING
    if size >= min(full, efficient_size(offer.cap, seconds)) or (size and _affordable(line, size, offer)):
        return size, Release.DEADLINE
    return 0, Release.DEADLINE


def _share(line: Sequence[Waiting], offer: Offer) -> int:
    """So that the first of several idle lanes does not take what the others could start at once."""
    return max(1, min(offer.cap, -(-len(line) // max(1, offer.idle_lanes))))


def _fellows(line: Sequence[Waiting], limit: int) -> list[int]:
    """The first of the line and those that may share its batch."""
    leader = line[0]
    found: list[int] = []
    for each in line:
        if each is leader or (each.shape == leader.shape and not (each.alone or leader.alone)):
            found.append(each.id)
            if len(found) == limit:
                break
    return found


def _affordable(line: Sequence[Waiting], size: int, offer: Offer) -> bool:
    """Whether those behind still make it, in full batches, after a small one for the leader."""
    shape = line[0].shape
    at = offer.starts_at + offer.predict(shape, size)
    full_s = offer.predict(shape, offer.cap)
    behind = line[size : size + offer.cap * _LOOK_AHEAD_BATCHES * offer.lanes]
    for index in range(0, len(behind), offer.cap):
        turn_at = at + (index // offer.cap // offer.lanes) * full_s
        if turn_at + offer.predict(shape, min(offer.cap, len(behind) - index)) > behind[index].deadline_at:
            return False
    return True


def _late_anyway(line: Sequence[Waiting], offer: Offer) -> Choice:
    """Nobody can make it by what is known, which may be wrong: trying them is what corrects it."""
    batch = tuple(_fellows(line, _share(line, offer)))
    return Choice(batch, Release.LATE_ANYWAY, (), offer.predict(line[0].shape, len(batch)))
