"""JPEG bytes to detections a second: our pool, a FastAPI service, LitServe, mosec, and the engine's bare network.

Beside the rate, which everything else on the machine disturbs, stands the CPU time that a picture costs, asking for it
included: on a machine with nothing else to do, that is what the rate comes from.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import sysconfig
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from beside import Bar
from rich.console import Console

from aiworker.domain.deadline import Deadline
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.inference.profile import ENGINES, Candidate
from aiworker.inference.profiling import serving as told
from inferring import peers

_SLO_S = 60.0
_BATCH = 8
_ROOT = Path(__file__).parents[2]
Ask = Callable[[bytes, Deadline], Awaitable[object]]


@dataclass(frozen=True)
class Ground:
    """Weights, where exports are kept, the photos, the split that was measured best, and how long a run takes."""

    weights: str
    cache: str
    photos: list[Path]
    split: Candidate
    seconds: float
    rounds: int


@dataclass(frozen=True)
class Run:
    """Pictures a second, and the CPU time of one in milliseconds."""

    rate: float
    cpu_ms: float


async def measure(ground: Ground, console: Console) -> list[Bar]:
    """All in turn, several times over; medians."""
    peers.install()
    runs: dict[str, list[Run]] = {}
    contestants: list[tuple[str, Callable[[], Awaitable[Run]]]] = [
        ("ours", lambda: ours(ground)),
        *((name, lambda name=name: theirs(ground, name)) for name in ("fastapi", "litserve", "mosec")),
        ("raw", lambda: raw(ground)),
    ]
    for number in range(ground.rounds):
        for name, run in contestants:
            found = await run()
            console.print(f"[dim]round {number + 1}: {name} {found.rate:.1f}/s, {found.cpu_ms:.1f} ms[/dim]")
            runs.setdefault(name, []).append(found)
    rate = {name: statistics.median(run.rate for run in each) for name, each in runs.items()}
    cpu = {name: statistics.median(run.cpu_ms for run in each) for name, each in runs.items()}
    how = f"{ground.split.engine} {ground.split.precision}, {ground.split.processes} x {ground.split.threads}"
    return [
        Bar(f"JPEG to detections, pool ({how})", rate["ours"], "images/s"),
        Bar("  FastAPI, YOLO.predict per request", rate["fastapi"], "images/s"),
        Bar("  LitServe, batching, same engine", rate["litserve"], "images/s"),
        Bar("  mosec, batching, same engine", rate["mosec"], "images/s"),
        Bar("  the bare network at its best split", rate["raw"], "images/s"),
        *(Bar(f"CPU time of a picture, {name}", cpu[name], "ms") for name in cpu),
        Bar("pool / FastAPI", rate["ours"] / rate["fastapi"], "x", 4.0, least=True),
        Bar("pool / LitServe", rate["ours"] / rate["litserve"], "x", 1.1, least=True),
        Bar("pool / mosec", rate["ours"] / rate["mosec"], "x", 1.1, least=True),
        Bar("pool / bare network", rate["ours"] / rate["raw"], "", 0.85, least=True),
    ]


async def ours(ground: Ground) -> Run:
    """Through the pool, with its children."""
    spec = told(ChildSpec(ground.weights, device="cpu", cache_dir=ground.cache), ground.split)
    pool = InferencePool([spec] * ground.split.processes)
    await pool.start()
    try:
        await pool.wait_ready()
        return await _saturated(pool.detect, ground)
    finally:
        await pool.stop()


async def theirs(ground: Ground, name: str) -> Run:
    """Through another server; litserve and mosec have our engine and our split."""
    folders = (str(_ROOT), sysconfig.get_path("purelib"))
    async with peers.serving(
        name,
        cap=_BATCH,
        workers=ground.split.processes,
        slo_s=_SLO_S,
        program="serve_yolo.py",
        probe=ground.photos[0].read_bytes(),
        weights=ground.weights,
        engine=ENGINES[ground.split.engine],
        precision=ground.split.precision,
        threads=ground.split.threads,
        cache=ground.cache,
        ours=":".join(folders),
        yolo_offline="true",
        omp_wait_policy="PASSIVE" if name != "fastapi" else "",
    ) as peer:
        return await _saturated(peer.ask, ground)


async def raw(ground: Ground) -> Run:
    """The best of one process with all threads and one process for each."""
    cores = ground.split.processes * ground.split.threads
    found = [await _raw(ground, processes, cores // processes) for processes in sorted({1, cores})]
    return max(found, key=lambda run: run.rate)


async def _raw(ground: Ground, processes: int, threads: int) -> Run:
    engine, precision = ENGINES[ground.split.engine], ground.split.precision
    what = (ground.weights, engine, ground.cache, str(threads), str(ground.seconds), precision)
    command = (sys.executable, "-m", "inferring.raw_forward", *what, *map(str, ground.photos))
    pipe = asyncio.subprocess.PIPE
    running = [
        await asyncio.create_subprocess_exec(*command, cwd=_ROOT / "benchmarks", stdin=pipe, stdout=pipe)
        for _ in range(processes)
    ]
    for each in running:
        assert each.stdout is not None
        await each.stdout.readline()
    said = await asyncio.gather(*(each.communicate(b"\n") for each in running))
    figures = [[float(figure) for figure in output.split()[-2:]] for output, _ in said]
    return Run(sum(rate for rate, _ in figures), statistics.mean(cpu_ms for _, cpu_ms in figures))


async def _saturated(ask: Ask, ground: Ground) -> Run:
    """With as many askers as two full batches for each worker; the first seconds do not count."""
    photos = itertools.cycle([photo.read_bytes() for photo in ground.photos])
    warm_s = min(2.0, ground.seconds / 2)
    warm_until = time.monotonic() + warm_s
    ends, done = warm_until + ground.seconds, 0

    async def asker() -> None:
        nonlocal done
        while time.monotonic() < ends:
            await ask(next(photos), Deadline.after(_SLO_S))
            done += warm_until <= time.monotonic() < ends

    async def spent() -> float:
        await asyncio.sleep(warm_s)
        before = _cpu_s()
        await asyncio.sleep(ground.seconds)
        return _cpu_s() - before

    async with asyncio.TaskGroup() as group:
        for _ in range(2 * _BATCH):
            group.create_task(asker())
        spending = group.create_task(spent())
    return Run(done / ground.seconds, 1000 * spending.result() / max(1, done))


def _cpu_s() -> float:
    """Of this process and all below it."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True)))
