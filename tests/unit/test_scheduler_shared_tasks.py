"""Jobs in shared tasks: each is worked once and told of once, whoever stops what and however long each waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.job import ClaimedJob, Lease
from aiworker.domain.outcome import Completed, Outcome
from aiworker.scheduler.running import RunningJob, StopReason
from aiworker.scheduler.shared_tasks import SharedTasks

DONE = Completed(b"{}")


def running(number: int) -> RunningJob:
    return RunningJob(ClaimedJob(Lease(UUID(int=number), UUID(int=9)), UUID(int=0), "x", "{}", 1, 3, 20.0, 0.0), 0.0)


class Told:
    """What became of the jobs, by number."""

    def __init__(self, work: Callable[[RunningJob], Awaitable[Outcome]]) -> None:
        self.outcomes: dict[int, Outcome | None] = {}
        self.tasks = SharedTasks(work, self._worked)

    def _worked(self, job: RunningJob, outcome: Outcome | None) -> None:
        assert job.task is None
        assert job.job.id.int not in self.outcomes, "told twice"
        self.outcomes[job.job.id.int] = outcome

    async def until(self, jobs: int) -> None:
        async with asyncio.timeout(10):
            while len(self.outcomes) < jobs:
                await asyncio.sleep(0)


async def test_jobs_that_never_wait_share_two_tasks() -> None:
    tasks = set()

    async def work(_: RunningJob) -> Outcome:
        tasks.add(asyncio.current_task())
        return DONE

    told = Told(work)
    told.tasks.begin([running(number) for number in range(50)])
    await told.until(50)
    assert len(tasks) <= 2


async def test_jobs_that_wait_do_so_at_the_same_time() -> None:
    everybody = asyncio.Barrier(20)

    async def work(_: RunningJob) -> Outcome:
        await everybody.wait()
        return DONE

    told = Told(work)
    told.tasks.begin([running(number) for number in range(20)])
    await told.until(20)


async def test_a_stopped_job_leaves_nothing_of_its_cancel_to_the_next_one() -> None:
    begun = []
    stopped, following = running(0), running(1)

    async def work(job: RunningJob) -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        begun.append(job)
        assert not task.cancelling()
        await asyncio.sleep(0 if job is following else 3600)
        return DONE

    told = Told(work)
    told.tasks.begin([stopped])
    while not begun:
        await asyncio.sleep(0)
    stopped.stop(StopReason.CANCELLED)
    # The task that the cancel wakes finds the next job before its own successor does.
    told.tasks.begin([following])
    await told.until(2)
    assert told.outcomes == {0: None, 1: DONE}


async def test_a_job_that_cancels_its_own_task_cancels_no_other() -> None:
    async def work(job: RunningJob) -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        if job is every[0]:
            # It ends before this comes through.
            task.cancel()
        else:
            await asyncio.sleep(0)
        return DONE

    every = [running(number) for number in range(3)]
    told = Told(work)
    told.tasks.begin(every)
    await told.until(3)
    assert told.outcomes == {0: DONE, 1: DONE, 2: DONE}


async def test_a_job_that_was_stopped_before_it_began_never_begins() -> None:
    begun = []

    async def work(job: RunningJob) -> Outcome:
        begun.append(job)
        return DONE

    told = Told(work)
    job = running(0)
    told.tasks.begin([job])
    job.stop(StopReason.SHUTDOWN)
    await told.until(1)
    assert told.outcomes == {0: None}
    assert not begun


async def test_jobs_are_worked_though_the_task_that_was_to_begin_them_is_cancelled() -> None:
    async def work(_: RunningJob) -> Outcome:
        return DONE

    before = asyncio.all_tasks()
    told = Told(work)
    told.tasks.begin([running(0), running(1)])
    [successor] = asyncio.all_tasks() - before
    successor.cancel()
    await told.until(2)
    assert told.outcomes == {0: DONE, 1: DONE}


@given(
    st.lists(
        # Turns of the loop that it waits, the turn at which it is stopped, whether it ends all the same.
        st.tuples(st.integers(0, 4), st.none() | st.integers(0, 6), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_each_job_is_told_of_once(jobs: list[tuple[int, int | None, bool]], batch: int) -> None:
    async def work(job: RunningJob) -> Outcome:
        turns, _, stubborn = jobs[job.job.id.int]
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        for _ in range(turns):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not stubborn:
                    raise
        return DONE

    async def all_of_them() -> None:
        told = Told(work)
        every = [running(number) for number in range(len(jobs))]
        for first in range(0, len(every), batch):
            told.tasks.begin(every[first : first + batch])
            await asyncio.sleep(0)
        for turn in range(7):
            for job, (_, stop_at, _) in zip(every, jobs, strict=True):
                if stop_at == turn:
                    job.stop(StopReason.CANCELLED)
            await asyncio.sleep(0)
        await told.until(len(jobs))
        assert all(told.outcomes[number] == DONE for number, job in enumerate(jobs) if job[1] is None)

    asyncio.run(all_of_them())
