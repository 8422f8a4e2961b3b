"""Writes one export: `python -m aiworker.inference.engines.exporting PARENT_PID WEIGHTS FORMAT FOLDER`.

A process of its own, so that the child that serves never holds torch's memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiworker.inference.engines.exports import NETWORK, write_head
from aiworker.inference.engines.torch_engine import raw_network, write_onnx, write_tensorrt
from aiworker.inference.kernel import die_with


def main(arguments: list[str]) -> None:
    """Raises anything; the last line on stderr then says what."""
    parent, weights, kind, folder = int(arguments[0]), arguments[1], arguments[2], Path(arguments[3])
    die_with(parent)
    network, example, head = raw_network(weights)
    if kind == "onnx":
        write_onnx(network, example, folder / NETWORK)
    else:
        write_tensorrt(weights, folder)
    write_head(head, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
