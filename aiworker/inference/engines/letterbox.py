"""A picture as the model takes it: scaled with its aspect kept, padded to the stride. Used in the child only.

The numbers and pixels are those of ultralytics' `LetterBox(auto=True)` and `scale_boxes`, without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from aiworker.inference.interface import Box, Picture, Prepared

GREY = 114
Empty = Callable[[tuple[int, ...], type[np.uint8]], NDArray[np.uint8]]
"""An array of a shape and a type, whatever is in it."""
# A child has as many threads as it was given, and they belong to its engine.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a picture lies in the model's input, all in pixels of that input: (left, top) and (width, height) of the
    picture, and `shape`, the (h, w) of the whole with its grey border.
    """

    left: int
    top: int
    width: int
    height: int
    shape: tuple[int, int]


def fit(width: int, height: int, size: int, stride: int) -> Fit:
    """The longer side becomes `size`, the border no wider than it takes to reach a multiple of `stride`."""
    ratio = min(size / width, size / height)
    scaled_width, scaled_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
    # Halves go to the right and the bottom.
    pad_x, pad_y = (size - scaled_width) % stride / 2, (size - scaled_height) % stride / 2
    left, top = round(pad_x - 0.1), round(pad_y - 0.1)
    shape = (scaled_height + top + round(pad_y + 0.1), scaled_width + left + round(pad_x + 0.1))
    return Fit(left, top, scaled_width, scaled_height, shape)


def prepare(picture: Picture, size: int, stride: int, empty: Empty = np.empty) -> Prepared:
    """What the picture gives at full size, whatever scale it was decoded at, in memory that `empty` gives."""
    place = fit(picture.width, picture.height, size, stride)
    canvas = empty((*place.shape, 3), np.uint8)
    canvas.fill(GREY)
    inside = canvas[place.top : place.top + place.height, place.left : place.left + place.width]
    stored = (place.width, place.height) if picture.orientation <= 4 else (place.height, place.width)
    if picture.orientation == 1 and picture.pixels.shape[1::-1] != stored:
        # Straight into its place: one more megabyte, taken and given back each time, costs as much as the scaling.
        cv2.resize(picture.pixels, stored, dst=inside, interpolation=cv2.INTER_LINEAR)
        return Prepared(canvas, picture.width, picture.height)
    pixels = picture.pixels
    if pixels.shape[1::-1] != stored:
        pixels = np.asarray(cv2.resize(pixels, stored, interpolation=cv2.INTER_LINEAR), np.uint8)
    inside[:] = upright(pixels, picture.orientation)
    return Prepared(canvas, picture.width, picture.height)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """`pixels` as they were seen; `orientation` is EXIF's."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def boxes_of(rows: NDArray[np.float32], shape: tuple[int, int], image: Prepared) -> tuple[Box, ...]:
    """`rows` are (n, 6): x1, y1, x2, y2 in the model's input of (h, w) `shape`, confidence, class."""
    gain = min(shape[0] / image.height, shape[1] / image.width)
    height, width = max(round(image.height * gain), 1), max(round(image.width * gain), 1)
    left, top = round((shape[1] - width) / 2 - 0.1), round((shape[0] - height) / 2 - 0.1)
    corners = (rows[:, :4] - [left, top] * 2) / ([width / image.width, height / image.height] * 2)
    corners = corners.clip(0, [image.width, image.height] * 2)
    ordered = np.argsort(-rows[:, 4], kind="stable")
    return tuple(
        (int(kind), confidence, x1, y1, x2, y2)
        for (x1, y1, x2, y2), (confidence, kind) in zip(
            corners[ordered].tolist(), rows[ordered, 4:6].tolist(), strict=True
        )
    )
