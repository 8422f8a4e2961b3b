"""An engine without a model, for real children: what it does is written in the picture's height.

Every other picture gets one box that spans it, of class 7 "thing".
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

KILLS_CHILD = 66
STOPS_CHILD = 67
PASS_FAILS = 68
SLOW = 69


def picture(height: int = 20, width: int = 30, colour: str = "olive") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


class FakeEngine:
    label = "fake"
    pass_size = 64
    names: Mapping[int, str] = {7: "thing"}

    def __init__(self, spec: ChildSpec) -> None:
        pass

    def load(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def prepare(self, picture: Picture) -> Prepared:
        return Prepared(np.zeros((1, 1, 3), np.uint8), picture.width, picture.height)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        heights = {image.height for image in images}
        if KILLS_CHILD in heights:
            os.kill(os.getpid(), signal.SIGKILL)
        if STOPS_CHILD in heights:
            os.kill(os.getpid(), signal.SIGSTOP)
        if PASS_FAILS in heights:
            raise RuntimeError("no memory for this pass")
        if SLOW in heights:
            time.sleep(0.05)
        return [((7, 0.9, 0.0, 0.0, float(image.width), float(image.height)),) for image in images]


class BrokenEngine(FakeEngine):
    def load(self) -> None:
        raise ValueError("these weights are not weights")


class DiesAtStart(FakeEngine):
    def warm_up(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)
