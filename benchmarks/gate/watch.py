"""Looks at the running system about once a second: queue, memory, handles, batches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
from prometheus_client.openmetrics.parser import text_string_to_metric_families

_EVERY_S = 1.0
_DEPTH = """
select count(*) filter (where status = 'pending' and run_after <= now()) as pending,
       count(*) filter (where status = 'processing') as processing,
       (select count(*) from pg_stat_activity where application_name ^@ 'aiworker') as connections
  from public.analysis_jobs where status in ('pending', 'processing')"""


@dataclass(frozen=True, slots=True)
class Sample:
    """`at` seconds since the start. Memory in MB by process group: `memory_mb` with shared pages counted once, `own_mb`
    without files and shared memory. `files` and `threads` of gateway, worker and children, their `connections` to
    PostgreSQL, `series` of the worker's metrics. `batches` and `images` since the worker began."""

    at: float
    phase: str
    pending: int
    processing: int
    memory_mb: Mapping[str, float]
    own_mb: Mapping[str, float]
    files: int
    threads: int
    connections: int
    series: int
    batches: float
    images: float

    @property
    def total_mb(self) -> float:
        return sum(self.memory_mb.values())


class Watch:
    """`processes` are process ids by name; their descendants count too (the worker's apart, as `children`)."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        database: asyncpg.Pool[Any],
        worker_url: str,
        processes: Mapping[str, int],
    ) -> None:
        self._session = session
        self._database = database
        self._metrics_url = f"{worker_url}/metrics"
        self._processes = processes
        self._started = time.time()
        self.samples: list[Sample] = []
        self.phase = ""
        self.batch_buckets: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled. Where it dies no sample is left: what half a run needed must not pass for the whole."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(_EVERY_S)
        except Exception:
            self.samples.clear()
            raise

    async def look(self) -> Sample:
        depth = await self._database.fetchrow(_DEPTH)
        batches, images, series = await self._metrics()
        memory, own, files, threads = await asyncio.to_thread(_resources, self._processes)
        sample = Sample(
            time.time() - self._started,
            self.phase,
            depth["pending"] if depth else 0,
            depth["processing"] if depth else 0,
            memory,
            own,
            files,
            threads,
            depth["connections"] if depth else 0,
            series,
            batches,
            images,
        )
        self.samples.append(sample)
        return sample

    async def _metrics(self) -> tuple[float, float, int]:
        """Batches, images, and how many series there are."""
        try:
            async with self._session.get(self._metrics_url) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0.0, 0.0, 0
        families = {family.name: family for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
        found = families["aiworker_inference_batch_size"].samples
        self.batch_buckets = {each.labels["le"]: each.value for each in found if each.name.endswith("_bucket")}
        sums = {each.name.rpartition("_")[2]: each.value for each in found}
        series = sum(len(family.samples) for family in families.values())
        return sums.get("count", 0.0), sums.get("sum", 0.0), series


def peak_mb(samples: Sequence[Sample]) -> float:
    """NaN where nobody looked: that meets no target."""
    return max((sample.total_mb for sample in samples), default=math.nan)


def postmaster(folder: Path) -> int | None:
    """Process id of an embedded PostgreSQL below `folder`; None where the database is elsewhere."""
    for path in folder.rglob("postmaster.pid"):
        return int(path.read_text().splitlines()[0])
    return None


def _resources(processes: Mapping[str, int]) -> tuple[dict[str, float], dict[str, float], int, int]:
    """Memory and own memory by group, files and threads of our own."""
    memory: dict[str, float] = {}
    own: dict[str, float] = {}
    files = threads = 0
    for name, pid in processes.items():
        try:
            process = psutil.Process(pid)
            below = process.children(recursive=True)
        except psutil.Error:
            continue
        for each in (process, *below):
            group = "children" if name == "worker" and each is not process else name
            sizes = _sizes_mb(each)
            memory[group] = memory.get(group, 0.0) + sizes["Pss"]
            own[group] = own.get(group, 0.0) + sizes["Pss_Anon"]
            if name != "postgres":
                files, threads = files + _count(each.num_fds), threads + _count(each.num_threads)
    return memory, own, files, threads


def _sizes_mb(process: psutil.Process) -> dict[str, float]:
    sizes = {"Pss": 0.0, "Pss_Anon": 0.0}
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return sizes
    for line in lines:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024 / 1e6
    return sizes


def _count(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except psutil.Error:
        return 0
