"""Real children with a fake engine, killed, stopped and poisoned. No picture may go unanswered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest
from fakes.fake_engine import KILLS_CHILD, SLOW, STOPS_CHILD, picture

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import DeadlineExceeded, ImageKillsChild, ImageUnreadable, InferenceUnavailable
from aiworker.inference.lane import LanePolicy
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.inference.supervision import RestartPolicy

_LONG = 60.0
_QUICK = LanePolicy(stall_s=2.0, start_s=30.0, stop_grace_s=2.0, restart=RestartPolicy(base_s=0.01, cap_s=0.2))


def _spec(engine: str = "FakeEngine") -> ChildSpec:
    return ChildSpec(weights="none.pt", engine=f"fakes.fake_engine:{engine}")


@asynccontextmanager
async def _pool(processes: int = 1, policy: LanePolicy = _QUICK, max_batch: int = 4) -> AsyncIterator[InferencePool]:
    pool = InferencePool(_spec(), processes, max_batch, policy=policy)
    await pool.start()
    try:
        await asyncio.wait_for(pool.wait_ready(), _LONG)
        yield pool
    finally:
        await pool.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONG):
        while not condition():
            await asyncio.sleep(0.005)


def _detect(pool: InferencePool, height: int = 20, seconds: float = _LONG) -> asyncio.Task[Detections]:
    return asyncio.create_task(pool.detect(picture(height), Deadline.after(seconds)))


def _pids(pool: InferencePool) -> list[int]:
    return [pid for entry in pool.snapshot() if isinstance(pid := entry["pid"], int)]


def _busy(pool: InferencePool) -> list[int]:
    return [pid for entry in pool.snapshot() if entry["state"] == "busy" and isinstance(pid := entry["pid"], int)]


def _all_ready(pool: InferencePool) -> bool:
    return all(entry["state"] in ("ready", "busy") for entry in pool.snapshot())


async def test_children_killed_under_load_lose_nothing() -> None:
    async with _pool(processes=2) as pool:
        await _until(lambda: _all_ready(pool))
        tasks = [_detect(pool, SLOW) for _ in range(60)]
        # Twice a child is killed with pictures in hand: a third time could look like a picture that kills.
        for _ in range(2):
            await _until(lambda: bool(_busy(pool)))
            (victim, *_) = _busy(pool)
            os.kill(victim, signal.SIGKILL)
            await _until(lambda gone=victim: gone not in _pids(pool))
        answers = await asyncio.gather(*tasks)
        assert [answer.height for answer in answers] == [SLOW] * 60
        assert any("SIGKILL" in str(entry["last_error"]) for entry in pool.snapshot())


async def test_a_stopped_child_is_replaced_and_its_pictures_answered() -> None:
    async with _pool() as pool:
        (stopped,) = _pids(pool)
        os.kill(stopped, signal.SIGSTOP)
        answers = await asyncio.gather(*(_detect(pool) for _ in range(6)))
        assert len(answers) == 6
        assert _pids(pool) != [stopped]
        assert not psutil.pid_exists(stopped)
        assert "no progress" in str(pool.snapshot()[0]["last_error"])


@pytest.mark.parametrize("poison", [KILLS_CHILD, STOPS_CHILD])
async def test_a_picture_that_kills_is_rejected_alone(poison: int) -> None:
    policy = LanePolicy(stall_s=1.0, start_s=30.0, restart=_QUICK.restart)
    async with _pool(processes=2, policy=policy) as pool:
        heights = [20, 21, poison, 22, 23, 24, 25, 26]
        results = await asyncio.gather(*(_detect(pool, height) for height in heights), return_exceptions=True)
        rejected = [result for result in results if isinstance(result, ImageKillsChild)]
        answered = [result.height for result in results if isinstance(result, Detections)]
        assert len(rejected) == 1
        assert answered == [height for height in heights if height != poison]
        assert (await _detect(pool)).height == 20, "the pool serves on"


async def test_a_bad_picture_among_good_ones_harms_only_itself() -> None:
    async with _pool() as pool:
        good = [_detect(pool) for _ in range(3)]
        with pytest.raises(ImageUnreadable):
            await pool.detect(b"GIF89a but not really", Deadline.after(_LONG))
        assert all([(await each).items[0].class_name == "thing" for each in good])
        assert pool.snapshot()[0]["restarts"] == 0


@pytest.mark.parametrize(
    ("engine", "cause"),
    [("BrokenEngine", "not weights"), ("DiesAtStart", "SIGSEGV"), ("NoSuchEngine", "AttributeError")],
)
async def test_when_no_child_can_start_callers_are_told_why(engine: str, cause: str) -> None:
    pool = InferencePool(_spec(engine), 2, policy=_QUICK)
    await pool.start()
    try:
        waiting = _detect(pool)
        with pytest.raises(InferenceUnavailable, match=cause):
            await asyncio.wait_for(pool.wait_ready(), _LONG)
        with pytest.raises(InferenceUnavailable, match=cause):
            await waiting
        with pytest.raises(InferenceUnavailable, match=cause):
            await pool.detect(picture(), Deadline.after(_LONG))
        assert {entry["state"] for entry in pool.snapshot()} == {"failed"}
        assert not pool.ready
    finally:
        await pool.stop()


async def test_a_deadline_takes_a_request_out_of_the_line() -> None:
    async with _pool() as pool:
        os.kill(_pids(pool)[0], signal.SIGSTOP)
        held = _detect(pool)
        await _until(lambda: pool.snapshot()[0]["state"] == "busy")
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, seconds=0.05)
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, seconds=0.0)
        cancelled = _detect(pool)
        await _until(lambda: pool.waiting == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert pool.waiting == 0
        assert (await held).height == 20


async def test_stop_refuses_what_waits_and_leaves_no_process() -> None:
    async with _pool(processes=2) as pool:
        await _until(lambda: _all_ready(pool))
        pids = _pids(pool)
        tasks = [_detect(pool, SLOW) for _ in range(40)]
        await _until(lambda: any(entry["state"] == "busy" for entry in pool.snapshot()))
        await pool.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {Detections, InferenceUnavailable}
        assert any(isinstance(result, InferenceUnavailable) for result in results)
        with pytest.raises(InferenceUnavailable):
            await pool.detect(picture(), Deadline.after(_LONG))
        assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_child_killed_while_idle_comes_back() -> None:
    async with _pool() as pool:
        (pid,) = _pids(pool)
        os.kill(pid, signal.SIGKILL)
        await _until(lambda: _pids(pool) not in ([], [pid]) and pool.ready)
        assert (await _detect(pool)).engine == "fake"


async def test_children_ignore_the_signals_of_a_terminal() -> None:
    async with _pool() as pool:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(_pids(pool)[0], number)
        await _detect(pool)
        assert pool.snapshot()[0]["restarts"] == 0


_PARENT = """
import asyncio, sys
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.telemetry.logs import configure_logging

async def main():
    configure_logging("ERROR", "test")
    pool = InferencePool(ChildSpec(weights="none.pt", engine="fakes.fake_engine:FakeEngine"), 2)
    await pool.start()
    while sum(entry["state"] == "ready" for entry in pool.snapshot()) < 2:
        await asyncio.sleep(0.01)
    print(*(entry["pid"] for entry in pool.snapshot()), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["listening", "deaf"])
def test_no_orphan_survives_a_killed_parent(stopped: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
            assert len(children) == 2
            if stopped:
                for child in children:
                    child.suspend()
        finally:
            parent.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    assert len(gone) == 2
