"""The queue beside pgqueuer and procrastinate: speed, latency, recovery, and what faults and age do to it.

One PostgreSQL with durable settings for everybody, each run in a process and a database of its own. Speed is the median
of several rounds in which the contestants take turns; latency, recovery and faults are one run each. A job counts when
its end is committed; ours keep their row and their JSON result, procrastinate's keep their row, pgqueuer deletes and
logs. Our claims do not wait for the disk, ends do (docs/adr/004-lines-and-places.md). Nobody writes a line of log for
each job; one row says what ours costs with it, as LOG_LEVEL=INFO has it. The peers' environment is made below
.benchmarks/ at the first run.

    python benchmarks/queue_peers.py [--quick] [--only speed,latency,...] [--json FILE] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
from beside import Bar, percentile, prepare_peers, table_of
from queueing.faults import FAULTS, survive
from queueing.old_snapshot import claims_with_and_without
from queueing.ours import LEFT, PAUSE, RESUME, fill, opened
from queueing.recovery import restart_after_kill, stale_writes_refused
from queueing.server import database, durable_server
from rich.console import Console

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.telemetry.logs import configure_logging

HERE = Path(__file__).parent
PEERS = HERE.parent / ".benchmarks" / "queues"
REQUIREMENTS = HERE / "peers" / "queues.txt"
BATCH = 50

FINISHED = """
insert into analysis_jobs (id, user_id, type, input, status, attempts, result, deadline_at, run_after, place,
                           created_at, started_at, completed_at)
select analysis_job_id(at), gen_random_uuid(), 'noop', '{}', 'completed', 1, '{}', at, at, at, at, at, at
  from (select now() - n * interval '1 second' as at from generate_series($1::int, 1, -1) n) moments
