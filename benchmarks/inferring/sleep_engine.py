"""An engine that sleeps a + b*n for a batch of n, so that what is measured is the scheduling and not the kernel."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

ENGINE = "inferring.sleep_engine:SleepEngine"
BODY_BYTES = 100_000


def weights(a: float, b: float, cap: int) -> str:
    """What the engine reads its times from, seconds, in place of a file."""
    return f"{a},{b},{cap}"


def picture() -> bytes:
    """A picture that costs nothing to decode and 100 kB to carry."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "olive").save(buffer, "JPEG")
    return buffer.getvalue().ljust(BODY_BYTES, b"\0")


class SleepEngine:
    label = "sleep"
    names: Mapping[int, str] = {0: "thing"}
    reader = None
    queue = None

    def __init__(self, spec: ChildSpec) -> None:
        a, b, cap = spec.weights.split(",")
        self._a, self._b, self.pass_size = float(a), float(b), int(cap)

    def load(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def prepare(self, picture: Picture) -> Prepared:
        return Prepared(np.zeros((1, 1, 3), np.uint8), picture.width, picture.height)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        time.sleep(self._a + self._b * len(images))
        return [((0, 0.9, 0.0, 0.0, 1.0, 1.0),) for _ in images]
