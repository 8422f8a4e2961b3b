"""The engine's bare network, nothing around it: WEIGHTS ENGINE CACHE THREADS SECONDS PRECISION PHOTO...

Prints passes a second and the CPU milliseconds of one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from aiworker.inference.child.decode import decode
from aiworker.inference.child.serving import start_engine
from aiworker.inference.engines.exported import ExportedEngine
from aiworker.inference.messages import ChildSpec


def main(weights: str, engine_name: str, cache: str, threads: str, seconds: str, precision: str, *photos: str) -> None:
    """Says "ready", waits for a line on stdin, and then runs."""
    spec = ChildSpec(weights, engine_name, "cpu", precision, int(threads), cache_dir=cache)
    engine = start_engine(spec)
    assert isinstance(engine, ExportedEngine)
    batches = [np.asarray(engine.prepare(decode(Path(photo).read_bytes(), 10**8)).pixels)[None] for photo in photos]
    for batch in batches:
        engine.forward(batch)
    print("ready", flush=True)
    sys.stdin.readline()
    done, begun, cpu = 0, time.monotonic(), time.process_time()
    while (spent := time.monotonic() - begun) < float(seconds):
        engine.forward(batches[done % len(batches)])
        done += 1
    print(done / spent, 1000 * (time.process_time() - cpu) / done)


if __name__ == "__main__":
    main(*sys.argv[1:])
