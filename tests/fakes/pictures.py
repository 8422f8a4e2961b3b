"""Small pictures that decode."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image


def picture(width: int = 96, height: int = 72, kind: str = "jpeg", mode: str = "RGB", **options: Any) -> bytes:
    out = BytesIO()
    Image.new(mode, (width, height), "orange" if mode not in ("I;16", "L") else 40_000 % 256).save(out, kind, **options)
    return out.getvalue()
