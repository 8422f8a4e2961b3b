"""YOLO on OpenVINO, for CPUs. The only module that imports openvino, and it is imported in children only.

The child reads the exported network from disk and never loads torch; see `exports` for how it gets there. What the
network says is turned into boxes by `heads`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino.preprocess import PrePostProcessor

from aiworker.inference.engines.exports import Export, ensure_export
from aiworker.inference.engines.heads import Limits, RawOutput, find_boxes
from aiworker.inference.engines.letterbox import boxes_of, prepare
from aiworker.inference.engines.threefold import strays, write_threefold
from aiworker.inference.interface import Box, Picture, Prepared
from aiworker.inference.messages import ChildSpec

NETWORK = "network.xml"
_THREEFOLD = "threefold.xml"
_PRECISIONS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16, "bf16x3": openvino.Type.bf16}
_OFTEN = 8
_MOST_SHAPES = 2


class OpenVinoEngine:
    """YOLOv8, YOLO11 and YOLO26, detection or segmentation, in the spec's precision: fp32, bf16, or bf16x3, which is
    fp32 as `threefold` has it.

    One network serves all shapes, in fp32. Threefold ones are compiled for the first two shapes that come often, which
    takes half a second and 100 MB each: without a known shape OpenVINO rounds between the steps that make halves.
    """

    def __init__(self, spec: ChildSpec) -> None:
        if spec.device not in ("auto", "cpu"):
            raise ValueError(f"OpenVINO serves CPUs here, not {spec.device}")
        self._spec = spec
        self._limits = Limits(spec.confidence, spec.iou, spec.max_detections)
        self._core = openvino.Core()
        self._export: Export | None = None
        self._any_shape: Any = None
        self._fixed: dict[tuple[int, ...], Any] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()

    def load(self) -> None:
        """Raises FileNotFoundError, ExportFailed, and what OpenVINO raises."""
        can = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _PRECISIONS[self._spec.precision] == openvino.Type.bf16 and "BF16" not in can:
            raise ValueError("this CPU has no bf16")
        self._export = ensure_export(self._spec.weights, "openvino", self._spec.cache_dir)
        self._any_shape = self._compiled()
        if self._spec.precision == "bf16x3":
            # Not kept: shows before anybody is served that this OpenVINO computes it as it should.
            self._compiled((1, self._spec.image_size, self._spec.image_size, 3))

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
    def names(self) -> Mapping[int, str]:
        return self._loaded().head.names

    def prepare(self, picture: Picture) -> Prepared:
        return prepare(picture, self._spec.image_size, max(self._loaded().head.strides))

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        head = self._loaded().head
        batch = np.stack([image.pixels for image in images])
        outputs = self.forward(batch)
        shape = (batch.shape[1], batch.shape[2])
        return [
            boxes_of(find_boxes(RawOutput(*each), head, shape, self._limits), shape, image)
            for each, image in zip(zip(*outputs, strict=True), images, strict=True)
        ]

    def forward(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The bare network on (pictures, h, w, 3): what `RawOutput` describes, valid until the next call."""
        request = self._request_for(batch.shape) if self._spec.precision == "bf16x3" else self._any_shape
        return [*request.infer({0: batch}, share_inputs=True, share_outputs=True).values()]

    def _request_for(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._fixed and len(self._fixed) < _MOST_SHAPES:
            self._seen[shape] += 1
            if self._seen[shape] >= _OFTEN:
                self._fixed[shape] = self._compiled(shape)
        return self._fixed.get(shape, self._any_shape)

    def _compiled(self, shape: tuple[int, ...] | None = None) -> Any:
        """Threefold for pictures of one (pictures, h, w, 3) `shape`, else the plain network for all."""
        threefold = shape is not None
        network = self._core.read_model(self._loaded().folder / (_THREEFOLD if threefold else NETWORK))
        precision = _PRECISIONS[self._spec.precision]
        if shape is not None:
            network.reshape([shape[0], 3, *shape[1:3]])
        elif self._spec.precision == "bf16x3":
            precision = openvino.Type.f32
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self._spec.threads,
            "ENABLE_CPU_PINNING": self._spec.pinned,
        }
        compiled = self._core.compile_model(_taking_pixels(network, 1.0 if threefold else 255.0), "CPU", config)
        if threefold and (lossy := strays(compiled)):
            raise ValueError(f"this OpenVINO runs {len(lossy)} steps in bf16 that should not, {lossy[0]} first")
        return compiled.create_infer_request()

    def _loaded(self) -> Export:
        if self._export is None:
            raise RuntimeError("load() comes first")
        return self._export


def write_network(network: Any, example: Any, folder: Path) -> None:
    """Converts a torch module into `folder`, for any number of pictures of any size: in fp32, and threefold."""
    with contextlib.redirect_stdout(None):
        model = openvino.convert_model(network, example_input=example, input=[openvino.PartialShape([-1, 3, -1, -1])])
    openvino.save_model(model, folder / NETWORK, compress_to_fp16=False)
    write_threefold(model, folder / _THREEFOLD)


def _taking_pixels(network: Any, scale: float) -> Any:
    """The same network for (pictures, h, w, 3) uint8: the conversion runs inside, on the engine's own threads."""
    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if scale != 1.0:
        pixels.scale(scale)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    for index in range(len(network.outputs)):
        steps.output(index).tensor().set_element_type(openvino.Type.f32)
    return steps.build()
