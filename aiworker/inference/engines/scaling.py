"""Scaling on a card, pixel for pixel what OpenCV's `INTER_LINEAR` makes of bytes on the CPU. Imported on a card only.

OpenCV weighs the two neighbours in 1/2048ths, rounded half to even, across first and then down, and cuts bits off in
between; so does this. Source: the linear resize of OpenCV 4 for 8-bit pictures (modules/imgproc/src/resize.cpp), held
against it for sizes from 1 x 50 to 4032 x 3024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

_ACROSS, _DOWN = 128, 8


class Scaling(NamedTuple):
    """RGB bytes at the address `source`, of so many pixels and so many bytes from row to row, and where they go: to the
    address `target`, with steps of so many bytes from row to row and from pixel to pixel, which may be negative.
    """

    source: int
    from_height: int
    from_width: int
    from_row: int
    target: int
    height: int
    width: int
    row: int
    pixel: int


def scale(pictures: Sequence[Scaling], device: torch.device) -> None:
    """All at once, since a card that several processes share loses time with every launch. Queued, not waited for."""
    width, height = max(each.width for each in pictures), max(each.height for each in pictures)
    table = torch.tensor(pictures, dtype=torch.int64).to(device)
    grid = (triton.cdiv(3 * width, _ACROSS), triton.cdiv(height, _DOWN), len(pictures))
    _scale[grid](table, ACROSS=_ACROSS, DOWN=_DOWN)


@triton.jit
def _scale(table, ACROSS: tl.constexpr, DOWN: tl.constexpr):
    entry = table + tl.program_id(2) * 9
    source, target = tl.load(entry).to(tl.pointer_type(tl.uint8)), tl.load(entry + 4).to(tl.pointer_type(tl.uint8))
    from_height, from_width = tl.load(entry + 1).to(tl.int32), tl.load(entry + 2).to(tl.int32)
    height, width = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
    from_row, row, pixel = tl.load(entry + 3), tl.load(entry + 7), tl.load(entry + 8)
    place = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    y = tl.program_id(1) * DOWN + tl.arange(0, DOWN)
    x, channel = place // 3, place % 3
    left, right, left_weight, right_weight = _neighbours(x, from_width, width, STILL_AT_EDGES=True)
    above, below, upper_weight, lower_weight = _neighbours(y, from_height, height, STILL_AT_EDGES=False)
    inside = (x[None, :] < width) & (y[:, None] < height)
    left_at, right_at = (left * 3 + channel)[None, :], (right * 3 + channel)[None, :]
    upper_row, lower_row = source + above[:, None] * from_row, source + below[:, None] * from_row
    upper = _across(upper_row + left_at, upper_row + right_at, left_weight[None, :], right_weight[None, :], inside)
    lower = _across(lower_row + left_at, lower_row + right_at, left_weight[None, :], right_weight[None, :], inside)
    parts = ((upper_weight[:, None] * (upper >> 4)) >> 16) + ((lower_weight[:, None] * (lower >> 4)) >> 16)
    to = target + y[:, None] * row + x[None, :] * pixel + channel[None, :]
    tl.store(to, ((parts + 2) >> 2).to(tl.uint8), mask=inside)


@triton.jit
def _across(left_at, right_at, left_weight, right_weight, inside):
    left = tl.load(left_at, mask=inside, other=0).to(tl.int32)
    return left * left_weight + tl.load(right_at, mask=inside, other=0).to(tl.int32) * right_weight


@triton.jit
def _neighbours(at, count_from, count, STILL_AT_EDGES: tl.constexpr):
    # In OpenCV's own order and precision: double, then float.
    place = ((at.to(tl.float64) + 0.5) * (count_from.to(tl.float64) / count.to(tl.float64)) - 0.5).to(tl.float32)
    first = tl.floor(place)
    share, index = place - first, first.to(tl.int32)
    if STILL_AT_EDGES:
        share = tl.where((index < 0) | (index >= count_from - 1), 0.0, share)
    before = tl.minimum(tl.maximum(index, 0), count_from - 1)
    after = tl.minimum(tl.maximum(index + 1, 0), count_from - 1)
    return before, after, _in_2048ths(1.0 - share), _in_2048ths(share)


@triton.jit
def _in_2048ths(share):
    exact = share * 2048.0
    rounded = tl.floor(exact + 0.5)
    tied_to_odd = (rounded - exact == 0.5) & (rounded * 0.5 != tl.floor(rounded * 0.5))
    return (rounded - tied_to_odd.to(tl.float32)).to(tl.int32)
