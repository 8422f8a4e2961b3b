"""What YOLO found on one image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detection:
    """One box. `box` is (x1, y1, x2, y2) in pixels of the upright image, `confidence` in 0..1."""

    class_id: int
    class_name: str
    confidence: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detections:
    """All boxes of one image, most confident first; `width` and `height` in pixels, upright (EXIF applied)."""

    items: tuple[Detection, ...]
    width: int
    height: int
    model: str
    engine: str
    batch_size: int
    inference_ms: float