"""


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    rounds: int
    jobs: int
    peer_jobs: int
    samples: int
    peer_samples: int
    kills: int
    stale: int
    quiet_s: float
    open_s: float
    fault_jobs: int
    fault_scale: float
    fault_after_s: float
    histories: tuple[int, ...]
    crowds: tuple[int, ...]


FULL = Sizes(5, 20_000, 2000, 10_000, 1000, 5, 1000, 60, 600, 1000, 1.0, 17, (0, 100_000, 1_000_000), (1, 2, 4))
QUICK = Sizes(1, 6000, 500, 400, 200, 1, 100, 4, 12, 150, 0.15, 5, (0, 20_000), (1, 2))


class Bench:
    """The server, how much to measure, and where progress is said."""

    def __init__(self, server: EmbeddedPostgres, sizes: Sizes, console: Console) -> None:
        self.server = server
        self.url = server.start()
        self.sizes = sizes
        self.console = console

    async def run(self, who: str, what: str, jobs: int) -> dict[str, Any]:
        """The figures of one run of one contestant, in a database of its own."""
        programs = {
            "ours": [sys.executable, "-m", "queueing.ours"],
            "pgqueuer": [str(PEERS / "bin" / "python"), "-m", "peers.drive_pgqueuer"],
            "procrastinate": [str(PEERS / "bin" / "python"), "-m", "peers.drive_procrastinate"],
        }
        how = {"batch": BATCH} if what in ("drain", "logged", "bare") else {}
        async with database(self.url, f"bench_{who}") as url:
            process = await asyncio.create_subprocess_exec(
                *(*programs[who], what, json.dumps(how | {"url": url, "jobs": jobs})),
                cwd=HERE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL if what == "logged" else None,
            )
            output, _ = await process.communicate()
            if process.returncode != 0:
                raise SystemExit(f"{who} failed at {what}")
            figures: dict[str, Any] = json.loads(output.splitlines()[-1])
            if figures.get("left"):
                raise SystemExit(f"{who} left {figures['left']} jobs behind")
            return figures

    async def median(self, plan: Iterable[tuple[str, str, int]]) -> dict[tuple[str, str], dict[str, float]]:
        """Each of `plan` in turn, over and over; the median of each figure."""
        plan = list(plan)
        runs: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number in range(self.sizes.rounds):
            for who, what, jobs in plan:
                self.console.print(f"[dim]round {number + 1}: {what}, {who}[/dim]")
                runs.setdefault((who, what), []).append(await self.run(who, what, jobs))
        return {
            key: {name: statistics.median(run[name] for run in each) for name in each[0]} for key, each in runs.items()
        }


async def speed(bench: Bench) -> list[Bar]:
    """Drain, processor time, WAL and transactions."""
    sizes = bench.sizes
    found = await bench.median(
        [
            ("ours", "drain", sizes.jobs),
            ("pgqueuer", "drain", sizes.jobs),
            ("ours", "bare", sizes.jobs),
            ("procrastinate", "drain", sizes.peer_jobs),
            ("ours", "logged", sizes.jobs),
            ("ours", "enqueue", sizes.peer_jobs),
            ("pgqueuer", "enqueue", sizes.peer_jobs),
            ("procrastinate", "enqueue", sizes.peer_jobs),
        ]
    )
    ours, theirs, bare = found["ours", "drain"], found["pgqueuer", "drain"], found["ours", "bare"]
    wal = {who: found[who, "drain"]["wal_bytes"] + found[who, "enqueue"]["wal_bytes"] for who in ("ours", "pgqueuer")}
    shown = [
        Bar(f"drain, {who}", found[who, "drain"]["rate"], "jobs/s") for who in ("ours", "pgqueuer", "procrastinate")
    ]
    return [
        *shown,
        Bar("drain, bare SQL", bare["rate"], "jobs/s"),
        Bar("drain / pgqueuer", ours["rate"] / theirs["rate"], "x", 3.0, least=True),
        Bar("drain / bare SQL", ours["rate"] / bare["rate"], "x", 0.5, least=True),
        Bar("client CPU per job", ours["cpu_us"], "us"),
        Bar("client CPU per job, pgqueuer", theirs["cpu_us"], "us"),
        Bar("client CPU per job, with a line of log for each", found["ours", "logged"]["cpu_us"], "us"),
        Bar("client CPU / pgqueuer", ours["cpu_us"] / theirs["cpu_us"], "x", 0.4),
        Bar("WAL per job, enqueue + drain", wal["ours"], "B"),
        Bar("WAL per job, pgqueuer", wal["pgqueuer"], "B"),
        Bar("WAL / pgqueuer", wal["ours"] / wal["pgqueuer"], "x", 0.75),
        Bar(f"write transactions per job, K={BATCH}", ours["transactions"], "", 0.05),
    ]


async def latency(bench: Bench) -> list[Bar]:
    """Idle enqueue to the start of the handler."""
    sizes, polled = bench.sizes, 0
    found: dict[str, list[float]] = {"pgqueuer": [], "ours": []}
    for number in range(sizes.rounds):
        # In turns: a machine that is faster by a third a minute later would be taken for one of them.
        for who, samples in (("pgqueuer", sizes.peer_samples), ("ours", sizes.samples)):
            bench.console.print(f"[dim]round {number + 1}: latency, {who}[/dim]")
            run = await bench.run(who, "latency", samples // sizes.rounds)
            found[who] += run["ms"]
            polled += who == "ours" and sum(ms >= run["poll_ms"] for ms in run["ms"])
    ours, theirs = found["ours"], found["pgqueuer"]
    return [
        Bar("idle enqueue -> start, p50", percentile(ours, 0.5), "ms"),
        Bar("idle enqueue -> start, p50, pgqueuer", percentile(theirs, 0.5), "ms"),
        Bar("idle p50 / pgqueuer", percentile(ours, 0.5) / percentile(theirs, 0.5), "x", 0.8),
        Bar("idle enqueue -> start, p99", percentile(ours, 0.99), "ms", 8.0),
        Bar("idle enqueue -> start, p99, pgqueuer", percentile(theirs, 0.99), "ms"),
        Bar(f"samples of {len(ours)} that reached the poll interval", polled, "", 0),
    ]


async def recovery(bench: Bench) -> list[Bar]:
    """A killed worker's job, and a late worker's write."""
    waits = []
    for number in range(bench.sizes.kills):
        bench.console.print(f"[dim]kill {number + 1}[/dim]")
        async with database(bench.url, "recovery") as url:
            waits.append(await restart_after_kill(url))
    async with database(bench.url, "stale") as url:
        refused = await stale_writes_refused(url, bench.sizes.stale)
    return [
        Bar("SIGKILL -> its job starts elsewhere, worst", max(waits), "s", 10.0),
        Bar(f"stale writes refused, of {bench.sizes.stale}", 100 * refused, "%", 100.0, least=True),
    ]


async def snapshot(bench: Bench) -> list[Bar]:
    """One transaction left open at 1,000 jobs/s."""
    sizes = bench.sizes
    bench.console.print(f"[dim]a transaction idle for {sizes.open_s:.0f} s[/dim]")
    async with database(bench.url, "snapshot") as url:
        quiet, late = await claims_with_and_without(url, sizes.quiet_s, sizes.open_s)
    before, after = percentile(quiet, 0.99), percentile(late, 0.99)
    return [
        Bar("claim p99, 1,000 jobs/s", before, "ms"),
        Bar(f"claim p99, a transaction idle for {sizes.open_s:.0f} s", after, "ms"),
        Bar("slowest claim, idle transaction", max(late), "ms"),
        Bar("claim p99, idle transaction / none", after / before, "x", 2.0),
    ]


async def faults(bench: Bench) -> list[Bar]:
    """Five faults of the database, with a ledger."""
    sizes, bars = bench.sizes, []
    for name in FAULTS:
        bench.console.print(f"[dim]{name}[/dim]")
        found = await survive(bench.server, name, sizes.fault_jobs, sizes.fault_scale, sizes.fault_after_s)
        bars += [
            Bar(f"{name}: lost of {sizes.fault_jobs}", found["lost"], "", 0),
            Bar(f"{name}: ended twice", found["twice"], "", 0),
            Bar(f"{name}: back at 90 % of the rate", found["back_s"], "s", 15.0),
        ]
    return bars


async def growth(bench: Bench) -> list[Bar]:
    """Drain rate by finished rows and by worker processes."""
    bars = []
    for history in bench.sizes.histories:
        async with database(bench.url, "growth") as url:
            async with opened(url) as (_, connection):
                await connection.execute(FINISHED, history, timeout=600)
                await connection.execute("vacuum analyze analysis_jobs", timeout=600)
            for crowd in bench.sizes.crowds:
                bench.console.print(f"[dim]{history} finished rows, {crowd} workers[/dim]")
                rate = await shared_drain(url, bench.sizes.jobs, crowd)
                bars.append(Bar(f"drain, {history:,} finished rows, {crowd} processes", rate, "jobs/s"))
    return bars


async def shared_drain(url: str, jobs: int, crowd: int) -> float:
    """Jobs a second that `crowd` processes drain together."""
    connection = await asyncpg.connect(url)
    await connection.execute(PAUSE)
    await fill(connection, jobs)
    await connection.execute("checkpoint")
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "queueing.ours", "share", json.dumps({"url": url, "batch": BATCH})),
            cwd=HERE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(crowd)
    ]
    for worker in workers:
        assert worker.stdout is not None
        await worker.stdout.readline()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await connection.execute(RESUME)
    while await connection.fetchval(LEFT):
        await asyncio.sleep(0.01)
    seconds = loop.time() - started
    await asyncio.gather(*(worker.communicate(b"\n") for worker in workers))
    await connection.close()
    return jobs / seconds


SECTIONS: dict[str, Callable[[Bench], Any]] = {
    "speed": speed,
    "latency": latency,
    "recovery": recovery,
    "snapshot": snapshot,
    "faults": faults,
    "growth": growth,
}
QUICK_SECTIONS = ("speed", "latency", "recovery", "snapshot")


async def measure(bench: Bench, sections: Iterable[str]) -> list[Bar]:
    """Every section in turn."""
    bars: list[Bar] = []
    for section in sections:
        bars += await SECTIONS[section](bench)
    return bars


def main() -> None:
    """Measures, prints, and with --check exits 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; leaves faults and growth out")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    sections = options.only.split(",") if options.only else QUICK_SECTIONS if options.quick else tuple(SECTIONS)
    if unknown := set(sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    configure_logging("CRITICAL", "bench")
    console = Console(highlight=False)
    if {"speed", "latency"} & set(sections):
        prepare_peers(PEERS, REQUIREMENTS, "pgqueuer and procrastinate", console)
    with durable_server() as server:
        bench = Bench(server, QUICK if options.quick else FULL, console)
        bars = asyncio.run(measure(bench, sections))
    console.print(table_of(bars, "queue"))
    if options.json:
        options.json.write_text(json.dumps([asdict(bar) | {"met": bar.met} for bar in bars], indent=2) + "\n")
    if options.check and not all(bar.met for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    main()
