"""A card that is not there: a thread that takes a + b*n for each pass of its queue, and fails as CUDA does once a file
says memory is gone. What Python does around a pass takes time too.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aiworker.inference.interface import Answer, Box, Jpeg, PassQueue, Picture, Prepared, Reader
from aiworker.inference.messages import ChildSpec

ENGINE = "inferring.pretend_card:PretendEngine"
MODEL_MB, IMAGE_MB, CARD_MB = 200.0, 60.0, 4000.0
A_S, B_S = 0.010, 0.0005
PYTHON_S = 0.010


class PretendEngine:
    """`weights` names the file that holds the megabytes which others have taken."""

    label = "pretend-cuda-fp16"
    names: Mapping[int, str] = {0: "thing"}
    pass_size = 32

    def __init__(self, spec: ChildSpec) -> None:
        self._taken = Path(spec.weights)
        self._passes: queue.SimpleQueue[_Pass] = queue.SimpleQueue()

    @property
    def queue(self) -> PassQueue:
        return self

    @staticmethod
    def seconds(size: int) -> float:
        """What the card alone takes for a pass."""
        return A_S + B_S * size

    def load(self) -> None:
        threading.Thread(target=self._run, name="card", daemon=True).start()

    def _run(self) -> None:
        while True:
            each = self._passes.get()
            time.sleep(self.seconds(each.size))
            each.through.set()

    def warm_up(self) -> None:
        self.detect([Prepared(np.zeros((1, 1, 3), np.uint8), 1, 1)])

    def prepare(self, picture: Picture) -> Prepared:
        return Prepared(np.zeros((1, 1, 3), np.uint8), picture.width, picture.height)

    @property
    def reader(self) -> Reader:
        return self

    def read(self, jpegs: Sequence[Jpeg]) -> list[Prepared | None]:
        return [Prepared(np.zeros((1, 1, 3), np.uint8), jpeg.width, jpeg.height) for jpeg in jpegs]

    def begin(self, images: Sequence[Prepared]) -> Answer:
        needed = MODEL_MB + IMAGE_MB * len(images)
        if needed > CARD_MB - float(self._taken.read_text() or 0):
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        each = _Pass(len(images))
        self._passes.put(each)
        return each

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        return self.begin(images).take()


class _Pass:
    def __init__(self, size: int) -> None:
        self.size = size
        self.through = threading.Event()

    def ready(self) -> bool:
        return self.through.is_set()

    def take(self) -> list[tuple[Box, ...]]:
        self.through.wait()
        time.sleep(PYTHON_S)
        return [((0, 0.9, 0.0, 0.0, 1.0, 1.0),)] * self.size
