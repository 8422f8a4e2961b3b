"""What a YOLO network says, and the boxes it means. NumPy only, used in the child only.

Engines that run an exported network stop it before its last few arithmetic steps, which are done here: only for the
anchors that matter, and in float32 even where the network itself runs in a shorter format. The result is that of
ultralytics' `non_max_suppression` on the whole network, except that nothing here has a time limit.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_CLASS_GAP = np.float32(7680)
_MOST_CANDIDATES = 30_000


@dataclass(frozen=True, slots=True)
class Head:
    """What must be known of a network beside its numbers.

    `bins` is how many numbers stand for one side of a box (16 for YOLOv8 and YOLO11, 1 for YOLO26), `strides` are the
    pixels per cell of each level. `end_to_end` heads (YOLO26) give one box for each thing and need no suppression.
    """

    names: Mapping[int, str]
    task: str
    strides: tuple[int, ...]
    bins: int
    end_to_end: bool


@dataclass(frozen=True, slots=True)
class Limits:
    confidence: float
    iou: float
    max_detections: int

    @property
    def least_score(self) -> float:
        """The confidence before the sigmoid: candidates are above it."""
        return math.log(self.confidence / (1 - self.confidence))


@dataclass(frozen=True, slots=True)
class RawOutput:
    """One picture's numbers for N anchors: `sides` (4 * bins, N), `scores` (classes, N) before the sigmoid.

    Segmentation adds `coefficients` (masks, N) and `prototypes` (masks, h / 4, w / 4). `anchors` (N) says which of the
    network's anchors these are, where it is not all of them.
    """

    sides: Floats
    scores: Floats
    coefficients: Floats | None = None
    prototypes: Floats | None = None
    anchors: NDArray[np.intp] | None = None


def find_boxes(output: RawOutput, head: Head, shape: tuple[int, int], limits: Limits) -> Floats:
    """(n, 6): x1, y1, x2, y2 in the model's input of (h, w) `shape`, confidence, class; most confident first."""
    prototypes = None if output.prototypes is None else output.prototypes[None]
    alone = np.zeros(output.scores.shape[1], np.intp)
    (rows,) = find_boxes_of(replace(output, prototypes=prototypes), alone, 1, head, shape, limits)
    return rows


def find_boxes_of(
    output: RawOutput, pictures: NDArray[np.intp], count: int, head: Head, shape: tuple[int, int], limits: Limits
) -> list[Floats]:
    """The same for each of `count` pictures together, which costs less than one by one.

    `pictures` (N), ascending, says whose each anchor of `output` is; its prototypes are (count, masks, h / 4, w / 4).
    """
    best = output.scores.max(axis=0)
    candidates = np.flatnonzero(best > limits.least_score)
    if head.end_to_end:
        anchors, kinds = _best_pairs(output.scores, candidates, pictures, count, limits)
    else:
        anchors = candidates[np.lexsort((-best[candidates], pictures[candidates]))]
        kinds = output.scores[:, anchors].argmax(axis=0)
    corners = _corners(output, anchors, head, shape)
    confidences = 1 / (1 + np.exp(-output.scores[kinds, anchors]))
    rows: Floats = np.column_stack((corners, confidences, kinds)).astype(np.float32)
    apart = corners + kinds[:, None].astype(np.float32) * _CLASS_GAP
    found = []
    for picture, (begin, end) in enumerate(itertools.pairwise(np.searchsorted(pictures[anchors], range(count + 1)))):
        kept = np.arange(begin, end)[:_MOST_CANDIDATES]
        if not head.end_to_end:
            kept = kept[suppress(apart[kept], limits.iou)[: limits.max_detections]]
        if output.coefficients is not None and output.prototypes is not None:
            masks = output.coefficients[:, anchors[kept]]
            kept = kept[visible(masks, output.prototypes[picture], corners[kept], shape)]
        found.append(rows[kept])
    return found


