"""YOLO on ONNX Runtime, for CPUs. The only module that imports onnxruntime, and it is imported in children only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aiworker.inference.engines.exported import ExportedEngine, Forward
from aiworker.inference.engines.heads import Floats

_ERRORS_ONLY = 3
_LEVEL = np.float32(1 / 255)


class OnnxEngine(ExportedEngine):
    """In fp32, which is all that it has on these CPUs."""

    @property
    def label(self) -> str:
        return "onnx-cpu-fp32"

    def open_network(self, file: Path) -> Forward:
        """Raises what ONNX Runtime raises, and ValueError for another precision than fp32."""
        if self._spec.precision != "fp32":
            raise ValueError(f"ONNX Runtime computes in fp32 here, not in {self._spec.precision}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = self._spec.threads
        # Threads that wait for work by spinning take it from the other child on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (given,) = (each.name for each in session.get_inputs())

        def forward(batch: NDArray[np.uint8]) -> list[Floats]:
            pixels = np.multiply(batch.transpose(0, 3, 1, 2), _LEVEL, order="C", dtype=np.float32)
            outputs: list[Floats] = session.run(None, {given: pixels})
            return outputs

        return forward
