"""A picture with a known answer, which finds a child that has gone blind. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiworker.inference.interface import Box

_SURE = 0.5
_OVERLAP = 0.5
_MOST = 0.5


class Canary:
    """What was found on the picture with one file of weights is what every child with these weights should find: an
    engine may differ in the last digits, but not in half of the things that another was sure of.

    `known` is what somebody trusted found, by edition of the weights. Of others the first answer that holds anything is
    the mark, until a second life meets it, or two in a row agree on something else.
    """

    def __init__(self, image: bytes, known: Mapping[str, Sequence[Box]] | None = None) -> None:
        self.image = image
        self._marks = {edition: _Mark(_sure(boxes), settled=True) for edition, boxes in (known or {}).items()}

    def sees(self, edition: str, life: str, boxes: Sequence[Box]) -> bool:
        """False when that life of a child is blind."""
        return self._marks.setdefault(edition, _Mark()).met_by(life, boxes)


@dataclass(slots=True)
class _Mark:
    """`doubt` is what the last life that missed the mark was sure of. Where a second life has met it, it is settled."""

    things: tuple[Box, ...] = ()
    settled: bool = False
    set_by: str = ""
    doubt: tuple[Box, ...] = ()

    def met_by(self, life: str, boxes: Sequence[Box]) -> bool:
        if not self.things:
            self._set(life, boxes, settled=False)
            return True
        if _alike(boxes, self.things):
            self.settled = self.settled or life != self.set_by
            return True
        if self.doubt and not self.settled and _alike(boxes, self.doubt):
            self._set(life, boxes, settled=True)
            return True
        # Who sees nothing is blind, and no proof against those who see.
        self.doubt = _sure(boxes)
        return False

    def _set(self, life: str, boxes: Sequence[Box], *, settled: bool) -> None:
        self.things, self.settled, self.set_by = _sure(boxes), settled, life


def _sure(boxes: Sequence[Box]) -> tuple[Box, ...]:
    return tuple(box for box in boxes if box[1] >= _SURE)


def _alike(boxes: Sequence[Box], things: Sequence[Box]) -> bool:
    return sum(any(_same(box, thing) for box in boxes) for thing in things) >= _MOST * len(things)


def _same(box: Box, expected: Box) -> bool:
    return box[0] == expected[0] and _overlap(box[2:], expected[2:]) >= _OVERLAP


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / whole if whole > 0 else 0.0
