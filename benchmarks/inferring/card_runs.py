"""What runs beside or without the pool on a card, each in a process of its own. Prints one JSON line.

python -m inferring.card_runs curve ENGINE WEIGHTS DEVICE SIZES PHOTO     ms and VRAM of a batch of each size
python -m inferring.card_runs decoding PROCESSES THREADS SECONDS PHOTO    images/s that the cores decode and scale
python -m inferring.card_runs unit DEVICE SECONDS PHOTO                   images/s that its JPEG unit decodes and scales
python -m inferring.card_runs predict WEIGHTS DEVICE SECONDS PHOTO        images/s of YOLO.predict, one by one
python -m inferring.card_runs hog DEVICE STEP_MB                          takes a step for each line on stdin
"""

from __future__ import annotations

import importlib
import io
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from aiworker.inference.child.decode import decode, plain_jpeg
from aiworker.inference.engines.letterbox import prepare
from aiworker.inference.messages import MAX_BATCH, ChildSpec

_REPEATS = 20
_LEAST_MB = 8


def curve(engine: str, weights: str, device: str, sizes: str, photo: str) -> dict[str, list[float]]:
    """By batch size: median milliseconds of the bare network, of a whole pass (pictures to boxes), and the peak of
    memory in MB; 0 for an engine that is no network.
    """
    module, _, factory = engine.partition(":")
    runner = getattr(importlib.import_module(module), factory)(ChildSpec(weights, engine, device))
    runner.load()
    runner.warm_up()
    prepared = runner.prepare(decode(Path(photo).read_bytes(), 10**8))
    torch = sys.modules.get("torch")
    found = {}
    for size in map(int, sizes.split(",")):
        if torch is not None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        whole = _median_ms(lambda size=size: runner.detect([prepared] * size))  # type: ignore[misc]
        if torch is None:
            bare = 1000 * runner.seconds(size)
        else:
            batch = torch.from_numpy(np.stack([prepared.pixels] * size)).to(device)

            def forward(batch: object = batch) -> None:
                with torch.inference_mode():
                    runner.forward(batch)
                torch.cuda.synchronize()

            bare = _median_ms(forward)
        found[str(size)] = [bare, whole, torch.cuda.max_memory_reserved() / 2**20 if torch is not None else 0.0]
    return found


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def decoding(processes: str, threads: str, seconds: str, photo: str) -> float:
    """What the cores could give a card that takes no time."""
    with ProcessPoolExecutor(int(processes), multiprocessing.get_context("spawn")) as pool:
        counts = pool.map(_decode_for, [(int(threads), float(seconds), photo)] * int(processes))
        return sum(counts)


def _decode_for(what: tuple[int, float, str]) -> float:
    threads, seconds, photo = what
    image, ends = Path(photo).read_bytes(), time.monotonic() + seconds

    def run(_: int) -> int:
        done = 0
        while time.monotonic() < ends:
            prepare(decode(image, 10**8), 640, 32)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads))) / seconds


def unit(device: str, seconds: str, photo: str) -> float:
    """0 where the card has none, or nothing to read from it is installed."""
    import torch  # noqa: PLC0415

    try:
        from aiworker.inference.engines.card_reader import CardReader  # noqa: PLC0415

        reader = CardReader(torch.device(device), 640, 32)
    except (ImportError, RuntimeError):
        return 0.0
    image, done = Path(photo).read_bytes(), 0
    begun = time.monotonic()
    while (spent := time.monotonic() - begun) < float(seconds):
        jpegs = [plain_jpeg(image, 10**8) for _ in range(MAX_BATCH)]
        done += len(reader.read([jpeg for jpeg in jpegs if jpeg]))
    return done / spent


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
    """Holds what it took until stdin ends; where a whole step is not to be had, it takes what there is."""
    import torch  # noqa: PLC0415

    held = []
    print("ready", flush=True)
    for _ in sys.stdin:
        left = size = int(step_mb)
        while left >= _LEAST_MB and size >= _LEAST_MB:
            try:
                held.append(torch.empty(min(left, size) << 20, dtype=torch.uint8, device=device))
                left -= size
            except torch.cuda.OutOfMemoryError:
                size //= 2
    return len(held)


if __name__ == "__main__":
    what = {"curve": curve, "decoding": decoding, "unit": unit, "predict": predict, "hog": hog}[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))  # type: ignore[operator]
