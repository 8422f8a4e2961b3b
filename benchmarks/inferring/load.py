"""Open-loop load on a pool: pictures arrive when they arrive, however late the answers are."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import WorkerError

Ask = Callable[[bytes, Deadline], Awaitable[object]]


@dataclass
class Load:
    """Answers by how they came; `latencies` in seconds, of what was answered; `cpu_s` of this process.

    `steady` are the answers in time that came while arrivals did, after the first `slo_s` of them: no backlog that is
    answered afterwards counts as throughput.
    """

    offered: int = 0
    in_time: int = 0
    steady: int = 0
    told_late: int = 0
    failed: int = 0
    steady_s: float = 0.0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return self.steady / self.steady_s

    @property
    def lost(self) -> int:
        """Neither answered nor told."""
        return self.offered - len(self.latencies) - self.told_late - self.failed


async def offer(ask: Ask, picture: bytes, rate: float, seconds: float, slo_s: float, seed: int = 1) -> Load:
    """Poisson arrivals for `seconds`, each with `slo_s` to be answered in."""
    source, load = random.Random(seed), Load(steady_s=seconds - slo_s)
    tasks: set[asyncio.Task[None]] = set()

    async def one(arrived: float) -> None:
        try:
            await ask(picture, Deadline(arrived + slo_s))
        except WorkerError as error:
            if error.code == "deadline_exceeded":
                load.told_late += 1
            else:
                load.failed += 1
            return
        now = time.monotonic()
        load.latencies.append(now - arrived)
        load.in_time += now - arrived <= slo_s
        load.steady += now - arrived <= slo_s and begun + slo_s <= now <= begun + seconds

    begun, cpu = time.monotonic(), time.process_time()
    at = begun
    while (at := at + source.expovariate(rate)) < begun + seconds:
        if (pause := at - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        load.offered += 1
        task = asyncio.create_task(one(at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    load.cpu_s = time.process_time() - cpu
    return load
