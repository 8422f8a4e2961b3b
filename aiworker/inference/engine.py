"""YOLO on torch. The only module that imports torch and ultralytics, and it is imported in the child only.

ultralytics' `predict` is not used: it sets its own thread count, keeps two copies of the model, warms up through
torchvision, and its suppression step has a time limit after which the rest of a batch comes back empty.
See docs/adr/003-engines-without-torchvision.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data.augment import LetterBox
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import nms, ops

from aiworker.inference.interface import Box, Prepared
from aiworker.inference.messages import MAX_BATCH, ChildSpec


class TorchEngine:
    """YOLOv8, YOLO11 and YOLO26 detection weights (.pt), in fp32 on a CPU and fp16 on CUDA."""

    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._device = _device(spec.device)
        self._model: AutoBackend | None = None
        self._letterbox: LetterBox | None = None

    def load(self) -> None:
        """Raises FileNotFoundError, and what ultralytics raises for a file that is no checkpoint."""
        if not Path(self._spec.weights).is_file():
            raise FileNotFoundError(f"no weights at {self._spec.weights}")
        cuda = self._device.type == "cuda"
        # `end2end` None keeps the head that the checkpoint was made for: YOLO26 answers without suppression.
        model = AutoBackend(
            self._spec.weights,
            device=self._device,
            fp16=cuda,
            channels_last=True if cuda else None,
            verbose=False,
        )
        model.eval()
        if model.backend.model.task != "detect":
            raise ValueError(f"weights are for the task {model.backend.model.task!r}, not for detection")
        self._model = model
        self._letterbox = LetterBox(
            (self._spec.image_size, self._spec.image_size), auto=True, stride=int(model.backend.stride)
        )
        # Loading may change it, so this comes last.
        torch.set_num_threads(self._spec.threads)

    def warm_up(self) -> None:
        size = self._spec.image_size
        self.detect([Prepared(np.zeros((size, size, 3), np.uint8), size, size)])

    @property
    def label(self) -> str:
        return f"torch-{self._device.type}-{'fp16' if self._device.type == 'cuda' else 'fp32'}"

    @property
    def pass_size(self) -> int:
        """On a CPU the time per picture is the same for 1 to 8, but memory and the wait for the first answer grow."""
        return MAX_BATCH if self._device.type == "cuda" else 2

    @property
    def names(self) -> Mapping[int, str]:
        return dict(self._loaded().backend.names)

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        """Scaled to the model's size and padded to the stride, as ultralytics does for a single picture."""
        if self._letterbox is None:
            raise RuntimeError("load() comes first")
        height, width = image.shape[:2]
        return Prepared(np.asarray(self._letterbox(image=image), np.uint8), width, height)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        model = self._loaded()
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack([image.pixels for image in images])).to(self._device)
            batch = batch.permute(0, 3, 1, 2).contiguous()
            batch = (batch.half() if model.backend.fp16 else batch.float()).div_(255)
            found = nms.non_max_suppression(
                model(batch),
                self._spec.confidence,
                self._spec.iou,
                max_det=self._spec.max_detections,
                end2end=bool(model.backend.end2end),
                max_time_img=math.inf,
            )
            shape = (batch.shape[2], batch.shape[3])
            return [_boxes(each, shape, image) for each, image in zip(found, images, strict=True)]

    def _loaded(self) -> AutoBackend:
        if self._model is None:
            raise RuntimeError("load() comes first")
        return self._model


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {name} asked for, but torch sees no CUDA device")
    return device


def _boxes(rows: torch.Tensor, shape: tuple[int, int], image: Prepared) -> tuple[Box, ...]:
    """`rows` are (n, 6): x1, y1, x2, y2 in the letterboxed picture, confidence, class."""
    ops.scale_boxes(shape, rows[:, :4], (image.height, image.width))  # in place
    ordered = sorted(rows.tolist(), key=lambda row: -row[4])
    return tuple((int(kind), conf, x1, y1, x2, y2) for x1, y1, x2, y2, conf, kind in ordered)
