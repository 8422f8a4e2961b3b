from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aiworker.inference.engines.heads import Head, Limits, RawOutput, find_boxes, suppress, visible

_NAMES = {0: "a", 1: "b", 2: "c"}
_SHAPE = (64, 96)
_ANCHORS = 8 * 12 + 4 * 6 + 2 * 3
_LIMITS = Limits(confidence=0.3, iou=0.7, max_detections=300)
_YOLO8 = Head(_NAMES, "detect", (8, 16, 32), bins=16, end_to_end=False)
_YOLO26 = Head(_NAMES, "detect", (8, 16, 32), bins=1, end_to_end=True)


def _quiet(bins: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((4 * bins, _ANCHORS), np.float32), np.full((3, _ANCHORS), -9.0, np.float32)


def _distance(sides: np.ndarray, anchor: int, bins: int, *cells: int) -> None:
    """Says the distances to left, top, right and bottom as sharply as a network can."""
    for side, cell in enumerate(cells):
        if bins == 1:
            sides[side, anchor] = cell
        else:
            sides[side * bins + cell, anchor] = 50.0


def test_a_box_lies_around_its_anchor_in_pixels() -> None:
    for head in (_YOLO8, _YOLO26):
        sides, scores = _quiet(head.bins)
        second_level = 8 * 12 + 1 * 6 + 2  # row 1, column 2 of cells of 16 pixels
        _distance(sides, second_level, head.bins, 1, 0, 2, 1)
        scores[1, second_level] = 0.0
        (row,) = find_boxes(RawOutput(sides, scores), head, _SHAPE, _LIMITS)
        np.testing.assert_allclose(row, [2.5 * 16 - 16, 1.5 * 16, 2.5 * 16 + 32, 1.5 * 16 + 16, 0.5, 1], rtol=1e-5)


def test_confidence_is_a_strict_threshold_and_decides_the_order() -> None:
    sides, scores = _quiet(16)
    for anchor, confidence in ((0, 0.4), (5, 0.299), (9, 0.9)):
        _distance(sides, anchor, 16, 0, 0, 1, 1)
        scores[2, anchor] = np.log(confidence / (1 - confidence))
    rows = find_boxes(RawOutput(sides, scores), _YOLO8, _SHAPE, _LIMITS)
    np.testing.assert_allclose(rows[:, 4], [0.9, 0.4], rtol=1e-5)


def test_only_boxes_of_one_class_suppress_each_other() -> None:
    sides, scores = _quiet(16)
    for anchor in (0, 1, 2):
        _distance(sides, anchor, 16, anchor, 0, 3 - anchor, 1)
    scores[0, 0], scores[0, 1], scores[1, 2] = 2.0, 1.0, 0.5
    rows = find_boxes(RawOutput(sides, scores), _YOLO8, _SHAPE, _LIMITS)
    assert rows[:, 5].tolist() == [0, 1]
    assert len({tuple(row[:4]) for row in rows}) == 1, "all three were the same box"


def test_a_head_without_suppression_may_give_one_box_two_classes() -> None:
    sides, scores = _quiet(1)
    scores[0, 4], scores[2, 4], scores[1, 7] = 1.0, 0.2, 0.6
    rows = find_boxes(RawOutput(sides, scores), _YOLO26, _SHAPE, _LIMITS)
    assert rows[:, 5].tolist() == [0, 1, 2]


def test_no_more_than_the_limit_come_back_and_they_are_the_best() -> None:
    for head in (_YOLO8, _YOLO26):
        sides, scores = _quiet(head.bins)
        _distance(sides, slice(None), head.bins, 0, 0, 1, 1)
        scores[0] = np.linspace(0, 3, _ANCHORS)
        rows = find_boxes(RawOutput(sides, scores), head, _SHAPE, Limits(0.3, 0.7, 5))
        np.testing.assert_allclose(rows[:, 4], 1 / (1 + np.exp(-scores[0, -5:][::-1])), rtol=1e-5)


def test_an_empty_picture_has_no_boxes() -> None:
    for head in (_YOLO8, _YOLO26):
        assert find_boxes(RawOutput(*_quiet(head.bins)), head, _SHAPE, _LIMITS).shape == (0, 6)


@given(
    st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2), max_size=12),
    st.sampled_from([0.3, 0.45, 0.7]),
)
def test_suppression_keeps_each_box_that_no_kept_better_one_overlaps(
    boxes: list[tuple[int, int, int, int]], limit: float
) -> None:
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
    kept = suppress(corners, limit).tolist()
    for index in range(len(boxes)):
        covered = any(_iou(corners[better], corners[index]) > limit for better in kept if better < index)
        assert (index in kept) is not covered


def _iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_a_mask_counts_only_inside_its_box() -> None:
    prototypes = np.full((1, 16, 24), -1.0, np.float32)
    prototypes[0, 5, 5] = 3.0  # pixels 20 to 23 of both axes
    corners = np.array([(16, 16, 30, 30), (40, 40, 60, 60), (25.2, 16, 25.8, 30), (0, 0, 0, 0)], np.float32)
    assert visible(np.ones((1, 4), np.float32), prototypes, corners, _SHAPE).tolist() == [True, False, False, False]
