"""The gate before a deploy: the real system under the real mix of work, judged against its targets.

PostgreSQL, gateway, worker and YOLO are real; Ollama and Gemini are stand-ins that take as long as the real ones are
said to (`--live` asks the real ones). Exit code 1 when a target is missed.

    python -m gate [--quick | --soak 30m] [--live] [--keep] [--out DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from aiworker.domain.errors import ConfigurationError, WorkerError
from gate import old_design, soak
from gate.drive import Driver, Sent
from gate.mix import kinds_here
from gate.plan import DAY_MEAN, Phase, phases, soak_phases
from gate.report import page
from gate.show import Display, show_changes, show_old, show_phases, show_targets
from gate.system import System, running_system
from gate.verdict import (
    Job,
    Target,
    against_old,
    changes,
    percentile,
    spread,
    summary,
    targets,
)
from gate.watch import Watch, peak_mb, postmaster

SEED = 20260117
_BUDGET_MB = 4000.0
_SETTLE_S = 90.0
_ROWS = """
select id, status, attempts, error_code,
       case when result->>'degraded' = 'true' then coalesce(result->>'degraded_code', 'unknown') end as degraded_code,
       extract(epoch from created_at)::float8 as created, extract(epoch from started_at)::float8 as started,
       extract(epoch from completed_at)::float8 as completed
  from public.analysis_jobs where id = any($1::uuid[])"""


async def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything that the page and the terminal show, as JSON values.

    Ctrl-C and SIGTERM end it and all that it started.
    """
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    rng = Random(SEED)
    kinds = kinds_here()
    plan = _plan(options)
    async with running_system(console.print, live=options.live) as system, _tools(system) as (session, database):
        driver = Driver(
            session, system.stack.gateway_url, system.stack.keys.service_key or "", kinds, system.places.photos, rng
        )
        processes = {name: process.pid for name, process in system.stack.processes.items()}
        if server := postmaster(system.folder):
            processes["postgres"] = server
        watch = Watch(session, database, system.stack.worker_url, processes)
        looking = asyncio.create_task(watch.run())
        try:
            await _drive(plan, driver, watch, database, console)
        finally:
            # Awaited, or what they still ask of a closed pool or session ends the run with tracebacks.
            looking.cancel()
            await driver.finish(0)
            await asyncio.gather(looking, return_exceptions=True)
        jobs = await _ledger(database, driver.log.sent)
        # It asks the stand-ins: beside real models it would be compared with something else.
        old = {} if options.soak or options.live else await _old(system, kinds, rng, console, quick=options.quick)
    return _run(options, plan, driver, watch, jobs, old, [kind.name for kind in kinds])


async def _drive(
    plan: Sequence[Phase], driver: Driver, watch: Watch, database: asyncpg.Pool[Any], console: Console
) -> None:
    display = Display(driver.log, watch, plan)
    with Live(display, console=console, refresh_per_second=4, transient=not console.is_terminal):
        for phase in plan:
            if phase.settle:
                await _settled(database)
            display.begin(phase)
            await driver.run(phase)
            display.end(phase, f"{len(driver.log.calls)} requests so far")
            if phase.rest_s:
                await _settled(database)
                await driver.finish()
                watch.phase = f"{soak.REST} {phase.name}"
                await asyncio.sleep(phase.rest_s)
            if not console.is_terminal:
                console.print(f"{phase.title}: {len(driver.log.sent)} jobs, {len(driver.log.calls)} requests so far")
        await _settled(database)
        await driver.finish()


def _plan(options: argparse.Namespace) -> tuple[Phase, ...]:
    if options.soak:
        return soak_phases(options.soak)
    return phases("quick" if options.quick else "full")


@asynccontextmanager
async def _tools(system: System) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncpg.Pool[Any]]]:
    # A pool: who watches and who waits for an empty queue ask at the same time.
    async with (
        asyncpg.create_pool(system.stack.database_url, min_size=1, max_size=3) as database,
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        ) as session,
    ):
        yield session, database


