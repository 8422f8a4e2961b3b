"""YOLO on OpenVINO, for CPUs. The only module that imports openvino, and it is imported in children only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
from openvino.preprocess import PrePostProcessor

from aiworker.inference.engines.exported import ExportedEngine, Forward

_KEPT_STEPS = 800
"""Compiled steps of the network, of all shapes together: of those last seen, as photos come. OpenVINO by itself keeps
every shape that there is, and a child then takes up to 500 MB."""
_PRECISIONS = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}


class OpenVinoEngine(ExportedEngine):
    """In the spec's precision: fp32 or bf16."""

    @property
    def label(self) -> str:
        return f"openvino-cpu-{self._spec.precision}"

    def open_network(self, file: Path) -> Forward:
        """Raises what OpenVINO raises, and ValueError where the CPU has no bf16."""
        core = openvino.Core()
        if self._spec.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("this CPU has no bf16")
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._spec.precision],
            "INFERENCE_NUM_THREADS": self._spec.threads,
            "ENABLE_CPU_PINNING": self._spec.pinned,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_STEPS,
        }
        request = core.compile_model(_taking_pixels(core.read_model(file)), "CPU", config).create_infer_request()
        return lambda batch: [*request.infer({0: batch}, share_inputs=True, share_outputs=True).values()]


def _taking_pixels(network: Any) -> Any:
    """The same network for (pictures, h, w, 3) uint8: the conversion runs inside, on the engine's own threads."""
    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    for index in range(len(network.outputs)):
        steps.output(index).tensor().set_element_type(openvino.Type.f32)
    return steps.build()
