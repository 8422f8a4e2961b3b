"""A picture with a known answer, which finds a child that has gone blind. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from aiworker.inference.interface import Box

_SURE = 0.5
_OVERLAP = 0.5
_MOST = 0.5


class Canary:
    """What was found on the picture with one file of weights is what every child with these weights should find.

    The first answer that holds anything is the reference: an engine may differ in the last digits, but not in half of
    the things that another was sure of.
    """

    def __init__(self, image: bytes) -> None:
        self.image = image
        self._references: dict[str, tuple[Box, ...]] = {}

    def sees(self, weights: str, boxes: Sequence[Box]) -> bool:
        """False when the child is blind."""
        reference = self._references.get(weights, ())
        if not reference:
            self._references[weights] = tuple(box for box in boxes if box[1] >= _SURE)
            return True
        found = sum(any(_same(box, expected) for box in boxes) for expected in reference)
        return found >= _MOST * len(reference)


def _same(box: Box, expected: Box) -> bool:
    return box[0] == expected[0] and _overlap(box[2:], expected[2:]) >= _OVERLAP


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / whole if whole > 0 else 0.0
