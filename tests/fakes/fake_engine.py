"""An engine without a model, for real children: what it does is written in the picture's height.

Every other picture gets one box that spans it, of class 7 "thing".
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from aiworker.inference.interface import Answer, Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

KILLS_CHILD = 66
STOPS_CHILD = 67
PASS_FAILS = 68
SLOW = 69
SEGFAULTS = 70
NO_MEMORY = 71
BLINDS = 72
GROWS = 73
BREAKS = 76
HANGS = 74
SPINS = 75


def picture(height: int = 20, width: int = 30, colour: str = "olive") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


class FakeEngine:
    label = "fake"
    pass_size = 64
    reader = None
    queue = None
    names: Mapping[int, str] = {7: "thing"}

    def __init__(self, spec: ChildSpec) -> None:
        self.blind = self.broken = False
        self.grown: list[bytes] = []

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
        if SEGFAULTS in heights:
            ctypes.string_at(0)
        if HANGS in heights:
            time.sleep(600)
        if SPINS in heights:
            until = time.process_time() + 2.0
            while time.process_time() < until:
                pass
        if NO_MEMORY in heights:
            raise MemoryError
        if GROWS in heights:
            self.grown.append(b"x" * (100 << 20))
        self.broken = self.broken or BREAKS in heights
        if self.broken:
            raise RuntimeError("could not create a primitive")
        self.blind = self.blind or BLINDS in heights
        if self.blind:
            return [()] * len(images)
        if PASS_FAILS in heights:
            raise RuntimeError("no memory for this pass")
        if SLOW in heights:
            time.sleep(0.05)
        return [((7, 0.9, 0.0, 0.0, float(image.width), float(image.height)),) for image in images]


class QueueingEngine(FakeEngine):
    """Does its passes one after the other on a thread, as a card does."""

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.queue = self  # type: ignore[assignment]
        self.card = ThreadPoolExecutor(1, "card")

    def begin(self, images: Sequence[Prepared]) -> Answer:
        return _Queued(self.card.submit(self.detect, images))


class _Queued:
    def __init__(self, pass_: Future[list[tuple[Box, ...]]]) -> None:
        self.ready = pass_.done
        self.take = pass_.result


class BrokenEngine(FakeEngine):
    def load(self) -> None:
        raise ValueError("these weights are not weights")


class BlindEngine(FakeEngine):
    def load(self) -> None:
        self.blind = True


class SlowToLoad(FakeEngine):
    def load(self) -> None:
        time.sleep(1.0)


class DiesAtStart(FakeEngine):
    def warm_up(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class OutOfMemoryError(RuntimeError):
    """Named and derived as torch's is."""


class CrampedEngine(FakeEngine):
    """Fails as CUDA does: two pictures fit; and every third pass of one does not, as beside a neighbour that grows."""

    def load(self) -> None:
        self.alone = 0

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        self.alone += len(images) == 1
        if len(images) > 2 or (len(images) == 1 and self.alone % 3 == 0):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().detect(images)


class ModelEngine(FakeEngine):
    """Its only class is named for the file of weights, and weights called `broken` cannot be loaded."""

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.weights = Path(spec.weights).stem

    def load(self) -> None:
        if self.weights == "broken":
            raise ValueError("these weights are not weights")
        self.names = {7: self.weights}


class EditionEngine(FakeEngine):
    """The class of what it finds is the number that its file of weights holds."""

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.kind = int(Path(spec.weights).read_text())

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        return [tuple((self.kind, *rest) for _, *rest in boxes) for boxes in super().detect(images)]  # type: ignore[misc]


class StarvedEngine(FakeEngine):
    """Finds no memory for pictures of height SLOW until there is a file where its weights should be."""

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        self.relieved = Path(spec.weights)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        if SLOW in {image.height for image in images} and not self.relieved.exists():
            raise OutOfMemoryError("CUDA out of memory")
        return super().detect(images)
