"""The scheduler's services over the in-memory queue: claims, outcomes, cancels, lost leases, draining."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from fakes.memory_queue import MemoryQueue
from fakes.ports import FunctionDetector, FunctionImages, FunctionModel, detections
from fakes.virtual_time import run_virtually

from aiworker.analyses.base import AnalysisResult, Attempt, JobInput, Tools
from aiworker.analyses.registry import ANALYSES
from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import DatabaseUnavailable, InputRejected, MediaUnavailable, QueueError
from aiworker.domain.job import ClaimedJob, JobStatus, JobType, JobView, Lease, NewJob, Renewal
from aiworker.domain.outcome import Completed, Interrupted, Outcome
from aiworker.domain.retry import RetryPolicy
from aiworker.scheduler import outcomes
from aiworker.scheduler.executor import JobExecutor
from aiworker.scheduler.leases import LeaseKeeper
from aiworker.scheduler.outcomes import OutcomeWriter
from aiworker.scheduler.running import RunningJob, RunningJobs, StopReason
from aiworker.scheduler.worker import Worker, WorkerLimits
from aiworker.telemetry.metrics import Metrics

USER = UUID("11111111-1111-4111-8111-111111111111")
LIMITS = WorkerLimits(
    worker_id="w1", slots=2, lease_s=30, poll_s=30, attempt_timeout_s=30, drain_timeout_s=5, cache_ttl_s=60
)


class WatchedQueue(MemoryQueue):
    """A queue whose ends can be awaited."""

    def __init__(self, **rules: Any) -> None:
        super().__init__(**rules)
        self._ended = asyncio.Condition()
        self.claimed_limits: list[int] = []
        self.taken: list[UUID] = []

    async def claim(self, worker_id: str, limit: int, lease_s: float, types: Any, suspects: bool = True) -> Any:
        self.claimed_limits.append(limit)
        await asyncio.sleep(0)
        claimed = await super().claim(worker_id, limit, lease_s, types, suspects)
        self.taken += [job.id for job in claimed]
        return claimed

    async def finalise(self, outcomes: Any) -> frozenset[UUID]:
        lost = await super().finalise(outcomes)
        async with self._ended:
            self._ended.notify_all()
        return lost

    async def until(self, job_id: UUID, status: JobStatus) -> JobView:
        async with asyncio.timeout(10), self._ended:
            while (job := await self.status(job_id, None)).status is not status:
                await self._ended.wait()
        return job


class GatedModel:
    """Every call waits for `open`, and says when it began."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.began = asyncio.Semaphore(0)
        self.cancelled = 0

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        self.began.release()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Completion(text="oi", provider="ollama", model="m", finish="stop")

    async def begun(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            for _ in range(count):
                await self.began.acquire()


def tools(model: Any = None, images: FunctionImages | None = None) -> Tools:
    return Tools(images or FunctionImages(), FunctionDetector(detections(("banana", 0.9))), model or FunctionModel())


@asynccontextmanager
async def working(
    queue: MemoryQueue,
    using: Tools,
    limits: WorkerLimits = LIMITS,
    policy: RetryPolicy | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A running worker; calls of the yielded function, and the end of the block, stop it and wait."""
    stop = asyncio.Event()
    worker = Worker(queue, queue, using, metrics or Metrics(), limits, policy)
    task = asyncio.create_task(worker.run(stop))

    async def stopped() -> None:
        stop.set()
        async with asyncio.timeout(15):
            await task

    try:
        yield stopped
    finally:
        await stopped()


def job(text: str = "um ovo", **fields: Any) -> NewJob:
    return NewJob(**({"user_id": uuid4(), "type": "sofia_text", "input": {"text": text}} | fields))


def chat(**fields: Any) -> NewJob:
    return job(type="unified_assistant", input={"message": "oi"}, **fields)


async def put(queue: MemoryQueue, new: NewJob) -> UUID:
    job_id = (await queue.enqueue(new)).job_id
    assert job_id is not None
    return job_id


async def test_a_job_is_done_and_its_row_says_how() -> None:
    queue = WatchedQueue()
    async with working(queue, tools()):
        done = await queue.until(await put(queue, job()), JobStatus.COMPLETED)
    assert done.result is not None
    assert done.result["degraded"] is True
    assert set(done.result["stages_ms"]) == {"generate", "save"}
    assert done.worker_id == "w1"
    assert done.attempts == 1


async def test_never_more_jobs_than_slots() -> None:
    queue, model = WatchedQueue(), GatedModel()
    async with working(queue, tools(model)):
        ids = [await put(queue, chat()) for _ in range(5)]
        await model.begun(2)
        depth = await queue.depth()
        assert (depth.processing, depth.pending) == (2, 3)
        model.open.set()
        for job_id in ids:
            await queue.until(job_id, JobStatus.COMPLETED)
    assert max(queue.claimed_limits) <= LIMITS.slots


class SlowQueue(WatchedQueue):
    """Writes no outcome until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def finalise(self, outcomes: Any) -> frozenset[UUID]:
        await self.open.wait()
        return await super().finalise(outcomes)


async def test_a_slot_is_free_before_its_outcome_is_written_but_not_without_end() -> None:
    queue = SlowQueue()
    async with working(queue, tools()):
        ids = [await put(queue, job(f"{number} ovos")) for number in range(12)]
        async with asyncio.timeout(10):
            while (await queue.depth()).processing < 2 * LIMITS.slots:
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        held = (await queue.depth()).processing
        queue.open.set()
        for job_id in ids:
            await queue.until(job_id, JobStatus.COMPLETED)
    assert 2 * LIMITS.slots <= held <= 3 * LIMITS.slots


async def test_a_transient_error_is_retried_and_then_fails() -> None:
    queue = WatchedQueue()
    photo = job(type="sofia_image", input={"imageUrl": "https://example.org/x.jpg"}, max_attempts=2)
    instantly = RetryPolicy(base_s=0.001, cap_s=0.001)
    limits = WorkerLimits("w1", 2, 30, 0.02, 30, 5, 60)
    async with working(queue, tools(images=FunctionImages(MediaUnavailable())), limits, instantly):
        failed = await queue.until(await put(queue, photo), JobStatus.FAILED)
    assert failed.attempts == 2
    assert failed.error_code == "media_unavailable"


async def test_bad_input_in_a_row_fails_at_once_and_the_next_job_runs() -> None:
    queue = WatchedQueue()
    async with working(queue, tools()):
        bad = await queue.until(await put(queue, job(input={"nothing": 1})), JobStatus.FAILED)
        assert (bad.error_code, bad.attempts) == ("invalid_input", 1)
        await queue.until(await put(queue, job()), JobStatus.COMPLETED)


async def test_a_bug_in_an_analysis_becomes_an_outcome() -> None:
    queue = WatchedQueue()
    bug = FunctionModel(lambda _: ZeroDivisionError("content"))
    async with working(queue, tools(bug)):
        failed = await queue.until(await put(queue, job(max_attempts=1)), JobStatus.FAILED)
    assert failed.error_code == "internal_error"
    assert failed.error is not None
    assert "content" not in failed.error


class Panic(BaseException):
    """Like that of a library in Rust, which is no Exception."""


async def test_a_panic_in_an_analysis_becomes_an_outcome_and_keeps_no_worker_from_stopping() -> None:
    queue = WatchedQueue()

    async def panicking(_: PromptRequest, __: Deadline) -> Completion:
        raise Panic

    async with working(queue, tools(SimpleNamespace(complete=panicking))):
        failed = await queue.until(await put(queue, chat(max_attempts=1)), JobStatus.FAILED)
    assert failed.error_code == "internal_error"


async def test_a_result_that_json_cannot_hold_fails_at_once() -> None:
    queue = WatchedQueue()
    async with working(queue, tools(FunctionModel(lambda _: "half a pair: \ud800"))):
        failed = await queue.until(await put(queue, chat()), JobStatus.FAILED)
    assert (failed.error_code, failed.attempts) == ("internal_error", 1)


async def test_a_number_that_json_cannot_hold_is_null_in_the_result() -> None:
    async def uncertain(_given: JobInput, _attempt: Attempt) -> AnalysisResult:
        return AnalysisResult(cost_usd=float("nan"), stages_ms={"save": float("inf")})

    analyses = {"sofia_text": replace(ANALYSES["sofia_text"], input_model=JobInput, run=uncertain)}
    executor = JobExecutor(
        tools(), Metrics(), policy=RetryPolicy(), attempt_timeout_s=30, cache_ttl_s=None, analyses=analyses
    )
    claimed = ClaimedJob(Lease(UUID(int=1), UUID(int=2)), USER, "sofia_text", "{}", 1, 3, 20.0, 0.0)
    done = await executor.execute(claimed, lambda _percent, _stage: None)
    assert isinstance(done, Completed)
    assert isinstance(done.result, bytes)
    result = json.loads(done.result)
    assert (result["cost_usd"], result["stages_ms"]) == (None, {"save": None})


async def test_an_attempt_that_takes_too_long_is_ended() -> None:
    queue, model = WatchedQueue(), GatedModel()
    limits = WorkerLimits("w1", 2, 30, 30, 0.05, 5, 60)
    async with working(queue, tools(model), limits):
        new = job(type="unified_assistant", input={"message": "oi"}, max_attempts=1)
        failed = await queue.until(await put(queue, new), JobStatus.FAILED)
    assert failed.error_code == "deadline_exceeded"
    assert model.cancelled == 1


async def test_the_work_of_a_cancelled_job_is_aborted_and_is_no_lost_lease() -> None:
    queue, model, metrics = WatchedQueue(), GatedModel(), Metrics()
    async with working(queue, tools(model), metrics=metrics):
        job_id = await put(queue, chat())
        await model.begun()
        assert (await queue.cancel(job_id, None)).status is JobStatus.CANCELLED
        async with asyncio.timeout(10):
            while not model.cancelled:
                await asyncio.sleep(0)
    ended = {"type": "unified_assistant", "outcome": "cancelled"}
    assert metrics.registry.get_sample_value("aiworker_jobs_total", ended) == 1
    assert metrics.registry.get_sample_value("aiworker_leases_lost_total") == 0


def test_a_cancel_that_nobody_tells_of_is_obeyed_within_a_second() -> None:
    async def from_cancel_to_stop() -> float:
        queue, running = MemoryQueue(), RunningJobs()
        job_id = await put(queue, chat())
        [claimed] = await queue.claim("w", 1, 60, ["unified_assistant"])
        work = asyncio.create_task(asyncio.sleep(3600))
        running.add([RunningJob(claimed, time.monotonic(), work)])
        keeper = LeaseKeeper(queue, running, Metrics(), lease_s=60, attempt_timeout_s=60)
        keeping = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.1)
        await queue.cancel(job_id, None)
        cancelled_at = asyncio.get_running_loop().time()
        await asyncio.wait([work])
        keeping.cancel()
        return asyncio.get_running_loop().time() - cancelled_at

    assert run_virtually(from_cancel_to_stop()) <= 1


class GoneQueue(MemoryQueue):
    """Answers nothing from the second rescue on."""

    asked = 0

    async def rescue(self) -> int:
        self.asked += 1
        if self.asked > 1:
            raise DatabaseUnavailable
        return await super().rescue()


async def test_leases_are_not_alive_because_nothing_was_asked() -> None:
    """Hints come in while the database is gone, and turns on which nothing is due prove nothing."""
    queue = GoneQueue()
    keeper = LeaseKeeper(queue, RunningJobs(), Metrics(), lease_s=0.1, attempt_timeout_s=60)
    keeping = asyncio.create_task(keeper.run())
    async with asyncio.timeout(20):
        while queue.asked < 1:
            await asyncio.sleep(0)
        proved = keeper.last_success
        while queue.asked < 5:
            keeper.look_now()
            await asyncio.sleep(0)
    keeping.cancel()
    assert keeper.last_success == proved


async def test_stopping_lets_jobs_finish() -> None:
    queue, model = WatchedQueue(), GatedModel()
    async with working(queue, tools(model)) as stopped:
        job_id = await put(queue, chat())
        await model.begun()
        stopping = asyncio.create_task(stopped())
        await asyncio.sleep(0)
        model.open.set()
        await stopping
    assert (await queue.status(job_id, None)).status is JobStatus.COMPLETED


async def test_stopping_puts_late_jobs_back_without_costing_an_attempt() -> None:
    queue, model = WatchedQueue(), GatedModel()
    limits = WorkerLimits("w1", 2, 30, 30, 30, 0.05, 60)
    async with working(queue, tools(model), limits) as stopped:
        job_id = await put(queue, chat())
        await model.begun()
        await stopped()
    back = await queue.status(job_id, None)
    assert (back.status, back.attempts) == (JobStatus.PENDING, 0)


class TakenAwayQueue(WatchedQueue):
    """Says of every lease that it is gone."""

    async def renew(self, leases: Any, lease_s: float) -> Renewal:
        return Renewal(lost=frozenset(lease.job_id for lease in leases))


async def test_a_job_whose_lease_is_lost_is_dropped_unwritten() -> None:
    queue, model = TakenAwayQueue(), GatedModel()
    limits = WorkerLimits("w1", 2, 0.06, 30, 30, 5, 60)
    async with working(queue, tools(model), limits):
        job_id = await put(queue, chat())
        await model.begun()
        async with asyncio.timeout(10):
            while not model.cancelled:
                await asyncio.sleep(0)
    assert (await queue.status(job_id, None)).status is JobStatus.PROCESSING


class BusyQueue(WatchedQueue):
    """A notification comes while its first claim, which finds nothing, is under way."""

    async def claim(self, *args: Any) -> Any:
        claimed = await super().claim(*args)
        if len(self.claimed_limits) == 1:
            await self.enqueue(job())
            for _ in range(20):
                await asyncio.sleep(0)
        return claimed


async def test_a_notification_during_a_claim_is_not_lost() -> None:
    queue = BusyQueue()
    async with working(queue, tools(), replace(LIMITS, poll_s=3600)):
        async with asyncio.timeout(10):
            while not [row for row in queue.rows() if row.status is JobStatus.COMPLETED]:
                await asyncio.sleep(0)


async def test_nothing_is_begun_beside_a_job_that_may_have_killed_its_worker() -> None:
    now = [0.0]
    queue, model = WatchedQueue(clock=lambda: now[0]), GatedModel()
    suspect = await put(queue, replace(chat(), max_attempts=2))
    await queue.claim("dead", 1, 1.0, ["unified_assistant"])
    now[0] = 2.0
    await queue.rescue()
    async with working(queue, tools(model), replace(LIMITS, slots=2)):
        await model.begun()
        other = await put(queue, chat())
        await asyncio.sleep(0)
        assert (await queue.status(other, None)).status is JobStatus.PENDING
        model.open.set()
        await queue.until(suspect, JobStatus.COMPLETED)
        await queue.until(other, JobStatus.COMPLETED)


class HandingBackQueue(WatchedQueue):
    """Tells when an attempt is given back."""

    given_back = 0

    async def finalise(self, outcomes: Any) -> frozenset[UUID]:
        self.given_back += sum(isinstance(outcome, Interrupted) for _, outcome in outcomes)
        return await super().finalise(outcomes)


async def test_a_suspect_is_not_begun_beside_others() -> None:
    now = [0.0]
    queue, model = HandingBackQueue(clock=lambda: now[0]), GatedModel()
    async with working(queue, tools(model), replace(LIMITS, slots=3, poll_s=0.02)):
        other = await put(queue, chat())
        await model.begun()
        suspect = await put(queue, replace(chat(), max_attempts=2, delay_s=1.0))
        now[0] = 2.0
        await queue.claim("dead", 1, 1.0, ["unified_assistant"])
        now[0] = 4.0
        await queue.rescue()
        async with asyncio.timeout(10):
            while not queue.given_back:
                await asyncio.sleep(0)
        assert ((await queue.status(suspect, None)).attempts, queue.given_back) == (1, 1)
        late = await put(queue, chat())
        model.open.set()
        for job_id in (other, suspect, late):
            await queue.until(job_id, JobStatus.COMPLETED)


class GatedClaims(HandingBackQueue):
    """Each claim waits until it is let through, and says that it has come: (limit, whether it may bring a suspect)."""

    def __init__(self, **rules: Any) -> None:
        super().__init__(**rules)
        self.come: asyncio.Queue[tuple[int, bool, asyncio.Event]] = asyncio.Queue()

    async def claim(self, worker_id: str, limit: int, lease_s: float, types: Any, suspects: bool = True) -> Any:
        through = asyncio.Event()
        self.come.put_nowait((limit, suspects, through))
        await through.wait()
        return await super().claim(worker_id, limit, lease_s, types, suspects)

    async def come_two(self) -> list[tuple[int, bool, asyncio.Event]]:
        """The next two, the one that may bring a suspect last."""
        async with asyncio.timeout(10):
            return sorted([await self.come.get(), await self.come.get()], key=lambda claim: claim[1])

    def open(self) -> None:
        """All that have come, and all that come from now on, go through."""

        async def keep_open() -> None:
            while True:
                (await self.come.get())[2].set()

        self._opener = asyncio.create_task(keep_open())


def ready_for_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has been there for a while."""
    clock, calls = time.monotonic, iter([1.0])
    monkeypatch.setattr(
        "aiworker.scheduler.dispatcher.time", SimpleNamespace(monotonic=lambda: next(calls, None) or clock())
    )


async def test_while_claims_come_back_full_two_are_under_way_and_ask_for_no_more_than_there_are_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready_for_suspects(monkeypatch)
    queue, model = GatedClaims(), GatedModel()
    for _ in range(130):
        await put(queue, chat())
    async with working(queue, tools(model), replace(LIMITS, slots=120, poll_s=3600)):
        limit, suspects, through = await queue.come.get()
        assert (limit, suspects) == (50, True)
        await asyncio.sleep(0)
        assert queue.come.empty(), "before one has come back full there is no second"
        through.set()
        beside, first = await queue.come_two()
        assert sorted([beside[0], first[0]]) == [20, 50]
        assert [beside[1], first[1]] == [False, True]
        queue.open()
        beside[2].set()
        first[2].set()
        await model.begun(120)
        model.open.set()
        async with asyncio.timeout(10):
            while (await queue.depth()).pending:
                await asyncio.sleep(0)
    assert len(queue.taken) == len(set(queue.taken)) == 130


async def test_a_suspect_is_not_begun_while_others_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ready_for_suspects(monkeypatch)
    now = [0.0]
    queue, model = GatedClaims(clock=lambda: now[0]), GatedModel()
    model.open.set()
    for _ in range(50):
        await put(queue, chat())
    async with working(queue, tools(model), replace(LIMITS, slots=100, poll_s=3600)):
        (await queue.come.get())[2].set()
        beside, first = await queue.come_two()
        suspect = await put(queue, replace(chat(), max_attempts=2))
        await MemoryQueue.claim(queue, "dead", 1, 1.0, ["unified_assistant"])
        now[0] = 2.0
        await queue.rescue()
        # The worker is idle, but for a claim that has not come back.
        first[2].set()
        async with asyncio.timeout(10):
            while not queue.given_back:
                await asyncio.sleep(0)
        assert (await queue.status(suspect, None)).attempts == 1
        other = await put(queue, chat())
        beside[2].set()
        queue.open()
        for job_id in (other, suspect):
            await queue.until(job_id, JobStatus.COMPLETED)
    assert queue.taken.count(suspect) == 2


class LateQueue(WatchedQueue):
    """Its second claim, which looks at once, answers late and maybe with an error."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.looked, self.answer = asyncio.Event(), asyncio.Event()

    async def claim(self, *args: Any) -> Any:
        second = len(self.claimed_limits) == 1
        claimed = await super().claim(*args)
        if second:
            self.looked.set()
            await self.answer.wait()
            if self.fails:
                raise DatabaseUnavailable("lost")
        return claimed


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("slots", [1, 50])
async def test_what_comes_while_the_claim_beside_has_all_the_room_is_not_left_until_the_poll(
    slots: int, fails: bool
) -> None:
    queue = LateQueue(fails=fails)
    for number in range(slots):
        await put(queue, job(f"{number} ovos"))
    async with working(queue, tools(), replace(LIMITS, slots=slots, poll_s=3600)):
        async with asyncio.timeout(10):
            await queue.looked.wait()
            while (await queue.depth()).processing:
                await asyncio.sleep(0)
        late = await put(queue, job("mais um"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (await queue.status(late, None)).status is JobStatus.PENDING
        queue.answer.set()
        await queue.until(late, JobStatus.COMPLETED)


async def test_a_worker_that_starts_does_not_begin_with_the_suspects() -> None:
    now = [0.0]
    queue = WatchedQueue(clock=lambda: now[0])
    asked: list[str] = []

    def answer(request: PromptRequest) -> str:
        asked.append(request.prompt)
        return "oi"

    suspects = [await put(queue, replace(chat(), max_attempts=2)) for _ in range(3)]
    await queue.claim("dead", 3, 1.0, ["unified_assistant"])
    now[0] = 2.0
    await queue.rescue()
    others = [await put(queue, job(type="unified_assistant", input={"message": "outro"})) for _ in range(4)]
    async with working(queue, tools(FunctionModel(answer))):
        for job_id in (*others, *suspects):
            await queue.until(job_id, JobStatus.COMPLETED)
    assert ["outro" in prompt for prompt in asked] == [True] * 4 + [False] * 3


async def test_a_suspect_waits_for_nobody_who_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    queue = WatchedQueue(clock=lambda: now[0])
    started = time.monotonic()
    monkeypatch.setattr("aiworker.scheduler.dispatcher.time", SimpleNamespace(monotonic=lambda: started))
    suspect = await put(queue, replace(chat(), max_attempts=2))
    await queue.claim("dead", 1, 1.0, ["unified_assistant"])
    now[0] = 2.0
    await queue.rescue()
    async with working(queue, tools(FunctionModel(lambda _: "oi"))):
        await queue.until(suspect, JobStatus.COMPLETED)


async def test_after_a_suspect_it_is_the_turn_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ahead = [0.0], [0.0]
    queue, model = WatchedQueue(clock=lambda: now[0]), GatedModel()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr("aiworker.scheduler.dispatcher.time", clock)
    suspects = [await put(queue, replace(chat(), max_attempts=2)) for _ in range(2)]
    await queue.claim("dead", 2, 1.0, ["unified_assistant"])
    now[0] = 2.0
    await queue.rescue()
    async with working(queue, tools(model)):
        await model.begun()
        other = await put(queue, chat())
        ahead[0] = 10.0
        model.open.set()
        for job_id in (other, *suspects):
            await queue.until(job_id, JobStatus.COMPLETED)
    # One that has to wait until the worker is idle is taken twice.
    assert list(dict.fromkeys(queue.taken[2:])) == [suspects[0], other, suspects[1]]


def test_forgetting_an_old_attempt_keeps_the_new_one() -> None:
    jobs = RunningJobs()
    lease = Lease(UUID(int=1), UUID(int=2))
    claimed = ClaimedJob(lease, USER, "sofia_text", "{}", 1, 3, 20.0, 0.0)
    old, new = RunningJob(claimed, 0.0), RunningJob(claimed, 1.0)
    jobs.add([old])
    jobs.worked()
    jobs.add([new])

    jobs.remove([old])

    assert jobs.by_id == {claimed.id: new}


def test_an_attempt_that_begins_here_stops_the_one_before_it() -> None:
    """Its lease was lost without a word: the database was away when it ran out, and rescue gave the job back to us."""
    jobs = RunningJobs()
    claimed = ClaimedJob(Lease(UUID(int=1), UUID(int=2)), USER, "sofia_text", "{}", 1, 3, 20.0, 0.0)
    old, new = RunningJob(claimed, 0.0), RunningJob(claimed, 1.0)
    jobs.add([old])
    jobs.add([new])

    assert (old.stop_reason, new.stop_reason) == (StopReason.LEASE_LOST, None)


async def test_a_lost_lease_is_counted_as_that_and_not_as_its_outcome() -> None:
    class Forgetful(WatchedQueue):
        async def finalise(self, outcomes: Any) -> frozenset[UUID]:
            async with self._ended:
                self._ended.notify_all()
            return frozenset(lease.job_id for lease, _ in outcomes)

    queue, metrics = Forgetful(), Metrics()
    running = RunningJobs()
    writer = OutcomeWriter(queue, running, metrics)
    claimed = ClaimedJob(Lease(UUID(int=1), UUID(int=2)), USER, "sofia_text", "{}", 1, 3, 20.0, 0.0)
    writer.submit(RunningJob(claimed, 0.0), Completed({}))
    writer.close()
    await writer.run()

    assert metrics.registry.get_sample_value("aiworker_leases_lost_total") == 1
    ended = {"type": "sofia_text", "outcome": "completed"}
    assert metrics.registry.get_sample_value("aiworker_jobs_total", ended) is None


async def test_three_writes_are_under_way_and_what_comes_meanwhile_is_gathered() -> None:
    class Held(WatchedQueue):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[int] = []
            self.begun = asyncio.Semaphore(0)
            self.through = [asyncio.Event() for _ in range(4)]

        async def finalise(self, outcomes: Any) -> frozenset[UUID]:
            self.asked.append(len(outcomes))
            self.begun.release()
            await self.through[len(self.asked) - 1].wait()
            return await super().finalise(outcomes)

    queue, running = Held(), RunningJobs()
    ids = [await put(queue, job(f"{number} ovos")) for number in range(7)]
    running.add([RunningJob(claimed, 0.0) for claimed in await queue.claim("w", 7, 30, ["sofia_text"])])
    writer = OutcomeWriter(queue, running, Metrics())
    jobs = [running.by_id[job_id] for job_id in ids]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        for one in jobs[:3]:
            writer.submit(one, Completed({}))
            await queue.begun.acquire()
        for one in jobs[3:]:
            writer.submit(one, Completed({}))
        writer.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert queue.asked == [1, 1, 1]
        # Two are held, say by a row's lock: the second ends, and all that waited go together.
        queue.through[1].set()
        await queue.begun.acquire()
        assert queue.asked == [1, 1, 1, 4]
        queue.through[3].set()
        for job_id in (ids[1], *ids[3:]):
            await queue.until(job_id, JobStatus.COMPLETED)
        queue.through[0].set()
        queue.through[2].set()
    for job_id in ids:
        assert (await queue.status(job_id, None)).status is JobStatus.COMPLETED
    assert not running.by_id


def test_rows_that_somebody_holds_keep_nobody_else_waiting_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of forty, while another outcome comes every half second."""
    # Tracebacks in colour would take seconds.
    monkeypatch.setattr(outcomes, "_log", Mock())

    class HeldRows(MemoryQueue):
        def __init__(self) -> None:
            super().__init__()
            self.held: set[UUID] = set()
            self.written_at: dict[UUID, float] = {}

        async def finalise(self, outcomes: Any) -> frozenset[UUID]:
            ids = {lease.job_id for lease, _ in outcomes}
            if ids & self.held:
                await asyncio.sleep(10)
                raise DatabaseUnavailable("held")
            await asyncio.sleep(0.002)
            self.written_at |= dict.fromkeys(ids, asyncio.get_running_loop().time())
            return await super().finalise(outcomes)

    async def waits() -> tuple[list[float], list[float]]:
        queue, running = HeldRows(), RunningJobs()
        clock = asyncio.get_running_loop().time
        ids = [await put(queue, job(f"{number} ovos")) for number in range(320)]
        running.add([RunningJob(claimed, 0.0) for claimed in await queue.claim("w", 320, 3000, ["sofia_text"])])
        queue.held = {ids[7], ids[30]}
        writer = OutcomeWriter(queue, running, Metrics())
        writing = asyncio.create_task(writer.run())
        submitted_at = {}
        for number, job_id in enumerate(ids):
            if number >= 40:
                await asyncio.sleep(0.5)
            submitted_at[job_id] = clock()
            writer.submit(running.by_id[job_id], Completed({}))
        others = [job_id for job_id in ids if job_id not in queue.held]
        waited = [queue.written_at.get(job_id, clock()) - submitted_at[job_id] for job_id in others]
        queue.held.clear()
        writer.close()
        await writing
        assert not running.by_id, "in the end they are written too"
        return waited[:38], waited[38:]

    beside, later = run_virtually(waits())
    assert max(beside) < 12 * 10.5, "a dozen halves hold one of the two"
    assert max(later) < 1


@pytest.mark.parametrize(("error", "status"), [(InputRejected("bad"), JobStatus.FAILED), (QueueError("?"), None)])
async def test_only_a_refused_value_makes_a_failure_of_an_outcome(error: Exception, status: JobStatus | None) -> None:
    class Refusing(WatchedQueue):
        async def finalise(self, outcomes: Any) -> frozenset[UUID]:
            if any(isinstance(outcome, Completed) for _, outcome in outcomes):
                raise error
            return await super().finalise(outcomes)

    queue, running = Refusing(), RunningJobs()
    job_id = await put(queue, job())
    [claimed] = await queue.claim("w", 1, 30, ["sofia_text"])
    running.add([RunningJob(claimed, 0.0)])
    writer = OutcomeWriter(queue, running, Metrics())
    writer.submit(running.by_id[job_id], Completed({}))
    writer.close()
    await writer.run()

    assert (await queue.status(job_id, None)).status is (status or JobStatus.PROCESSING)
    assert not running.by_id


class FlakyQueue(WatchedQueue):
    """Its database is away for the first calls of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = {"claim": 1, "finalise": 2, "renew": 1, "rescue": 1}

    def _maybe_fail(self, call: str) -> None:
        if self.failures[call]:
            self.failures[call] -= 1
            raise DatabaseUnavailable("gone")

    async def claim(self, *args: Any) -> Any:
        self._maybe_fail("claim")
        return await super().claim(*args)

    async def finalise(self, outcomes: list[tuple[Lease, Outcome]]) -> frozenset[UUID]:
        self._maybe_fail("finalise")
        return await super().finalise(outcomes)

    async def rescue(self) -> int:
        self._maybe_fail("rescue")
        return await super().rescue()


async def test_outcomes_wait_for_the_database_and_are_written_once() -> None:
    queue = FlakyQueue()
    limits = WorkerLimits("w1", 2, 30, 0.05, 30, 5, 60)
    async with working(queue, tools(), limits):
        done = await queue.until(await put(queue, job()), JobStatus.COMPLETED)
    assert done.attempts == 1
    assert queue.failures["finalise"] == 0


@pytest.mark.parametrize("call", ["renew", "rescue", "prune", "report"])
async def test_a_row_that_the_database_cannot_work_with_ends_no_worker(call: str) -> None:
    """A moment without end that somebody wrote by hand, say: the others must not fare like it."""

    class Odd(WatchedQueue):
        asked = 0

    async def refuse(self: Odd, *_: Any) -> Any:
        self.asked += 1
        raise InputRejected("timestamp out of range")

    setattr(Odd, call, refuse)
    queue, model = Odd(), GatedModel()
    limits = WorkerLimits("w1", 2, 0.3, 0.05, 30, 5, 60, retention_s=60)
    async with working(queue, tools(model), limits):
        job_id = await put(queue, job())
        await model.begun()
        async with asyncio.timeout(10):
            while queue.asked < (1 if call in ("prune", "report") else 2):
                await asyncio.sleep(0)
        model.open.set()
        await queue.until(job_id, JobStatus.COMPLETED)


async def test_only_whole_answers_of_cacheable_types_are_shared() -> None:
    queue = WatchedQueue()

    def answer(request: PromptRequest) -> Any:
        return "oi" if request.answer is None else request.answer.model_validate({"foods": []})

    async with working(queue, tools(FunctionModel(answer))):
        await queue.until(await put(queue, job()), JobStatus.COMPLETED)
        await queue.until(await put(queue, chat()), JobStatus.COMPLETED)
    async with working(queue, tools()):
        await queue.until(await put(queue, job("dois ovos")), JobStatus.COMPLETED)
    assert (await queue.enqueue(job())).job_id is None
    assert (await queue.enqueue(chat())).job_id is not None
    assert (await queue.enqueue(job("dois ovos"))).job_id is not None


async def test_a_late_job_still_gets_a_budget() -> None:
    budgets: list[float] = []

    class Clocked(FunctionModel):
        async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
            budgets.append(deadline.remaining())
            return await super().complete(request, deadline)

    queue = WatchedQueue(types=[JobType("unified_assistant", "1", slo_s=-100, sharing="never")])
    async with working(queue, tools(Clocked(lambda _: "oi"))):
        await queue.until(await put(queue, chat()), JobStatus.COMPLETED)
    assert budgets[0] > 5


@pytest.mark.parametrize("outcome", [Completed({}, None)])
async def test_a_stale_attempt_cannot_finish_a_job(outcome: Outcome) -> None:
    queue = MemoryQueue()
    job_id = await put(queue, job())
    await queue.claim("w", 1, 10, ["sofia_text"])
    assert await queue.finalise([(Lease(job_id, uuid4()), outcome)]) == {job_id}