async def _settled(database: asyncpg.Pool[Any]) -> None:
    """Returns when no job waits or runs, or when that takes too long: what is left then counts as lost."""
    give_up = time.monotonic() + _SETTLE_S
    unfinished = "select count(*) from public.analysis_jobs where status in ('pending', 'processing')"
    while await database.fetchval(unfinished) and time.monotonic() < give_up:
        await asyncio.sleep(0.2)


async def _ledger(database: asyncpg.Pool[Any], sent: Sequence[Sent]) -> list[Job]:
    rows: dict[UUID, Any] = {row["id"]: row for row in await database.fetch(_ROWS, [each.job_id for each in sent])}
    return [_job(each, rows.get(each.job_id)) for each in sent]


def _job(sent: Sent, row: Any) -> Job:
    if row is None:
        return Job(sent.phase, sent.kind, "gone", 0, None, None, None)
    created, started, completed = row["created"], row["started"], row["completed"]
    return Job(
        sent.phase,
        sent.kind,
        row["status"],
        row["attempts"],
        completed - sent.due if completed else None,
        completed - started if completed and started else None,
        # A later attempt's start says nothing of how soon the first one came.
        started - created if started and row["attempts"] == 1 else None,
        row["error_code"],
        row["degraded_code"],
    )


async def _old(
    system: System, kinds: Sequence[Any], rng: Random, console: Console, *, quick: bool
) -> dict[str, old_design.OldRun]:
    loads = (
        Phase("peak", "peak", "jobs", 10 * DAY_MEAN, 11 if quick else 60, at_least=8),
        Phase("steady", "5 jobs/s", "jobs", 5.0, 20 if quick else 75),
    )
    console.print("the old design on the same load")
    return await old_design.measure(system.stack.database_url, system.places, system.weights, kinds, loads, rng)


def _run(
    options: argparse.Namespace,
    plan: Sequence[Phase],
    driver: Driver,
    watch: Watch,
    jobs: list[Job],
    old: dict[str, old_design.OldRun],
    kinds: list[str],
) -> dict[str, Any]:
    calls, log = driver.log.calls, driver.log
    by_phase = {}
    for phase in plan:
        mine = [call.ms for call in calls if call.phase == phase.name]
        by_phase[phase.name] = summary([job for job in jobs if job.phase == phase.name]) | {"gateway_ms": spread(mine)}
    fine = {phase.name for phase in plan if phase.within_capacity}
    judged = [job for job in jobs if job.phase in fine]
    most_mb = peak_mb(watch.samples)
    limits = targets(
        judged,
        jobs,
        [call.ms for call in calls if call.phase in fine],
        sum(call.refused for call in calls),
        most_mb,
        _BUDGET_MB,
    )
    limits.append(Target("users who never saw their result", float(log.unseen), 1, ""))
    if old:
        limits += against_old(
            old["steady"].rate,
            _rate(plan, jobs),
            old["peak"].pickup_s,
            [j.pickup_s for j in jobs if j.phase == "peak" and j.pickup_s is not None],
            sum(each.failed for each in old.values()),
        )
    if options.soak:
        # How fast it is, the other modes judge: a soak may share its machine.
        limits = [each for each in limits if each.unit not in ("s", "ms")] + soak.targets(watch.samples)
    return {
        "about": {
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "mode": _mode(options),
            "models": "live" if options.live else "stand-ins",
            "types": " ".join(kinds),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "seed": SEED,
        },
        "targets": [dataclasses.asdict(each) | {"met": each.met} for each in limits],
        "phases": by_phase,
        "seen_by_users_s": spread(log.seen_s),
        "latency_by_kind_s": {
            kind: [round(j.end_to_end_s, 3) for j in judged if j.kind == kind and j.end_to_end_s is not None]
            for kind in kinds
        },
        "peak_mb": round(most_mb, 1),
        "batch_sizes": watch.batch_buckets,
        "samples": _samples(watch),
        "old_design": {
            name: {"rate": each.rate, "pickup_s": spread(each.pickup_s), "end_to_end_s": spread(each.end_to_end_s)}
            for name, each in old.items()
        },
    }


