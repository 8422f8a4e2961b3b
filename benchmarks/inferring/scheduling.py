"""What the scheduler does with real children whose engine sleeps: overload, a killed child, the parent's cost.

python -m inferring.scheduling [--quick] [--only ours|others] [--json FILE] [--check]        (in benchmarks/)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from beside import Bar, table_of
from rich.console import Console

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.telemetry.logs import configure_logging
from inferring import peers
from inferring.load import Load, offer
from inferring.sleep_engine import ENGINE, picture, weights

_READY_S = 60.0
_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Profile:
    """Children that take a + b*n seconds, at most `cap` pictures at a time, asked to answer within `slo_s`."""

    name: str
    children: int
    a: float
    b: float
    cap: int
    slo_s: float

    @property
    def ceiling(self) -> float:
        """Pictures a second in full batches without a pause."""
        return self.children * self.cap / (self.a + self.b * self.cap)


GPU_LIKE = Profile("one GPU-like child (10 + 2n ms, 100 ms)", 1, 0.010, 0.002, 8, 0.1)
CPU_LIKE = Profile("two CPU-like children (5 + 50n ms, 1 s)", 2, 0.005, 0.050, 2, 1.0)


@asynccontextmanager
async def running(profile: Profile) -> AsyncIterator[InferencePool]:
    """A pool that is ready and has learned its times."""
    spec = ChildSpec(weights=weights(profile.a, profile.b, profile.cap), engine=ENGINE)
    pool = InferencePool([spec] * profile.children, PoolRules(max_batch=profile.cap))
    await pool.start()
    try:
        async with asyncio.timeout(_READY_S):
            while sum(each["state"] == "ready" for each in pool.snapshot()) < profile.children:
                await asyncio.sleep(0.01)
        await offer(pool.detect, picture(), 0.5 * profile.ceiling, _WARM_UP_S, profile.slo_s, seed=0)
        yield pool
    finally:
        await pool.stop()


async def goodput(profile: Profile, share: float, seconds: float, seed: int) -> Load:
    """At `share` of the ceiling."""
    async with running(profile) as pool:
        return await offer(pool.detect, picture(), share * profile.ceiling, seconds, profile.slo_s, seed)


KILL = Profile("two children of 300 ms", 2, 0.3, 0.0, 1, 10.0)


async def killed_child(seconds: float) -> Load:
    """Two children at 5 pictures a second, one of them killed at work after a quarter of the time."""
    async with running(KILL) as pool:
        loading = asyncio.create_task(offer(pool.detect, picture(), 5.0, seconds, KILL.slo_s))
        await asyncio.sleep(seconds / 4)
        while not (busy := [each["pid"] for each in pool.snapshot() if each["state"] == "busy"]):
            await asyncio.sleep(0.005)
        os.kill(int(busy[0] or 0), signal.SIGKILL)
        return await loading


async def peers_killed_worker(name: str, seconds: float) -> Load:
    """The same for another server."""
    async with peers.serving(name, a=KILL.a, b=KILL.b, cap=1, workers=2, slo_s=KILL.slo_s) as peer:
        await offer(peer.ask, picture(), 5.0, _WARM_UP_S, KILL.slo_s, seed=0)
        loading = asyncio.create_task(offer(peer.ask, picture(), 5.0, seconds, KILL.slo_s))
        await asyncio.sleep(seconds / 4)
        os.kill(peer.workers()[0], signal.SIGKILL)
        return await loading


async def peers_goodput(name: str, profile: Profile, share: float, seconds: float) -> Load:
    """Another server with its own time limit set to ours."""
    async with peers.serving(
        name, a=profile.a, b=profile.b, cap=profile.cap, workers=profile.children, slo_s=profile.slo_s
    ) as peer:
        await offer(peer.ask, picture(), 0.5 * profile.ceiling, _WARM_UP_S, profile.slo_s, seed=0)
        return await offer(peer.ask, picture(), share * profile.ceiling, seconds, profile.slo_s)


async def parents_cost(seconds: float) -> float:
    """CPU seconds of this process for one request of 100 kB, less what the load generator takes by itself."""
    profile = Profile("cost", 1, 0.0, 0.001, 8, 5.0)

    async def nothing(_image: bytes, _deadline: Deadline) -> Detections | None:
        await asyncio.sleep(0)
        return None

    idle = await offer(nothing, b"", 200.0, seconds, 5.0)
    async with running(profile) as pool:
        load = await offer(pool.detect, picture(), 200.0, seconds, profile.slo_s)
    return load.cpu_s / load.offered - idle.cpu_s / idle.offered


async def ours(sizes: Sizes, console: Console) -> list[Bar]:
    bars = []
    for profile in (GPU_LIKE, CPU_LIKE):
        for share, limit in ((0.8, 0.99), (1.3, 0.9)):
            loads = []
            for seed in range(1, sizes.seeds + 1):
                console.print(f"[dim]{profile.name} at {share:.0%}, seed {seed}[/dim]")
                loads.append(await goodput(profile, share, sizes.seconds, seed))
            if share < 1:
                value = statistics.median(load.in_time / load.offered for load in loads)
                bars.append(Bar(f"in time at {share:.0%}: {profile.name}", value, "of offered", limit, least=True))
            else:
                value = statistics.median(load.goodput / profile.ceiling for load in loads)
                bars.append(Bar(f"goodput at {share:.0%}: {profile.name}", value, "of ceiling", limit, least=True))
            bars.append(Bar("  neither answered nor told", sum(load.lost + load.failed for load in loads), "", 0))
    console.print("[dim]a child killed under load[/dim]")
    kill = await killed_child(sizes.kill_s)
    bars.append(
        Bar("SIGKILL of one of two children: lost", kill.offered - len(kill.latencies), f"of {kill.offered}", 0)
    )
    bars.append(Bar("  slowest answer", max(kill.latencies, default=0.0), "s"))
    console.print("[dim]the parent's cost[/dim]")
    costs = [1e3 * await parents_cost(sizes.seconds / 2) for _ in range(sizes.seeds)]
    bars.append(Bar("parent's CPU for a request of 100 kB", statistics.median(costs), "ms", 0.5))
    return bars


async def others(sizes: Sizes, console: Console) -> list[Bar]:
    peers.install()
    bars = []
    for name in peers.PEERS:
        console.print(f"[dim]{name}[/dim]")
        load = await peers_goodput(name, GPU_LIKE, 1.3, sizes.seconds)
        bars.append(Bar(f"{name}: goodput at 130%: {GPU_LIKE.name}", load.goodput / GPU_LIKE.ceiling, "of ceiling"))
        kill = await peers_killed_worker(name, sizes.kill_s)
        lost = kill.offered - len(kill.latencies)
        bars.append(Bar(f"{name}: SIGKILL of one of two workers: lost", lost, f"of {kill.offered}"))
    return bars


@dataclass(frozen=True)
class Sizes:
    """How much is measured; times in seconds."""

    seconds: float
    seeds: int
    kill_s: float


async def measure(*, quick: bool, only: str, console: Console) -> list[Bar]:
    """The quick one leaves the other servers out, unless they are asked for."""
    sizes = Sizes(5.0, 1, 6.0) if quick else Sizes(10.0, 3, 12.0)
    bars = await ours(sizes, console) if only != "others" else []
    if only == "others" or not (quick or only):
        console.print(table_of(bars, "goodput and kills"))
        bars += await others(sizes, console)
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("ours", "others"), default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    configure_logging("ERROR", "bench")
    console = Console(stderr=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bars = runner.run(measure(quick=options.quick, only=options.only, console=console))
    Console().print(table_of(bars, "goodput and kills"))
    if options.json:
        options.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=1))
    return int(options.check and not all(bar.met for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
