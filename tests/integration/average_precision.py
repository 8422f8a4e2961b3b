"""Mean average precision over IoU 0.5 to 0.95, as COCO defines it, but with every recall point of the sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Row = tuple[int, float, float, float, float, float]
"""Class, confidence, x1, y1, x2, y2."""
_LIMITS = np.arange(0.5, 1.0, 0.05)


def mean_average_precision(found: Sequence[Sequence[Row]], truth: Sequence[Sequence[Row]]) -> float:
    """In points of 100; one entry of each for a photo. Classes that no photo has do not count."""
    kinds = {row[0] for rows in truth for row in rows}
    return 100 * float(np.mean([_average(found, truth, kind, limit) for kind in kinds for limit in _LIMITS]))


def _average(found: Sequence[Sequence[Row]], truth: Sequence[Sequence[Row]], kind: int, limit: float) -> float:
    wanted = [[row[2:] for row in rows if row[0] == kind] for rows in truth]
    guesses = [(row[1], photo, row[2:]) for photo, rows in enumerate(found) for row in rows if row[0] == kind]
    hits = []
    for _, photo, box in sorted(guesses, key=lambda guess: -guess[0]):
        best = max(wanted[photo], key=lambda other: iou(box, other), default=None)
        hit = best is not None and iou(box, best) >= limit
        if hit:
            wanted[photo].remove(best)  # type: ignore[arg-type]
        hits.append(hit)
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1) if hits else np.zeros(0)
    everything = sum(row[0] == kind for rows in truth for row in rows)
    # Precision at a recall is the best that any higher recall has.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.array(hits, bool)].sum() / everything) if hits else 0.0


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)
