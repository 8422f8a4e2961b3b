"""The whole system under faults, with a ledger kept by the database: every job that was accepted ends exactly once, no
process is left behind, and memory comes back to its level.

`make test` runs it short; `make chaos` with 1,000 jobs for each fault and the faults at their full length.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio
from fakes.chaos_system import ChaosSystem, chaos_system, photo, usual
from fakes.fake_engine import KILLS_CHILD, SLOW
from fakes.gemini_server import error_body, quota_details
from fakes.llm_server import Reply

from aiworker.cli.serve import address_of

JOBS = int(os.environ.get("CHAOS_JOBS", "40"))
FULL = JOBS >= 1000
SENDING_S = 25.0 if FULL else 1.0
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[ChaosSystem]:
    folder = Path(tempfile.mkdtemp(prefix="aiworker-chaos-"))
    try:
        async with chaos_system(folder) as running:
            # The first jobs load what later ones share; levels are measured from here.
            await running.send(JOBS, SENDING_S / 2)
            await running.settled()
            running.level_mb = running.memory_mb()
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def kill_child(system: ChaosSystem) -> None:
    """In the middle of a batch."""
    for child in system.children():
        child.kill()


async def kill_worker(system: ChaosSystem) -> None:
    children = system.children()
    await system.end("worker", signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=10)
    assert not alive, "children outlive their parent"
    await system.start("worker")


async def kill_gateway(system: ChaosSystem) -> None:
    await system.end("gateway", signal.SIGKILL)
    await system.start("gateway")


async def stop_worker(system: ChaosSystem) -> None:
    assert await system.end("worker", signal.SIGTERM) == 0
    await system.start("worker")


async def stop_database(system: ChaosSystem) -> None:
    await asyncio.to_thread(system.server.stop)
    await asyncio.sleep(20 if FULL else 2)
    await asyncio.to_thread(system.server.start)


async def slow_database(system: ChaosSystem) -> None:
    system.wire.delay_s = 1.0
    await asyncio.sleep(15 if FULL else 2)
    system.wire.delay_s = 0.0


FAULTS: dict[str, Callable[[ChaosSystem], Awaitable[None]]] = {
    "kill -9 of a child": kill_child,
    "kill -9 of the worker": kill_worker,
    "kill -9 of the gateway": kill_gateway,
    "SIGTERM under load": stop_worker,
    "PostgreSQL stopped and started": stop_database,
    "a slow database": slow_database,
}


async def test_health_says_what_is_missing_and_when_it_is_back(system: ChaosSystem) -> None:
    fine = {"database": True, "leases": True, "inference": True}
    await _until_health(system, "worker", fine)

    # Nobody renews or rescues while the table is locked, though the database answers.
    locker = await asyncpg.connect(system.url)
    async with locker.transaction():
        await locker.execute("lock table analysis_jobs in access exclusive mode")
        await _until_health(system, "worker", fine | {"leases": False})
    await locker.close()
    await _until_health(system, "worker", fine)

    for child in system.children():
        child.kill()
    await _until_health(system, "worker", fine | {"inference": False})
    await _until_health(system, "worker", fine)

    await asyncio.to_thread(system.server.stop)
    await _until_health(system, "worker", {"database": False, "leases": False, "inference": True})
    await _until_health(system, "gateway", {"database": False})
    await asyncio.to_thread(system.server.start)
    await _until_health(system, "gateway", {"database": True})
    await _until_health(system, "worker", fine)


async def _until_health(system: ChaosSystem, name: str, checks: dict[str, bool]) -> None:
    """Until `/health` answers so, with the status that goes with it, while `/live` says that the process is there."""
    base = address_of(system.sockets[name])
    async with asyncio.timeout(60):
        while True:
            async with system.session.get(f"{base}/health") as response:
                found = (await response.json())["checks"]
                assert response.status == (200 if all(found.values()) else 503)
            if found == checks:
                break
            await asyncio.sleep(0.02)
    async with system.session.get(f"{base}/live") as response:
        assert response.status == 200


@pytest.mark.parametrize("name", FAULTS)
async def test_every_job_ends_exactly_once(system: ChaosSystem, name: str) -> None:
    def slower(number: int) -> dict[str, object]:
        # Photos that take a while, so that the fault meets work under way.
        return photo(SLOW) if number % 5 == 0 else usual(number)

    sending = asyncio.create_task(system.send(JOBS, SENDING_S, slower))
    await system.reached(JOBS // 3)
    await FAULTS[name](system)
    await sending
    tally = await system.settled()
    assert (tally.accepted, tally.lost, tally.twice, tally.doubled) == (JOBS, 0, 0, 0)
    assert tally.completed == JOBS
    await system.ready("worker")


async def test_ollama_hangs_and_gemini_has_no_quota(system: ChaosSystem) -> None:
    """Text is answered by rule, chat fails with a reason: all of them end, and the worker does not stall."""
    refusal = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerMinute", "1s"))
    system.gemini.script(*[Reply(status=429, body=refusal)] * 10_000)
    system.ollama.script(*[Reply(before=asyncio.Event())] * 10_000)
    few = JOBS // 4
    await system.send(few, SENDING_S / 4, lambda number: usual(2 + 5 * number))
    tally = await system.settled()
    system.gemini._script.clear()
    system.ollama._script.clear()
    assert (tally.completed, tally.lost, tally.twice) == (few, 0, 0)


async def test_a_photo_that_kills_is_rejected_alone(system: ChaosSystem) -> None:
    def with_poison(number: int) -> dict[str, object]:
        return photo(KILLS_CHILD if number == JOBS // 2 else 20)

    await system.send(JOBS, SENDING_S, with_poison)
    ids = list(system.accepted.values())
    tally = await system.settled()
    assert (tally.completed, tally.lost, tally.twice) == (JOBS - 1, 0, 0)
    codes = [code for code in (await system.codes(ids)).values() if code]
    assert codes == ["image_kills_child"]


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian: faketime)")
async def test_the_workers_clock_jumps(system: ChaosSystem, tmp_path: Path) -> None:
    """An hour ahead, then an hour back: only PostgreSQL's clock decides, so nothing is rescued or retried for it."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    await system.end("worker", signal.SIGTERM)
    await system.start("worker", **fake, FAKETIME_DONT_FAKE_MONOTONIC="1")
    sending = asyncio.create_task(system.send(JOBS, SENDING_S))
    for share, jump in ((4, "+3600"), (2, "-3600")):
        await system.reached(JOBS // share)
        clock.write_text(jump)
    await sending
    tally = await system.settled()
    assert (tally.completed, tally.lost, tally.twice) == (JOBS, 0, 0)
    await system.end("worker", signal.SIGTERM)
    await system.start("worker")


async def test_the_disk_of_the_cache_is_full(system: ChaosSystem, small_disk: Path) -> None:
    """A result is not written without its cache entry, so all wait for space, and then all are written."""

    def to_share(number: int) -> dict[str, object]:
        return {"type": "sofia_text", "input": {"text": f"comi {number} azeitonas"}, "useCache": True}

    connection = await asyncpg.connect(system.url)
    await connection.execute(f"create tablespace small location '{small_disk}'")
    await connection.execute("alter table analysis_cache set tablespace small")
    filler = small_disk / "filler"
    _fill(filler)
    await system.send(JOBS, SENDING_S, to_share)
    filler.unlink()
    tally = await system.settled()
    await connection.execute("alter table analysis_cache set tablespace pg_default")
    await connection.execute("drop tablespace small")
    await connection.close()
    assert (tally.completed, tally.lost, tally.twice) == (JOBS, 0, 0)


@pytest.fixture
def small_disk(system: ChaosSystem) -> AsyncIterator[Path]:  # type: ignore[misc]
    """4 MB that belong to the account that PostgreSQL runs as."""
    owner = next(path for path in system.logs.rglob("PG_VERSION")).stat()
    place = Path(tempfile.mkdtemp(prefix="aiworker-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode:
        place.rmdir()
        pytest.skip("only root may mount a small disk")
    try:
        os.chown(place, owner.st_uid, owner.st_gid)
        place.chmod(0o700)
        yield place  # type: ignore[misc]
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_memory_and_processes_are_back_at_their_level(system: ChaosSystem) -> None:
    files = psutil.Process(system.processes["worker"].pid).num_fds()
    assert len(system.children()) == 1
    for _ in range(2):
        await system.send(JOBS, SENDING_S)
        tally = await system.settled()
        assert (tally.completed, tally.lost, tally.twice) == (JOBS, 0, 0)
    assert system.memory_mb() < system.level_mb * 1.1 + 20
    assert psutil.Process(system.processes["worker"].pid).num_fds() <= files + 4
    assert len(system.children()) == 1
