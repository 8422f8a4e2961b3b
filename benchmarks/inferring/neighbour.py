"""Detection beside a process that eats a core, and what the pool costs while nothing happens.

python -m inferring.neighbour [--quick] [--json FILE] [--check]        (in benchmarks/)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import uvloop
from beside import Bar, table_of
from rich.console import Console

from aiworker.cli.vision import vision_of
from aiworker.inference.pool import InferencePool
from aiworker.settings import load_settings
from aiworker.telemetry.logs import configure_logging
from aiworker.telemetry.metrics import Metrics
from inferring.load import offer

_RATE = 3.0
_SLO_S = 15.0
_EAT = "while True: pass"
_ROOT = Path(__file__).parents[2]
_PHOTO = _ROOT / "aiworker" / "cli" / "data" / "fruits.jpg"


@contextmanager
def eaten_core() -> Iterator[None]:
    """Another process is busy all the time, at this one's priority."""
    process = subprocess.Popen([sys.executable, "-c", _EAT])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def p95(pool: InferencePool, seconds: float, seed: int) -> float:
    """Of detection at a few pictures a second, in seconds."""
    load = await offer(pool.detect, _PHOTO.read_bytes(), _RATE, seconds, _SLO_S, seed)
    if load.failed or load.told_late or len(load.latencies) < 2:
        sys.exit(f"{load.failed + load.told_late} of {load.offered} pictures were not answered")
    return statistics.quantiles(load.latencies, n=20)[-1]


async def idle_share(pool: InferencePool, seconds: float) -> float:
    """Part of a core that parent and children use while nothing is asked."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    return (sum(sum(process.cpu_times()[:2]) for process in processes) - before) / (time.monotonic() - begun)


async def apart(model: str, *, quick: bool) -> list[Bar]:
    """The same in a process of its own, whose memory is nobody else's."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        model = str(Path(model).resolve()) if Path(model).is_file() else model
        command = [sys.executable, "-m", "inferring.neighbour", "--model", model, "--json", file.name]
        process = await asyncio.create_subprocess_exec(
            *command, *(["--quick"] if quick else []), cwd=_ROOT / "benchmarks", stdout=asyncio.subprocess.DEVNULL
        )
        if await process.wait():
            sys.exit("inferring.neighbour failed")
        found = json.loads(Path(file.name).read_text())
    return [Bar(**{name: value for name, value in each.items() if name != "met"}) for each in found]


async def measure(model: str, *, quick: bool, console: Console) -> list[Bar]:
    seconds, rounds = (8.0, 1) if quick else (20.0, 3)
    settings = load_settings(yolo_model=model)
    # A path within the project, wherever this was started.
    settings = settings.model_copy(update={"models_dir": _ROOT / settings.models_dir})
    pool = (await vision_of(settings, Metrics(), on_ollama_unloaded=lambda: None)).main
    await pool.start()
    try:
        await pool.wait_ready()
        await offer(pool.detect, _PHOTO.read_bytes(), _RATE, 4.0, _SLO_S, seed=0)
        quiet, beside = [], []
        for number in range(1, rounds + 1):
            console.print(f"[dim]round {number}[/dim]")
            quiet.append(await p95(pool, seconds, number))
            with eaten_core():
                beside.append(await p95(pool, seconds, number))
        rss_mb = psutil.Process().memory_info().rss / 2**20
        children_mb = [float(entry["rss_mb"] or 0) for entry in pool.snapshot()]
        return [
            Bar(f"p95 of detection, quiet ({pool.snapshot()[0]['engine']})", 1e3 * statistics.median(quiet), "ms"),
            Bar("p95 beside a process that eats a core", 1e3 * statistics.median(beside), "ms"),
            Bar("  to its quiet value", statistics.median(beside) / statistics.median(quiet), "x", 2.5),
            Bar("parent and children, idle", 100 * await idle_share(pool, seconds), "% of a core", 1.0),
            Bar("memory of the parent", rss_mb, "MB", 120.0),
            Bar("memory of a child, the largest", max(children_mb), "MB", 400.0),
        ]
    finally:
        await pool.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8n", help="a path, or a name that `aiworker models list` shows")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    configure_logging("ERROR", "bench")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bars = runner.run(measure(options.model, quick=options.quick, console=Console(stderr=True)))
    Console().print(table_of(bars, "beside a busy process"))
    if options.json:
        options.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=1))
    return int(options.check and not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
