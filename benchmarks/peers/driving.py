"""How the process of a contestant is told what to measure and says what it found. Knows nothing of either."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

Work = Callable[..., Coroutine[Any, Any, Any]]
Run = Callable[[Coroutine[Any, Any, Any]], Any]


def drive(work: Mapping[str, Work], run: Run = asyncio.run, *, leave: bool = False) -> None:
    """Command line `WHAT JSON`: runs `work[WHAT]` with the keywords in JSON and prints its answer as JSON.

    With `leave` the process ends at once, whatever threads its libraries have left running.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("what", choices=sorted(work))
    parser.add_argument("how", type=json.loads)
    options = parser.parse_args()
    print(json.dumps(run(work[options.what](**options.how))), flush=True)
    if leave:
        os._exit(0)


def cpu_s() -> float:
    """Processor time of this process until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_mb() -> float:
    """Of this process. Linux only."""
    status = open("/proc/self/status").read()  # noqa: PTH123, SIM115 - pathlib would be measured too
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
