"""What runs beside or without the pool on a card, each in a process of its own. Prints one JSON line.

python -m inferring.card_runs curve ENGINE WEIGHTS DEVICE SIZES PHOTO     ms and VRAM of a pass of each size
python -m inferring.card_runs predict WEIGHTS DEVICE SECONDS PHOTO        images/s of YOLO.predict, one by one
python -m inferring.card_runs hog DEVICE STEP_MB                          takes a step for each line on stdin
"""

from __future__ import annotations

import importlib
import io
import json
import statistics
import sys
import time
from pathlib import Path

from PIL import Image

from aiworker.inference.child.decode import decode
from aiworker.inference.messages import ChildSpec

_REPEATS = 10


def curve(engine: str, weights: str, device: str, sizes: str, photo: str) -> dict[str, list[float]]:
    """By batch size: median milliseconds and the peak of memory in MB, 0 where torch does not count it."""
    module, _, factory = engine.partition(":")
    runner = getattr(importlib.import_module(module), factory)(ChildSpec(weights, engine, device))
    runner.load()
    runner.warm_up()
    prepared = runner.prepare(decode(Path(photo).read_bytes(), 10**8))
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    found = {}
    for size in map(int, sizes.split(",")):
        runner.detect([prepared] * size)
        if cuda is not None and cuda.is_available():
            cuda.reset_peak_memory_stats()
        times = []
        for _ in range(_REPEATS):
            begun = time.perf_counter()
            runner.detect([prepared] * size)
            times.append(1000 * (time.perf_counter() - begun))
        peak = cuda.max_memory_reserved() / 2**20 if cuda is not None and cuda.is_available() else 0.0
        found[str(size)] = [statistics.median(times), peak]
    return found


def predict(weights: str, device: str, seconds: str, photo: str) -> float:
    """What users run today."""
    from ultralytics import YOLO  # type: ignore[attr-defined]  # noqa: PLC0415

    model, image = YOLO(weights), Path(photo).read_bytes()
    for _ in range(3):
        model.predict(Image.open(io.BytesIO(image)), device=device, verbose=False)
    done, begun = 0, time.monotonic()
    while (spent := time.monotonic() - begun) < float(seconds):
        model.predict(Image.open(io.BytesIO(image)), device=device, verbose=False)
        done += 1
    return done / spent


def hog(device: str, step_mb: str) -> int:
    """Holds what it took until stdin ends; goes on when the card is full."""
    import torch  # noqa: PLC0415

    held = []
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            held.append(torch.empty(int(step_mb) << 20, dtype=torch.uint8, device=device))
        except torch.cuda.OutOfMemoryError:
            continue
    return len(held)


if __name__ == "__main__":
    what = {"curve": curve, "predict": predict, "hog": hog}[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))  # type: ignore[operator]
