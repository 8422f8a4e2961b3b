"""Line charts as inline SVG: no script, no font, no file beside the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 720, 272
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 24, 34
_COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#be123c", "#334155", "#0f766e")


def ticks(most: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to at least `most`."""
    if most <= 0:
        return [0.0, 1.0]
    raw = most / about
    power = 10 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    count = int(most / step + 0.999)
    return [round(step * number, 10) for number in range(count + 1)]


def line_chart(
    series: Mapping[str, Points],
    *,
    x_title: str,
    y_title: str,
    marks: Sequence[tuple[float, str]] = (),
    limit: float | None = None,
) -> str:
    """`marks` are vertical lines with a name each, at an x; `limit` is a dashed line at a y."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return "<p>nothing to draw</p>"
    xs = ticks(max(x for points in drawn.values() for x, _ in points))
    ys = ticks(max(max((y for points in drawn.values() for _, y in points), default=0.0), limit or 0.0))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(x: float) -> float:
        return _LEFT + (right - _LEFT) * x / xs[-1]

    def y_of(y: float) -> float:
        return bottom - (bottom - _TOP) * y / ys[-1]

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_title)} over {escape(x_title)}">']
    for y in ys:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}">{y:g}</text>')
    for x in xs:
        parts.append(f'<text class="tick" text-anchor="middle" x="{x_of(x):.1f}" y="{bottom + 16}">{x:g}</text>')
    for x, name in marks:
        parts.append(f'<line class="mark" x1="{x_of(x):.1f}" x2="{x_of(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        where = f'x="{x_of(x) + 3:.1f}" y="{_TOP + 9}" transform="rotate(90 {x_of(x) + 3:.1f} {_TOP + 9})"'
        parts.append(f'<text class="name" {where}>{escape(name)}</text>')
    if limit is not None:
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{y_of(limit):.1f}" y2="{y_of(limit):.1f}"/>')
    for number, (name, points) in enumerate(drawn.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
        at = _TOP + 12 + 16 * number
        parts.append(f'<rect x="{right + 10}" y="{at - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text class="name" x="{right + 25}" y="{at + 1}">{escape(name)}</text>')
    parts.append(
        f'<text class="tick" text-anchor="middle" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 2}">{x_title}</text>'
    )
    parts.append(f'<text class="tick" x="4" y="12">{escape(y_title)}</text></svg>')
    return "".join(parts)


def cumulative(values: Sequence[float], most_points: int = 200) -> list[tuple[float, float]]:
    """The share (in per cent) of `values` at or below each of them."""
    ordered = sorted(values)
    step = max(1, len(ordered) // most_points)
    kept = [*range(0, len(ordered), step), len(ordered) - 1] if ordered else []
    return [(ordered[index], 100 * (index + 1) / len(ordered)) for index in dict.fromkeys(kept)]
