"""Real children with a fake engine, killed, stopped and poisoned. No picture may go unanswered."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.fake_engine import (
    BLINDS,
    BREAKS,
    GROWS,
    HANGS,
    KILLS_CHILD,
    NO_MEMORY,
    PASS_FAILS,
    SEGFAULTS,
    SLOW,
    SPINS,
    STOPS_CHILD,
    picture,
)

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import (
    DeadlineExceeded,
    DetectorUnknown,
    ImageKillsChild,
    ImageUnreadable,
    InferenceOutOfMemory,
    InferenceUnavailable,
)
from aiworker.inference.lanes.lane import LanePolicy
from aiworker.inference.lanes.watch import Patience
from aiworker.inference.messages import ChildSpec
from aiworker.inference.policy.care import Care, CareRules
from aiworker.inference.policy.supervision import RestartPolicy
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.shelf import Further, ModelShelf
from aiworker.inference.weights import edition_of
from aiworker.telemetry.metrics import Metrics

_LONG = 60.0
_EITHER = pytest.mark.parametrize("engine", ["FakeEngine", "QueueingEngine"])
_QUICK = LanePolicy(start_s=30.0, stop_grace_s=2.0, restart=RestartPolicy(base_s=0.01, cap_s=0.2))


def _spec(engine: str = "FakeEngine") -> ChildSpec:
    return ChildSpec(weights="none.pt", engine=f"fakes.fake_engine:{engine}")


@asynccontextmanager
async def _pool(
    processes: int = 1, engine: str = "FakeEngine", metrics: Metrics | None = None, **rules: Any
) -> AsyncIterator[InferencePool]:
    pool = InferencePool([_spec(engine)] * processes, PoolRules(**{"max_batch": 4, "lane": _QUICK, **rules}), metrics)
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


@_EITHER
async def test_children_killed_under_load_lose_nothing(engine: str) -> None:
    async with _pool(processes=2, engine=engine) as pool:
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
        assert pool.snapshot()[0]["last_error"] == "stopped by a signal"


async def test_a_child_stopped_while_idle_is_found_before_somebody_needs_it() -> None:
    async with _pool() as pool:
        (stopped,) = _pids(pool)
        os.kill(stopped, signal.SIGSTOP)
        await _until(lambda: _pids(pool) not in ([], [stopped]) and pool.ready)
        assert pool.snapshot()[0]["last_error"] == "stopped by a signal"


async def test_a_child_stopped_while_it_loads_is_replaced_too() -> None:
    pool = InferencePool([_spec("SlowToLoad")], PoolRules(lane=_QUICK))
    await pool.start()
    try:
        await _until(lambda: _pids(pool) != [])
        os.kill(_pids(pool)[0], signal.SIGSTOP)
        await asyncio.wait_for(pool.wait_ready(), _LONG)
        assert pool.snapshot()[0]["last_error"] == "stopped by a signal"
    finally:
        await pool.stop()


@_EITHER
@pytest.mark.parametrize("poison", [KILLS_CHILD, STOPS_CHILD, SEGFAULTS])
async def test_a_picture_that_kills_is_rejected_alone(poison: int, engine: str) -> None:
    async with _pool(processes=2, engine=engine) as pool:
        heights = [20, 21, poison, 22, 23, 24, 25, 26]
        results = await asyncio.gather(*(_detect(pool, height) for height in heights), return_exceptions=True)
        rejected = [result for result in results if isinstance(result, ImageKillsChild)]
        answered = [result.height for result in results if isinstance(result, Detections)]
        assert len(rejected) == 1
        assert answered == [height for height in heights if height != poison]
        assert (await _detect(pool)).height == 20, "the pool serves on"


@_EITHER
async def test_a_hung_child_is_replaced_and_a_slow_one_is_waited_for(engine: str) -> None:
    patience = replace(_QUICK, patience=Patience(hung_s=1.0))
    async with _pool(processes=2, engine=engine, lane=patience) as pool:
        hangs, spins = _detect(pool, HANGS), _detect(pool, SPINS)
        assert (await spins).height == SPINS
        with pytest.raises(ImageKillsChild):
            await hangs
        causes = {str(entry["last_error"]).partition(":")[0] for entry in pool.snapshot() if entry["last_error"]}
        assert causes == {"hung"}


@_EITHER
async def test_a_child_whose_engine_fails_for_good_is_replaced_and_loses_no_picture(engine: str) -> None:
    """Neither those that it is given, nor others; only the one that breaks every child is refused."""
    async with _pool(processes=2, engine=engine) as pool:
        await _until(lambda: _all_ready(pool))
        breaks = _detect(pool, BREAKS)
        good = [_detect(pool) for _ in range(30)]
        with pytest.raises(InferenceUnavailable, match="RuntimeError"):
            await breaks
        assert [answer.height for answer in await asyncio.gather(*good)] == [20] * 30
        assert [answer.height for answer in await asyncio.gather(*(_detect(pool) for _ in range(9)))] == [20] * 9
        causes = {entry["last_error"] for entry in pool.snapshot() if entry["last_error"]}
        assert causes == {"its engine fails: RuntimeError"}


async def test_a_picture_on_which_each_engine_fails_harms_no_other() -> None:
    async with _pool(processes=2) as pool:
        await _until(lambda: _all_ready(pool))
        fails, good = _detect(pool, PASS_FAILS), [_detect(pool) for _ in range(20)]
        with pytest.raises(InferenceUnavailable, match="RuntimeError"):
            await fails
        assert [answer.height for answer in await asyncio.gather(*good)] == [20] * 20


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
    pool = InferencePool([_spec(engine)] * 2, PoolRules(lane=_QUICK))
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
    patient = replace(_QUICK, patience=Patience(stopped_s=2.0))
    async with _pool(lane=patient) as pool:
        os.kill(_pids(pool)[0], signal.SIGSTOP)
        held = [_detect(pool) for _ in range(9)]
        await _until(lambda: pool.snapshot()[0]["batches_in_hand"] == 2 and pool.waiting == 1)
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, seconds=0.05)
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, seconds=0.0)
        cancelled = _detect(pool)
        await _until(lambda: pool.waiting == 2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert pool.waiting == 1
        assert [answer.height for answer in await asyncio.gather(*held)] == [20] * 9


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


async def test_a_caretaker_that_fails_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiworker.inference.pool._CARE_AGAIN_S", 0.01)
    async with _pool() as pool:
        (stopped,) = _pids(pool)
        monkeypatch.setattr(pool._caretaker, "_look_after", lambda now: 1 / 0)
        await _until(lambda: pool._care_task is not None and pool._care_task.done())
        monkeypatch.undo()
        os.kill(stopped, signal.SIGSTOP)
        await _until(lambda: _pids(pool) not in ([], [stopped]) and pool.ready)


async def test_a_picture_that_takes_all_memory_is_told_so_and_harms_nobody() -> None:
    async with _pool() as pool:
        good = [_detect(pool) for _ in range(3)]
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, NO_MEMORY, seconds=0.7)
        assert [answer.height for answer in await asyncio.gather(*good)] == [20] * 3
        assert pool.snapshot()[0]["restarts"] == 0


async def test_device_memory_that_runs_out_lowers_the_cap_and_fails_nobody() -> None:
    metrics = Metrics()
    async with _pool(engine="CrampedEngine", metrics=metrics, max_batch=8) as pool:
        answers = await asyncio.gather(*(_detect(pool) for _ in range(40)))
        assert len(answers) == 40
        assert {answer.batch_size for answer in answers} <= {1, 2}
        assert pool.snapshot()[0]["cap"] == 2
        assert _value(metrics, "aiworker_inference_out_of_memory_total", **{"pass": "batch"}) >= 1


async def test_memory_that_a_neighbour_gives_back_lets_the_picture_through(tmp_path: Path) -> None:
    relieved, calls = tmp_path / "relieved", []

    async def relief() -> None:
        calls.append(1)
        relieved.touch()

    spec = ChildSpec(weights=str(relieved), engine="fakes.fake_engine:StarvedEngine")
    pool = InferencePool([spec], PoolRules(lane=_QUICK, relief=relief))
    await pool.start()
    try:
        answers = await asyncio.gather(*(_detect(pool, SLOW) for _ in range(4)))
        assert [answer.height for answer in answers] == [SLOW] * 4
        assert len(calls) == 1
        assert pool.snapshot()[0]["restarts"] == 0
    finally:
        await pool.stop()


async def test_a_child_that_goes_blind_is_found_by_its_canary_and_replaced() -> None:
    async with _pool(canary=picture(30), care=CareRules(canary_s=0.1)) as pool:
        (blinded,) = _pids(pool)
        assert (await _detect(pool, BLINDS)).items == ()
        await _until(lambda: _pids(pool) not in ([], [blinded]) and pool.ready)
        assert "blind" in str(pool.snapshot()[0]["last_error"])
        assert len((await _detect(pool)).items) == 1


async def test_a_child_that_is_blind_from_the_first_serves_nobody_where_it_is_known_what_is_to_be_seen() -> None:
    known = {edition_of(""): ((7, 0.9, 0.0, 0.0, 30.0, 30.0),)}
    pool = InferencePool(
        [ChildSpec("", engine="fakes.fake_engine:BlindEngine")], PoolRules(lane=_QUICK, canary=picture(30), known=known)
    )
    await pool.start()
    try:
        with pytest.raises(InferenceUnavailable, match="blind"):
            await pool.wait_ready()
        with pytest.raises(InferenceUnavailable):
            await _detect(pool)
    finally:
        await pool.stop()


async def test_a_child_that_grew_is_replaced_by_a_warm_one_while_all_are_answered() -> None:
    metrics = Metrics()
    async with _pool(metrics=metrics, care=CareRules(child_mb=120.0)) as pool:
        (grown,) = _pids(pool)
        await _detect(pool, GROWS)
        while _pids(pool) == [grown]:
            assert (await _detect(pool)).height == 20
        assert _value(metrics, "aiworker_inference_recycled_total", reason="memory") == 1
        assert (await _detect(pool)).height == 20
        await _until(lambda: not psutil.pid_exists(grown))
        assert pool.snapshot()[0]["restarts"] == 0


async def test_admission_pauses_while_memory_is_short_and_resumes() -> None:
    async with _pool() as pool:
        pool._caretaker._care = care = Care(CareRules(budget_mb=1.0))
        await _until(lambda: not pool.admitting)
        assert pool.state == "short of memory"
        waiting = _detect(pool)
        with pytest.raises(DeadlineExceeded):
            await _detect(pool, seconds=0.05)
        assert not waiting.done()
        care._rules = CareRules()
        assert (await waiting).height == 20
        assert pool.admitting


async def test_one_without_a_deadline_is_answered_and_leaves_the_slack_of_the_others_finite() -> None:
    async with _pool(metrics=(metrics := Metrics())) as pool:
        await asyncio.gather(
            *(_detect(pool, seconds=seconds) for seconds in (math.inf, math.nan, _LONG)), return_exceptions=True
        )
        assert (await _detect(pool, seconds=math.inf)).height == 20
        total = metrics.registry.get_sample_value("aiworker_inference_slack_seconds_sum")
        assert total is not None
        assert math.isfinite(total)


async def test_who_waits_outside_for_memory_is_told_when_the_pool_stops() -> None:
    async with _pool(care=CareRules(budget_mb=1.0)) as pool:
        await _until(lambda: not pool.admitting)
        outside = _detect(pool, seconds=math.inf)
        await asyncio.sleep(0)
        await pool.stop()
        with pytest.raises(InferenceUnavailable, match="stopping"):
            await asyncio.wait_for(outside, _LONG)


async def test_children_that_grew_within_their_limits_do_not_keep_admission_paused() -> None:
    own_mb = psutil.Process().memory_info().rss / 2**20
    async with _pool(processes=2) as pool:
        await _until(lambda: _all_ready(pool))
        # Room for half of what is about to grow.
        pool._caretaker._care = care = Care(CareRules(budget_mb=own_mb + pool.memory_mb + 50, high=1.0, low=1.0))
        await _detect(pool, GROWS)
        await _until(lambda: care.paused)
        assert (await _detect(pool)).height == 20
        assert pool.admitting
        assert [entry["last_error"] for entry in pool.snapshot()].count("recycled: memory is short") == 1


def _model(weights: str) -> ChildSpec:
    return ChildSpec(weights=weights, engine="fakes.fake_engine:ModelEngine")


async def test_weights_are_reloaded_under_load_without_losing_a_request() -> None:
    pool = InferencePool([_model("old.pt")] * 2, PoolRules(lane=_QUICK, canary=picture(30)))
    await pool.start()
    try:
        await asyncio.wait_for(pool.wait_ready(), _LONG)
        tasks: list[asyncio.Task[Detections]] = []

        async def load() -> None:
            while True:
                tasks.append(_detect(pool, SLOW))
                await asyncio.sleep(0.01)

        loading = asyncio.create_task(load())
        await asyncio.wait_for(pool.reload("new.pt"), _LONG)
        loading.cancel()
        answers = await asyncio.gather(*tasks)
        assert {answer.model for answer in answers} <= {"old", "new"}
        assert all(answer.items[0].class_name == answer.model for answer in answers)
        assert (await _detect(pool)).model == "new"

        await _until(lambda: len(_pids(pool)) == 2)
        pids = _pids(pool)
        with pytest.raises(InferenceUnavailable, match="not weights"):
            await asyncio.wait_for(pool.reload("broken.pt"), _LONG)
        assert _pids(pool) == pids, "the old children serve on"
        assert (await _detect(pool)).model == "new"
    finally:
        await pool.stop()


async def test_a_child_that_is_leaving_is_not_replaced_again() -> None:
    pool = InferencePool([_model("old.pt")] * 2, PoolRules(lane=_QUICK, canary=picture(30)))
    await pool.start()
    try:
        # While one still looks at its canary, the other would be given all four.
        await _until(lambda: {entry["state"] for entry in pool.snapshot()} == {"ready"})
        # The old children are kept busy for seconds, and leave only then.
        tasks = [_detect(pool, SPINS) for _ in range(4)]
        await _until(lambda: len(_busy(pool)) == 2)
        for weights in ("new.pt", "newer.pt"):
            await asyncio.wait_for(pool.reload(weights), _LONG)
        assert (await _detect(pool)).model == "newer"
        await asyncio.gather(*tasks)
        await _until(lambda: [entry["model"] for entry in pool.snapshot()] == ["newer"] * 2)
        assert [entry["restarts"] for entry in pool.snapshot()] == [0, 0]
    finally:
        await pool.stop()


async def test_a_child_that_grew_and_is_leaving_is_not_recycled_again() -> None:
    metrics = Metrics()
    async with _pool(metrics=metrics, care=CareRules(child_mb=100.0)) as pool:
        (grown,) = _pids(pool)
        await asyncio.gather(_detect(pool, GROWS), *(_detect(pool, SPINS) for _ in range(3)))
        await _until(lambda: not psutil.pid_exists(grown))
        await _until(lambda: len(pool.snapshot()) == 1)
        assert _value(metrics, "aiworker_inference_recycled_total", reason="memory") == 1
        assert (await _detect(pool)).height == 20


async def test_weights_of_the_same_name_that_find_other_things_are_not_blind(tmp_path: Path) -> None:
    weights = tmp_path / "food.pt"
    weights.write_text("7")
    spec = ChildSpec(weights=str(weights), engine="fakes.fake_engine:EditionEngine")
    pool = InferencePool([spec] * 2, PoolRules(lane=_QUICK, canary=picture(30)))
    await pool.start()
    try:
        await _until(lambda: _all_ready(pool))
        assert (await _detect(pool)).items[0].class_id == 7
        weights.write_text("8")
        await asyncio.wait_for(pool.reload(str(weights)), _LONG)
        assert {answer.items[0].class_id for answer in await asyncio.gather(*(_detect(pool) for _ in range(8)))} == {8}
        assert {entry["last_error"] for entry in pool.snapshot()} == {None}
    finally:
        await pool.stop()


async def test_models_share_memory_and_the_one_unused_longest_makes_room() -> None:
    async def make(name: str) -> InferencePool:
        return InferencePool([_model(name)], PoolRules(lane=_QUICK))

    main = await make("main.pt")
    await main.start()
    await asyncio.wait_for(main.wait_ready(), _LONG)
    names = [f"{name}.pt" for name in ("first", "second", "third", "fourth", "huge")]
    room_for_two = 450 + 1.5 * main.memory_mb
    shelf = ModelShelf(main, Further(names, make, cap_mb=room_for_two, expected_mb=450))
    try:
        for model in ("", "first.pt", "second.pt", "first.pt", "third.pt"):
            answer = await shelf.detect(picture(), Deadline.after(_LONG), model)
            assert answer.items[0].class_name == (model or "main.pt").removesuffix(".pt")
        assert {each.name for each in shelf.loaded} == {"first.pt", "third.pt"}
        slow = [
            asyncio.create_task(shelf.detect(picture(SLOW), Deadline.after(_LONG), f"{name}.pt"))
            for name in ("first", "third")
        ]
        await _until(lambda: all(each.busy for each in shelf.loaded))
        with pytest.raises(DeadlineExceeded, match="no memory"):
            await shelf.detect(picture(), Deadline.after(0.01), "fourth.pt")
        assert len(await asyncio.gather(*slow)) == 2
        shelf._sizes["huge.pt"] = 2000.0
        with pytest.raises(InferenceOutOfMemory):
            await shelf.detect(picture(), Deadline.after(_LONG), "huge.pt")
        with pytest.raises(DetectorUnknown, match=r"first\.pt"):
            await shelf.detect(picture(), Deadline.after(_LONG), "sixth.pt")
    finally:
        await shelf.stop()


async def test_a_model_that_is_asked_for_while_another_makes_room_is_not_put_away() -> None:
    async def make(name: str) -> InferencePool:
        return InferencePool([_model(f"{name}.pt")], PoolRules(lane=replace(_QUICK, stop_grace_s=0.2)))

    # What a model needs is known once it was used: before, it is believed to need all.
    shelf = ModelShelf(
        InferencePool([_model("main.pt")]), Further(("a", "b", "c"), make, cap_mb=900.0, expected_mb=900.0)
    )

    def ask(name: str, height: int = 20) -> asyncio.Task[Detections]:
        return asyncio.create_task(shelf.detect(picture(height), Deadline.after(_LONG), name))

    try:
        for name in ("a", "b", "a"):
            assert (await ask(name)).model == name
        assert {each.name for each in shelf.loaded} == {"a", "b"}
        third = ask("c")
        while "b" in {each.name for each in shelf.loaded}:
            await asyncio.sleep(0)
        again = ask("a", SPINS)
        assert [answer.model for answer in await asyncio.gather(third, again)] == ["c", "a"]
    finally:
        await shelf.stop()


async def test_a_crash_loop_is_shown_as_such_and_ends_when_its_cause_does(tmp_path: Path) -> None:
    metrics = Metrics()
    pool = InferencePool([_model("broken.pt")], PoolRules(lane=_QUICK), metrics)
    await pool.start()
    try:
        with pytest.raises(InferenceUnavailable):
            await asyncio.wait_for(pool.wait_ready(), _LONG)
        (entry,) = pool.snapshot()
        assert (entry["state"], entry["last_error"]) == ("failed", "ValueError: these weights are not weights")
        assert int(entry["restarts"] or 0) >= 4
        # Those that never served count too.
        assert metrics.child_ends.labels("ValueError")._value.get() >= 5
        assert pool.state == "crash loop"
        await asyncio.wait_for(pool.reload("good.pt"), _LONG)
        assert (await _detect(pool)).model == "good"
        await _until(lambda: [entry["state"] for entry in pool.snapshot()] == ["ready"])
    finally:
        await pool.stop()


async def test_what_was_learned_of_service_times_is_kept(tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    times.write_text("damaged")
    async with _pool(times=times) as pool:
        await _detect(pool, SLOW)
    async with _pool(times=times) as pool:
        await _until(lambda: pool._driver.scheduler.times.of("fake", None).known)
        assert pool._driver.scheduler.times.of("fake", None).mean(1) >= 0.05


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


_PARENT = """
import asyncio, sys
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.telemetry.logs import configure_logging

async def main():
    configure_logging("ERROR", "test")
    pool = InferencePool([ChildSpec(weights="none.pt", engine="fakes.fake_engine:FakeEngine")] * 2)
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
