"""A phone's 12 MP JPEG: bytes to what the model takes, against decoding it at full size as others do."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from beside import Bar
from PIL import Image

from aiworker.inference.child.decode import decode
from aiworker.inference.engines.letterbox import prepare

_SIZE = (4032, 3024)


def measure(photo: Path, rounds: int) -> list[Bar]:
    """Alternating; medians."""
    jpeg = _phone_photo(photo)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: prepare(decode(jpeg, 50_000_000), 640, 32),
        "pillow": lambda: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        "opencv": lambda: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - begun))
    ms = {name: statistics.median(each) for name, each in times.items()}
    return [
        Bar("12 MP JPEG, decode + letterbox", ms["ours"], "ms"),
        Bar("  decoding it at full size, Pillow", ms["pillow"], "ms"),
        Bar("  decoding it at full size, OpenCV", ms["opencv"], "ms"),
        Bar("decode + letterbox / Pillow at full size", ms["ours"] / ms["pillow"], "x", 0.35),
        Bar("decode + letterbox / OpenCV at full size", ms["ours"] / ms["opencv"], "x"),
    ]


def _phone_photo(photo: Path) -> bytes:
    """Enlarged to a phone's size, with its grain."""
    large = np.asarray(Image.open(photo).convert("RGB").resize(_SIZE, Image.Resampling.LANCZOS), np.int16)
    grain = np.random.default_rng(0).normal(0, 3, (*large.shape[:2], 1)).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray((large + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
