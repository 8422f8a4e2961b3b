"""YOLO on OpenVINO, for CPUs. The only module that imports openvino, and it is imported in children only.

The child reads the exported network from disk and never loads torch; see `exports` for how it gets there. What the
network says is turned into boxes by `heads`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from aiworker.inference.engines.exports import Export, ensure_export
from aiworker.inference.engines.heads import Limits, RawOutput, find_boxes
from aiworker.inference.engines.letterbox import boxes_of, prepare
from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

NETWORK = "network.xml"
_PRECISIONS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}


class OpenVinoEngine:
    """YOLOv8, YOLO11 and YOLO26, detection or segmentation, in the spec's precision: fp32 or bf16."""

    def __init__(self, spec: ChildSpec) -> None:
        if spec.device not in ("auto", "cpu"):
            raise ValueError(f"OpenVINO serves CPUs here, not {spec.device}")
        self._spec = spec
        self._limits = Limits(spec.confidence, spec.iou, spec.max_detections)
        self._export: Export | None = None
        self._request: Any = None

    def load(self) -> None:
        """Raises FileNotFoundError, ExportFailed, and what OpenVINO raises."""
        self._export = ensure_export(self._spec.weights, "openvino", self._spec.cache_dir)
        core = openvino.Core()
        if self._spec.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("this CPU has no bf16")
        network = _taking_pixels(core.read_model(self._export.folder / NETWORK))
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._spec.precision],
            "INFERENCE_NUM_THREADS": self._spec.threads,
            "ENABLE_CPU_PINNING": self._spec.pinned,
        }
        self._request = core.compile_model(network, "CPU", config).create_infer_request()

    def warm_up(self) -> None:
        size = self._spec.image_size
        self.detect([Prepared(np.zeros((size, size, 3), np.uint8), size, size)])

    @property
    def label(self) -> str:
        return f"openvino-cpu-{self._spec.precision}"

    @property
    def pass_size(self) -> int:
        """A CPU gains nothing from more: the time per picture is the same, and the first answer comes later."""
        return 1

    @property
    def reader(self) -> None:
        """A CPU has none."""

    @property
    def names(self) -> Mapping[int, str]:
        return self._loaded().head.names

    def prepare(self, picture: Picture) -> Prepared:
        return prepare(picture, self._spec.image_size, max(self._loaded().head.strides))

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        head = self._loaded().head
        batch = np.stack([cast("NDArray[np.uint8]", image.pixels) for image in images])
        outputs = self.forward(batch)
        shape = (batch.shape[1], batch.shape[2])
        return [
            boxes_of(find_boxes(RawOutput(*each), head, shape, self._limits), shape, image)
            for each, image in zip(zip(*outputs, strict=True), images, strict=True)
        ]

    def forward(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The bare network on (pictures, h, w, 3): what `RawOutput` describes, valid until the next call."""
        return [*self._request.infer({0: batch}, share_inputs=True, share_outputs=True).values()]

    def _loaded(self) -> Export:
        if self._export is None:
            raise RuntimeError("load() comes first")
        return self._export


def write_network(network: Any, example: Any, folder: Path) -> None:
    """Converts a torch module into `folder`, in fp32, for any number of pictures of any size."""
    with contextlib.redirect_stdout(None):
        model = openvino.convert_model(network, example_input=example, input=[openvino.PartialShape([-1, 3, -1, -1])])
    openvino.save_model(model, folder / NETWORK, compress_to_fp16=False)


def _taking_pixels(network: Any) -> Any:
    """The same network for (pictures, h, w, 3) uint8: the conversion runs inside, on the engine's own threads."""
    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    for index in range(len(network.outputs)):
        steps.output(index).tensor().set_element_type(openvino.Type.f32)
    return steps.build()
