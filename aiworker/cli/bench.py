"""`aiworker bench`: hands over to the gate, which lives beside the package in a checkout and not in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aiworker.domain.errors import ConfigurationError

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_gate(arguments: Sequence[str], benchmarks: Path = _BENCHMARKS) -> None:
    """Becomes the gate's process. Raises ConfigurationError where there is no checkout."""
    if not (benchmarks / "gate" / "__main__.py").is_file():
        raise ConfigurationError(
            f"the gate is not part of the installed package: run `make bench` in a checkout (looked in {benchmarks})"
        )
    path = os.pathsep.join(part for part in (str(benchmarks), os.environ.get("PYTHONPATH", "")) if part)
    os.execve(sys.executable, [sys.executable, "-m", "gate", *arguments], os.environ | {"PYTHONPATH": path})  # noqa: S606
