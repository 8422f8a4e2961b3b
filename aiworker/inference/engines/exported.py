"""YOLO from an exported network: what OpenVINO and ONNX Runtime have in common. Used in the child only.

The child reads the network from disk and never loads torch; see `exports` for how it gets there. What the network says
is turned into boxes by `heads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from aiworker.inference.engines.exports import NETWORK, Export, ensure_export
from aiworker.inference.engines.heads import Floats, Limits, RawOutput, find_boxes
from aiworker.inference.engines.letterbox import boxes_of, prepare
from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

Forward = Callable[[NDArray[np.uint8]], list[Floats]]
"""(pictures, h, w, 3) in, what `RawOutput` describes out, valid until the next call."""


class ExportedEngine:
    """YOLOv8, YOLO11 and YOLO26, detection or segmentation, on a CPU. `open_network` is the library's part."""

    def __init__(self, spec: ChildSpec) -> None:
        if spec.device not in ("auto", "cpu"):
            raise ValueError(f"{type(self).__name__} serves CPUs here, not {spec.device}")
        self._spec = spec
        self._limits = Limits(spec.confidence, spec.iou, spec.max_detections)
        self._opened: tuple[Export, Forward] | None = None

    def open_network(self, file: Path) -> Forward:
        """Raises what the library raises, and ValueError for a precision that it does not have here."""
        raise NotImplementedError

    def load(self) -> None:
        """Raises FileNotFoundError, ExportFailed, and what `open_network` raises."""
        export = ensure_export(self._spec.weights, "onnx", self._spec.cache_dir)
        self._opened = export, self.open_network(export.folder / NETWORK)

    def warm_up(self) -> None:
        size = self._spec.image_size
        self.detect([Prepared(np.zeros((size, size, 3), np.uint8), size, size)])

    @property
    def pass_size(self) -> int:
        """A CPU gains nothing from more: the time per picture is the same, and the first answer comes later."""
        return 1

    @property
    def reader(self) -> None:
        """A CPU has none."""

    @property
    def queue(self) -> None:
        """The CPU is the thread's own."""

    @property
    def names(self) -> Mapping[int, str]:
        return self._loaded[0].head.names

    def prepare(self, picture: Picture) -> Prepared:
        return prepare(picture, self._spec.image_size, max(self._loaded[0].head.strides))

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        head = self._loaded[0].head
        batch = np.stack([cast("NDArray[np.uint8]", image.pixels) for image in images])
        outputs = self.forward(batch)
        shape = (batch.shape[1], batch.shape[2])
        return [
            boxes_of(find_boxes(RawOutput(*each), head, shape, self._limits), shape, image)
            for each, image in zip(zip(*outputs, strict=True), images, strict=True)
        ]

    def forward(self, batch: NDArray[np.uint8]) -> list[Floats]:
        """The bare network."""
        return self._loaded[1](batch)

    @property
    def _loaded(self) -> tuple[Export, Forward]:
        if self._opened is None:
            raise RuntimeError("load() comes first")
        return self._opened
