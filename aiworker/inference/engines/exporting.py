"""Writes one export: `python -m aiworker.inference.engines.exporting PARENT_PID WEIGHTS FORMAT FOLDER`.

A process of its own, so that the child that serves never holds torch's memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

# OpenVINO's converter reports its use to its maker, without asking, where this package is installed.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

from aiworker.inference.engines.exports import write_head  # noqa: E402
from aiworker.inference.engines.torch_engine import raw_network, write_tensorrt  # noqa: E402
from aiworker.inference.kernel import die_with  # noqa: E402


def main(arguments: list[str]) -> None:
    """Raises anything; the last line on stderr then says what."""
    parent, weights, kind, folder = int(arguments[0]), arguments[1], arguments[2], Path(arguments[3])
    die_with(parent)
    network, example, head = raw_network(weights)
    if kind == "openvino":
        from aiworker.inference.engines.openvino_engine import write_network  # noqa: PLC0415 - an extra

        write_network(network, example, folder)
    else:
        write_tensorrt(weights, folder)
    write_head(head, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
