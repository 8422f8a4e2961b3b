"""Random lives of a queue: several workers that claim, renew, crash, lapse, finish, report, and users that cancel.

After every step the queue is held against a model that fits on a page, and against what must never be untrue: one owner
at a time, an end is final, attempts never above their maximum, nothing disappears, nobody waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from fakes.memory_queue import LATE_S
from fakes.queue_bench import NAMES, RULES, SHARED, TEXT, Bench, memory_bench, new_job, postgres_bench
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from aiworker.domain.errors import JobAlreadyFinished
from aiworker.domain.job import JobStatus, Lease
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry
from aiworker.queue.listen import Listener
from aiworker.queue.postgres import PostgresQueue

# So long that the seconds which a run really takes decide nothing.
LEASE_S = 1000.0
SLO_S = 2000.0
DELAY_S = 5000.0
SLACK_S = 8.0
LEVEL_S = 10.0

PENDING, PROCESSING, COMPLETED = JobStatus.PENDING, JobStatus.PROCESSING, JobStatus.COMPLETED
FAILED, CANCELLED = JobStatus.FAILED, JobStatus.CANCELLED

OUTCOMES: list[Outcome] = [
    Completed({"kcal": 1}, cache_ttl_s=1e6),
    Completed({"degraded": True}),
    Retry(0.0, "later", "provider_timeout"),
    Retry(DELAY_S, "later", "provider_rate_limited"),
    Failed("bad", "image_unreadable"),
    Interrupted(),
]


PATIENT = replace(RULES, types=tuple(replace(each, slo_s=SLO_S) for each in RULES.types))


@dataclass
class Job:
    """What the model knows of one job. `key` is what it shares its result under, None where it shares none. `waited`:
    it follows, or did. `excused`: its last attempt ended by an error of which it told."""

    max_attempts: int
    run_after: float
    place: float
    key: str | None
    leads: bool
    follows: bool
    waited: bool
    deadline: float
    status: JobStatus = PENDING
    attempts: int = 0
    lease: Lease | None = None
    lease_ends: float = 0.0
    apart: bool = False
    excused: bool = False
    result: Any = None


class QueueMachine(RuleBasedStateMachine):
    """`bench` is a queue without a job, `wait` runs a coroutine to its end."""

    bench: Bench
    wait: Any

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.model: dict[UUID, Job] = {}
        self.ended: dict[UUID, tuple[JobStatus, Any]] = {}
        self.held: dict[str, list[Lease]] = {"a": [], "b": [], "c": []}
        self.known: list[Lease] = []

    @rule(
        priority=st.integers(1, 10),
        kind=st.sampled_from([TEXT, SHARED, SHARED]),
        delayed=st.sampled_from([False, False, False, True]),
        max_attempts=st.sampled_from([1, 2, 3, 3]),
        body=st.integers(1, 2),
        times=st.integers(1, 3),
    )
    def enqueue(self, priority: int, kind: str, delayed: bool, max_attempts: int, body: int, times: int) -> None:
        for _ in range(times):
            self._enqueue(priority, kind, DELAY_S if delayed else 0.0, max_attempts, body)

    def _enqueue(self, priority: int, kind: str, delay_s: float, max_attempts: int, body: int) -> None:
        job = new_job(
            type=kind,
            priority=priority,
            delay_s=delay_s,
            max_attempts=max_attempts,
            user_id=uuid4(),
            input={"n": body},
        )
        key = str(body) if kind == SHARED else None
        flies = key is not None and delay_s == 0
        leader = next((j for j in self.model.values() if flies and j.key == key and j.leads and self._open(j)), None)
        enqueued = self.wait(self.bench.queue.enqueue(job))
        if enqueued.job_id is None:
            assert flies
            assert leader is None
            assert enqueued.cached_result == {"kcal": 1}
            return
        place = self.now + delay_s + LEVEL_S * priority
        if leader is not None and leader.status is PENDING:
            leader.place = min(leader.place, place)
        self.model[enqueued.job_id] = Job(
            max_attempts,
            self.now + delay_s,
            place,
            key,
            flies and leader is None,
            leader is not None,
            leader is not None,
            self.now + delay_s + SLO_S,
        )

    @rule(worker=st.sampled_from("abc"), limit=st.integers(1, 6), suspects=st.sampled_from([True, True, False]))
    def claim(self, worker: str, limit: int, suspects: bool = True) -> None:
        claimable = {
            job_id: job
            for job_id, job in self.model.items()
            if job.status is PENDING and not job.follows and job.run_after <= self.now
        }
        apart = {job_id: job for job_id, job in claimable.items() if job.apart and suspects}
        if apart:
            claimable, limit = apart, 1
        else:
            claimable = {job_id: job for job_id, job in claimable.items() if not job.apart}
        claimed = self.wait(self.bench.queue.claim(worker, limit, LEASE_S, NAMES, suspects))
        taken = {job.id for job in claimed}

        assert len(claimed) == len(taken) == min(limit, len(claimable))
        assert taken <= claimable.keys()
        left = [job.place for job_id, job in claimable.items() if job_id not in taken]
        assert all(self.model[job_id].place <= min(left, default=float("inf")) + SLACK_S for job_id in taken)
        for each in claimed:
            job = self.model[each.id]
            job.status, job.attempts, job.lease = PROCESSING, job.attempts + 1, each.lease
            job.lease_ends = self.now + LEASE_S
            assert (each.attempt, each.apart) == (job.attempts, bool(apart))
            self.held[worker].append(each.lease)
            self.known.append(each.lease)

    @rule(worker=st.sampled_from("abc"))
    def renew(self, worker: str) -> None:
        renewal = self.wait(self.bench.queue.renew(self.held[worker], LEASE_S))
        good = {lease.job_id for lease in self.held[worker] if self._holds(lease)}
        gone = {lease.job_id for lease in self.held[worker]} - good
        assert renewal.cancelled == {job_id for job_id in gone if self.model[job_id].status is CANCELLED}
        assert renewal.lost == gone - renewal.cancelled
        for job_id in good:
            self.model[job_id].lease_ends = self.now + LEASE_S
        self.held[worker] = [lease for lease in self.held[worker] if self._holds(lease)]

    @rule(worker=st.sampled_from("abc"))
    def crash(self, worker: str) -> None:
        """It renews nothing any more. Its leases stay known: a zombie may still write."""
        self.held[worker] = []

    @rule(seconds=st.sampled_from([0.45 * LEASE_S, LEASE_S + 1, DELAY_S + 1]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.wait(self.bench.advance(seconds))
        self._rescue()

    def _rescue(self) -> None:
        expired = [job for job in self.model.values() if job.status is PROCESSING and job.lease_ends < self.now]
        assert self.wait(self.bench.queue.rescue()) == len(expired)
        for job in expired:
            if job.attempts >= job.max_attempts or job.apart:
                self._end(job, FAILED, suspect=True)
            else:
                job.status, job.lease, job.run_after = PENDING, None, self.now
                job.apart = job.attempts == job.max_attempts - 1
        for leader in [job for job in self.model.values() if job.leads and self._open(job)]:
            if not leader.apart and (leader.excused or (leader.status is PROCESSING and leader.attempts == 1)):
                for job in self._followers(leader):
                    job.follows = job.deadline >= self.now + LATE_S

    @rule(worker=st.sampled_from("abc"), outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4))
    def work(self, worker: str, outcomes: list[Outcome]) -> None:
        """One round of a worker that does what it should."""
        self.claim(worker, len(outcomes))
        for lease, outcome in zip(list(self.held[worker]), outcomes, strict=False):
            self._write([lease], outcome)

    @rule(worker=st.sampled_from("abc"))
    def die(self, worker: str) -> None:
        """It claims, and is never heard of again."""
        self.claim(worker, 6)
        self.crash(worker)
        self.pass_time(LEASE_S + 1)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def finish(self, data: st.DataObject, outcome: Outcome) -> None:
        self._write(self._some(data), outcome)

    def _write(self, leases: list[Lease], outcome: Outcome) -> None:
        lost = self.wait(self.bench.queue.finalise([(lease, outcome) for lease in leases]))
        assert lost == {lease.job_id for lease in leases if not self._holds(lease)}
        for lease in leases:
            if self._holds(lease):
                self._finish(self.model[lease.job_id], outcome)

    def _some(self, data: st.DataObject) -> list[Lease]:
        """One or two leases of different jobs, oftener young than old."""
        newest_first = self.known[::-1]
        chosen = data.draw(st.lists(st.sampled_from(newest_first), min_size=1, max_size=2))
        return list({lease.job_id: lease for lease in chosen}.values())

    def _finish(self, job: Job, outcome: Outcome) -> None:
        match outcome:
            case Completed(result, ttl_s):
                self._end(job, COMPLETED, result, shared=ttl_s is not None)
            case Retry(delay_s) if job.attempts < job.max_attempts:
                job.status, job.lease, job.run_after = PENDING, None, self.now + delay_s
                job.apart, job.excused = False, True
            case Interrupted():
                job.status, job.lease, job.run_after = PENDING, None, self.now
                job.attempts, job.excused = job.attempts - 1, False
            case _:
                self._end(job, FAILED)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), percent=st.integers(0, 100))
    def report(self, data: st.DataObject, percent: int) -> None:
        self.wait(self.bench.queue.report(dict.fromkeys(self._some(data), (percent, "detect"))))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.model)[::-1]))
        job = self.model[job_id]
        if job.status in (COMPLETED, FAILED):
            with pytest.raises(JobAlreadyFinished):
                self.wait(self.bench.queue.cancel(job_id, None))
            return
        self.wait(self.bench.queue.cancel(job_id, None))
        if self._open(job):
            self._end(job, CANCELLED, suspect=job.apart)

    def _end(
        self, job: Job, status: JobStatus, result: Any = None, *, shared: bool = False, suspect: bool = False
    ) -> None:
        job.status, job.lease, job.result, job.follows = status, None, result, False
        if not job.leads:
            return
        followers = self._followers(job)
        if shared:
            for each in self.model.values():
                if each.waited and not each.leads and each.key == job.key and each.status is PENDING:
                    self._end(each, COMPLETED, result)
        elif followers:
            heir = max(reversed(followers), key=lambda each: each.deadline)
            heir.follows, heir.leads, heir.apart = False, True, suspect
            heir.place = min(each.place for each in followers)

    def _followers(self, leader: Job) -> list[Job]:
        return [each for each in self.model.values() if each.follows and each.key == leader.key]

    def _open(self, job: Job) -> bool:
        return job.status in (PENDING, PROCESSING)

    def _holds(self, lease: Lease) -> bool:
        job = self.model.get(lease.job_id)
        return job is not None and job.status is PROCESSING and job.lease == lease

    @invariant()
    def the_queue_is_what_the_model_is(self) -> None:
        states = self.wait(self.bench.states())
        assert states == {key: (job.status, job.attempts, job.result) for key, job in self.model.items()}
        for job_id, (status, attempts, result) in states.items():
            assert 0 <= attempts <= self.model[job_id].max_attempts
            assert self.ended.get(job_id, (status, result)) == (status, result)
            if status.terminal:
                self.ended[job_id] = (status, result)

    @invariant()
    def it_counts_right(self) -> None:
        depth = self.wait(self.bench.queue.depth())
        unfinished = [job for job in self.model.values() if self._open(job)]
        following = [job for job in unfinished if job.follows]
        assert depth.processing == sum(job.status is PROCESSING for job in unfinished)
        assert depth.following == len(following)
        assert depth.pending + depth.delayed == len(unfinished) - depth.processing - depth.following
        leading = [job.key for job in unfinished if job.leads]
        assert len(leading) == len(set(leading))
        assert {job.key for job in following} <= set(leading)


def live(fresh: Callable[[], Bench], wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
    """Many lives, each of a queue that `fresh` has emptied."""

    class Machine(QueueMachine):
        def __init__(self) -> None:
            super().__init__()
            self.bench, self.wait = fresh(), wait

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_in_memory() -> None:
    with asyncio.Runner() as runner:
        live(lambda: memory_bench(PATIENT), runner.run)


def test_in_postgres(database_url: str) -> None:
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(database_url, timeout=10))
        queue = PostgresQueue(database_url, PATIENT, timeout_s=20)
        runner.run(queue.__aenter__())

        def fresh() -> Bench:
            runner.run(connection.execute("truncate analysis_jobs, analysis_cache, analysis_answers"))
            return postgres_bench(queue, Listener(database_url), connection)

        try:
            live(fresh, runner.run)
        finally:
            runner.run(queue.__aexit__(None, None, None))
            runner.run(connection.close())
