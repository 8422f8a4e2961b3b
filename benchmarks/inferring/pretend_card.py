"""A card that is not there: an engine that takes a + b*n, and fails as CUDA does once a file says memory is gone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

ENGINE = "inferring.pretend_card:PretendEngine"
MODEL_MB, IMAGE_MB, CARD_MB = 200.0, 60.0, 4000.0
A_S, B_S = 0.010, 0.0005


class PretendEngine:
    """`weights` names the file that holds the megabytes which others have taken."""

    label = "pretend-cuda-fp16"
    names: Mapping[int, str] = {0: "thing"}
    pass_size = 32
    reader = None

    def __init__(self, spec: ChildSpec) -> None:
        self._taken = Path(spec.weights)

    def load(self) -> None:
        pass

    def warm_up(self) -> None:
        self.detect([Prepared(np.zeros((1, 1, 3), np.uint8), 1, 1)])

    def prepare(self, picture: Picture) -> Prepared:
        return Prepared(np.zeros((1, 1, 3), np.uint8), picture.width, picture.height)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        needed = MODEL_MB + IMAGE_MB * len(images)
        if needed > CARD_MB - float(self._taken.read_text() or 0):
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        time.sleep(A_S + B_S * len(images))
        return [((0, 0.9, 0.0, 0.0, 1.0, 1.0),) for _ in images]