def _rate(plan: Sequence[Phase], jobs: Sequence[Job]) -> float:
    """Jobs a second of the fastest phase whose jobs were done in time."""
    rates = [0.0]
    for phase in plan:
        mine = [job for job in jobs if job.phase == phase.name]
        took = [job.end_to_end_s for job in mine if job.status == "completed" and job.end_to_end_s is not None]
        if phase.load == "jobs" and took and percentile(took, 0.95) < 20:
            rates.append(len(took) / phase.seconds)
    return max(rates)


def _samples(watch: Watch) -> list[dict[str, Any]]:
    found, batches, images = [], 0.0, 0.0
    for sample in watch.samples:
        more = sample.batches - batches
        found.append(
            dataclasses.asdict(sample)
            | {"at": round(sample.at, 1), "batch": (sample.images - images) / more if more > 0 else 0.0}
        )
        batches, images = sample.batches, sample.images
    return found


def _flat(run: dict[str, Any]) -> dict[str, float]:
    """The figures that runs are compared by; lower is better."""
    figures = {"peak memory, MB": float(run["peak_mb"])}
    for name, phase in run["phases"].items():
        for what in ("end_to_end_s", "pickup_s", "gateway_ms"):
            figures |= {
                f"{name}, {what} {key}": phase[what][key] for key in ("p50", "p95") if phase[what].get("n", 0) >= 20
            }
    return figures


def _mode(options: argparse.Namespace) -> str:
    return "soak" if options.soak else "quick" if options.quick else "full"


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if not found:
        raise argparse.ArgumentTypeError("write it as 90s, 30m or 2h")
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    if not seconds:
        raise argparse.ArgumentTypeError("that is no time at all")
    return seconds


def _prepared(out: Path, kept: Path) -> dict[str, float] | None:
    """The kept run's figures, None where there is none. What is in the way after the run would cost all of it.

    Raises ConfigurationError.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        return _flat(json.loads(kept.read_text())) if kept.exists() else None
    except OSError as error:
        raise ConfigurationError(f"--out {out}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"{kept} is no run of this release: delete it, and keep another with --keep") from None


def _write(found: dict[str, Any], out: Path, kept: Path | None) -> None:
    mode, text = found["about"]["mode"], json.dumps(found, indent=1) + "\n"
    (out / f"{mode}.json").write_text(text)
    (out / f"{mode}.html").write_text(page(found))
    if kept is not None:
        kept.write_text(text)


def main() -> None:
    """Runs, writes JSON and HTML, prints the table, and exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        prog="aiworker bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under 3 minutes instead of under 12")
    length.add_argument("--soak", type=_duration, metavar="TIME", help="2 jobs/s for 30m, say: does memory grow?")
    parser.add_argument("--live", action="store_true", help="ask the Ollama and Gemini of the environment; costs money")
    parser.add_argument("--keep", action="store_true", help="later runs are compared with this one")
    parser.add_argument("--out", type=Path, default=Path("output/bench"), metavar="DIR", help="default: output/bench")
    options = parser.parse_args()
    # A log file has no width: 80 columns would break the tables up.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    out = options.out.resolve()
    kept = out / f"kept-{_mode(options)}.json"
    try:
        before = _prepared(out, kept)
        found = asyncio.run(run(options, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: nothing is judged")
        sys.exit(130)
    except WorkerError as error:
        console.print(f"[red]error[/red] {escape(error.note or error.code)} ({error.code})")
        sys.exit(1)
    mode = found["about"]["mode"]
    if before is not None:
        found["changes"] = changes(before, _flat(found))
    show_phases(console, found["phases"])
    if found["old_design"]:
        show_old(console, found["old_design"])
    if "changes" in found:
        show_changes(console, found["changes"])
    judged = [
        Target(**{key: each[key] for key in ("name", "value", "limit", "unit", "at_least")})
        for each in found["targets"]
    ]
    show_targets(console, judged)
    # The verdict first: a disk that has filled up meanwhile must not take it away.
    try:
        _write(found, out, kept if options.keep else None)
    except OSError as error:
        console.print(f"[red]error[/red] no report: {out}: {error.strerror}")
        sys.exit(1)
    console.print(f"report: {out / f'{mode}.html'}")
    sys.exit(0 if all(target.met for target in judged) else 1)


if __name__ == "__main__":
    main()
