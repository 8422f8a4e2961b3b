"""Draws what was found onto the photo."""

from __future__ import annotations

import colorsys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

_GOLDEN = 0.618


def draw_detections(photo: bytes, detections: list[dict[str, Any]], path: Path) -> Path:
    """Writes `photo`, upright, with a labelled box for each detection as PNG to `path`."""
    with Image.open(BytesIO(photo)) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    brush = ImageDraw.Draw(picture)
    size = max(14, min(picture.size) // 28)
    font = ImageFont.load_default(size)
    for found in sorted(detections, key=lambda item: float(item["confidence"])):
        colour = _colour(found["name"])
        left, top, right, bottom = found["box"]
        brush.rectangle((left, top, right, bottom), outline=colour, width=max(2, size // 7))
        text = f"{found['name_pt']} {found['confidence']:.0%}"
        text_left, text_top, text_right, text_bottom = brush.textbbox((0, 0), text, font=font)
        high, wide = text_bottom - text_top + size // 2, text_right - text_left + size // 2
        y = top - high if top >= high else top
        x = max(0, min(left, picture.width - wide))
        brush.rectangle((x, y, x + wide, y + high), fill=colour)
        brush.text((x + size // 4, y + size // 4 - text_top), text, fill="white", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")
    return path


def _colour(name: str) -> tuple[int, int, int]:
    hue = (sum(name.encode()) * _GOLDEN) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.75)
    return int(red * 255), int(green * 255), int(blue * 255)