def suppress(corners: Floats, limit: float) -> NDArray[np.intp]:
    """Indices of the boxes that overlap no better one by more than `limit`; `corners` are in order, best first."""
    x1, y1, x2, y2 = corners.T
    areas = (x2 - x1) * (y2 - y1)
    left, kept = np.arange(len(corners)), []
    while left.size:
        first, left = left[0], left[1:]
        kept.append(first)
        if not left.size:
            break
        width = np.minimum(x2[first], x2[left]) - np.maximum(x1[first], x1[left])
        height = np.minimum(y2[first], y2[left]) - np.maximum(y1[first], y1[left])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        left = left[shared / (areas[first] + areas[left] - shared) <= limit]
    return np.array(kept, np.intp)


def _best_pairs(
    scores: Floats, candidates: NDArray[np.intp], pictures: NDArray[np.intp], count: int, limits: Limits
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Anchors and classes of each picture's highest scores; one anchor may stand for several classes, as in
    ultralytics' top-k.
    """
    anchors, classes = [], []
    for each in np.split(candidates, np.searchsorted(pictures[candidates], range(1, count))):
        best = scores[:, each].max(axis=0)
        own = each[np.argsort(-best, kind="stable")[: limits.max_detections]]
        kinds, places = np.nonzero(scores[:, own] > limits.least_score)
        order = np.argsort(-scores[kinds, own[places]], kind="stable")[: limits.max_detections]
        anchors.append(own[places[order]])
        classes.append(kinds[order])
    return np.concatenate(anchors), np.concatenate(classes)


def _corners(output: RawOutput, anchors: NDArray[np.intp], head: Head, shape: tuple[int, int]) -> Floats:
    distances = output.sides[:, anchors].reshape(4, head.bins, -1)
    if head.bins > 1:
        weights = np.exp(distances - distances.max(axis=1, keepdims=True))
        steps = np.arange(head.bins, dtype=np.float32)[:, None]
        distances = (weights * steps).sum(axis=1) / weights.sum(axis=1)
    left, top, right, bottom = distances.reshape(4, -1)
    places = anchors if output.anchors is None else output.anchors[anchors]
    x, y, stride = _grid(shape, head.strides)[:, places]
    corners: Floats = np.stack((x - left, y - top, x + right, y + bottom), axis=1) * stride[:, None]
    return corners


@functools.lru_cache(maxsize=64)
def _grid(shape: tuple[int, int], strides: tuple[int, ...]) -> Floats:
    """(3, N): x and y of each anchor in cells of its level, and the stride of that level."""
    levels = []
    for stride in strides:
        rows, columns = np.indices((shape[0] // stride, shape[1] // stride), np.float32).reshape(2, -1)
        levels.append(np.stack((columns + 0.5, rows + 0.5, np.full_like(rows, stride))))
    return np.concatenate(levels, axis=1)


def visible(coefficients: Floats, prototypes: Floats, corners: Floats, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes have any pixel of their mask inside; ultralytics drops the others.

    `coefficients` are (masks, n), `prototypes` (masks, h / 4, w / 4), `corners` (n, 4) in the input of (h, w) `shape`.
    """
    seen = np.zeros(len(corners), np.bool_)
    for index, (x1, y1, x2, y2) in enumerate(corners):
        top, bottom, down = _samples(y1, y2, shape[0], prototypes.shape[1])
        left, right, across = _samples(x1, x2, shape[1], prototypes.shape[2])
        if not top.size or not left.size:
            continue
        cells = prototypes[:, top[0] : bottom[-1] + 1, left[0] : right[-1] + 1]
        mask = np.tensordot(coefficients[:, index], cells.astype(np.float32, copy=False), 1)
        top, bottom, left, right = top - top[0], bottom - top[0], left - left[0], right - left[0]
        tall = mask[top] * (1 - down[:, None]) + mask[bottom] * down[:, None]
        seen[index] = (tall[:, left] * (1 - across) + tall[:, right] * across > 0).any()
    return seen


def _samples(low: float, high: float, pixels: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For the pixels from `low` to `high`: the two cells that each lies between, and its share of the second."""
    inside = np.arange(max(0, math.ceil(low)), min(pixels, math.ceil(high)))
    places = ((inside + 0.5) * (cells / pixels) - 0.5).clip(min=0).astype(np.float32)
    first = np.floor(places).astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), places - first
