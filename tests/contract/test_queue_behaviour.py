"""The worker's side of a queue, whichever it is: order, fencing, outcomes, rescue."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from fakes.queue_bench import EVERY_OUTCOME, IMAGE, LEASE_S, LIMIT, SHARED, TEXT, USER, Bench, new_job

from aiworker.domain.errors import JobNotFound
from aiworker.domain.job import JobStatus, Lease
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry


class TestOrder:
    async def test_a_claim_hands_over_everything_that_the_scheduler_needs(self, bench: Bench) -> None:
        job_id = await bench.add(input={"text": "maçã", "context": {"a": [1, 2.5, None]}})
        await bench.advance(3)

        job = await bench.claim_one()

        assert (job.id, job.user_id, job.type) == (job_id, USER, TEXT)
        assert json.loads(job.input) == {"text": "maçã", "context": {"a": [1, 2.5, None]}}
        assert (job.attempt, job.max_attempts) == (1, 3)
        assert 3 <= job.waited_s < 20
        assert job.deadline_in_s == pytest.approx(20 - job.waited_s, abs=0.001)

    async def test_urgent_first_then_oldest_first(self, bench: Bench) -> None:
        late = await bench.add(priority=9)
        first = await bench.add(priority=5)
        second = await bench.add(priority=5)
        urgent = await bench.add(priority=1)

        assert [job.id for job in await bench.claim()] == [urgent, first, second, late]

    async def test_a_level_of_priority_is_worth_ten_seconds_of_waiting(self, bench: Bench) -> None:
        old = await bench.add(priority=6)
        await bench.advance(8)
        two_seconds_before = await bench.add(priority=5)
        await bench.advance(4)
        two_seconds_after = await bench.add(priority=5)

        assert [job.id for job in await bench.claim()] == [two_seconds_before, old, two_seconds_after]

    async def test_one_users_backlog_does_not_stand_before_the_jobs_of_others(self, bench: Bench) -> None:
        backlog = [await bench.add() for _ in range(3 * LIMIT)]
        others = [await bench.add(user_id=uuid4()) for _ in range(5)]
        late_other = await bench.add(user_id=uuid4(), priority=6)

        order = [job.id for job in await bench.claim(limit=50)]

        assert order[0] == backlog[0]
        assert [job_id for job_id in order if job_id in backlog] == backlog
        assert all(order.index(job_id) < 2 * len(others) for job_id in others)
        assert order.index(late_other) < order.index(backlog[LIMIT + 1])

    async def test_what_runs_already_puts_nothing_back(self, bench: Bench) -> None:
        """Who always has a job running would stand further behind with each, however fast they are done."""
        for _ in range(LIMIT - 1):
            await bench.add()
        await bench.claim(limit=50)
        first_other = await bench.add(user_id=uuid4())
        mine = await bench.add()
        await bench.advance(2)
        other = await bench.add(user_id=uuid4())

        assert [job.id for job in await bench.claim(limit=50)] == [first_other, mine, other]

    @pytest.mark.parametrize("waiting", [{"delay_s": 3600}, {"priority": 10}], ids=["delayed", "of low priority"])
    async def test_what_waits_for_later_does_not_hide_a_backlog(self, bench: Bench, waiting: dict[str, Any]) -> None:
        for _ in range(LIMIT):
            await bench.add(**waiting)
        for _ in range(3 * LIMIT):
            await bench.add()
        others = [await bench.add(user_id=uuid4()) for _ in range(5)]

        order = [job.id for job in await bench.claim(limit=50)]

        assert all(order.index(job_id) < 2 * len(others) for job_id in others)

    @pytest.mark.parametrize("waiting", [{"delay_s": 3600}, {"priority": 10}], ids=["delayed", "of low priority"])
    async def test_nor_does_it_put_back_what_is_wanted_now(self, bench: Bench, waiting: dict[str, Any]) -> None:
        for _ in range(3 * LIMIT):
            await bench.add(**waiting)
        # Those of low priority wait once more, where those of all priorities do.
        await bench.queue.finalise([(job.lease, Interrupted()) for job in await bench.claim(limit=50)])
        mine = await bench.add()
        other = await bench.add(user_id=uuid4())

        assert [job.id for job in await bench.claim(limit=2)] == [mine, other]

    async def test_no_more_than_asked_for_and_only_the_types_asked_for(self, bench: Bench) -> None:
        image = await bench.add(type=IMAGE)
        texts = [await bench.add() for _ in range(3)]

        claimed = await bench.queue.claim("w1", 2, LEASE_S, [TEXT])

        assert [job.id for job in claimed] == texts[:2]
        assert [job.id for job in await bench.queue.claim("w1", 9, LEASE_S, [IMAGE])] == [image]
        assert await bench.queue.claim("w1", 9, LEASE_S, []) == []
        assert await bench.queue.claim("w1", 0, LEASE_S, [TEXT]) == []

    async def test_a_delayed_job_waits_and_then_counts_its_waiting_from_when_it_was_due(self, bench: Bench) -> None:
        delayed = await bench.add(delay_s=30)
        assert await bench.claim() == []
        assert (await bench.queue.depth()).delayed == 1

        await bench.advance(31)
        job = await bench.claim_one()

        assert job.id == delayed
        assert 1 <= job.waited_s < 20
        assert job.deadline_in_s > 0

    async def test_workers_never_share_a_job(self, bench: Bench) -> None:
        wanted = {await bench.add() for _ in range(40)}

        hauls = await asyncio.gather(*(bench.claim(limit=3, worker=f"w{n}") for n in range(20)))

        runs = Counter(job.id for haul in hauls for job in haul)
        assert set(runs) == wanted
        assert set(runs.values()) == {1}
        assert all(len(haul) <= 3 for haul in hauls)


class TestFencing:
    @pytest.mark.parametrize("outcome", EVERY_OUTCOME, ids=lambda outcome: type(outcome).__name__)
    async def test_a_stale_token_writes_nothing(self, bench: Bench, outcome: Outcome) -> None:
        await bench.add(type=SHARED)
        stale = await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 1
        current = await bench.claim_one()
        before = await bench.view(current.id)

        assert not await bench.finish(stale, outcome)
        await bench.queue.report({stale.lease: (99, "stale")})
        assert (await bench.queue.renew([stale.lease], LEASE_S)).lost == {stale.id}

        assert await bench.view(current.id) == before
        assert (await bench.queue.enqueue(new_job(type=SHARED))).cached_result is None
        assert await bench.finish(current, Completed({"attempt": 2}))
        assert (await bench.view(current.id)).result == {"attempt": 2}

    @pytest.mark.parametrize("outcome", EVERY_OUTCOME, ids=lambda outcome: type(outcome).__name__)
    async def test_a_finished_job_is_final(self, bench: Bench, outcome: Outcome) -> None:
        await bench.add()
        job = await bench.claim_one()
        assert await bench.finish(job, Completed({"kcal": 7}))

        assert not await bench.finish(job, outcome)

        view = await bench.view(job.id)
        assert (view.status, view.result) == (JobStatus.COMPLETED, {"kcal": 7})

    async def test_a_stale_token_prolongs_nobody_elses_lease(self, bench: Bench) -> None:
        await bench.add()
        stale = await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 1
        await bench.claim_one()
        await bench.advance(LEASE_S - 1)

        assert (await bench.queue.renew([stale.lease], LEASE_S)).lost == {stale.id}

        await bench.advance(2)
        assert await bench.queue.rescue() == 1

    async def test_a_batch_writes_what_holds_and_names_the_rest(self, bench: Bench) -> None:
        for _ in range(3):
            await bench.add()
        first, second, third = await bench.claim()
        forged = Lease(second.id, uuid4())

        lost = await bench.queue.finalise(
            [(first.lease, Completed({})), (forged, Completed({})), (third.lease, Failed("bad", "image_unreadable"))]
        )

        assert lost == {second.id}
        assert (await bench.view(first.id)).status is JobStatus.COMPLETED
        assert (await bench.view(second.id)).status is JobStatus.PROCESSING
        assert await bench.queue.finalise([]) == frozenset()

    async def test_a_lease_that_ran_out_still_counts_until_somebody_takes_the_job(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.advance(LEASE_S + 1)

        assert (await bench.queue.renew([job.lease], LEASE_S)).lost == frozenset()
        assert await bench.queue.rescue() == 0
        assert await bench.finish(job, Completed({}))


class TestOutcomes:
    async def test_completed(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.advance(2)

        assert await bench.finish(job, Completed({"itens": ["maçã"]}))

        view = await bench.view(job.id)
        assert (view.status, view.result, view.progress) == (JobStatus.COMPLETED, {"itens": ["maçã"]}, 100)
        assert (view.worker_id, view.error, view.stage) == ("w1", None, None)
        assert 2000 <= view.processing_time_ms < 20_000
        assert view.completed_at >= view.started_at

    async def test_failed_says_why(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()

        assert await bench.finish(job, Failed("bad", "image_unreadable"))

        view = await bench.view(job.id)
        assert (view.status, view.error, view.error_code) == (JobStatus.FAILED, "bad", "image_unreadable")
        assert view.result is None

    async def test_retry_waits_in_the_row_and_keeps_its_place(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        assert await bench.finish(job, Retry(5.0, "later", "provider_unavailable"))

        view = await bench.view(job.id)
        assert (view.status, view.attempts, view.started_at) == (JobStatus.PENDING, 1, None)
        assert await bench.claim() == []
        younger = await bench.add()
        await bench.advance(6)

        again, next_one = await bench.claim()
        assert (again.id, again.attempt) == (job.id, 2)
        assert next_one.id == younger
        assert await bench.finish(again, Completed({}))
        assert (await bench.view(job.id)).error_code is None

    async def test_a_retry_without_attempts_left_has_failed(self, bench: Bench) -> None:
        await bench.add(max_attempts=2)
        await bench.finish(await bench.claim_one(), Retry(0.0, "later", "provider_timeout"))

        await bench.finish(job := await bench.claim_one(), Retry(0.0, "later", "provider_timeout"))

        view = await bench.view(job.id)
        assert (view.status, view.attempts, view.error_code) == (JobStatus.FAILED, 2, "provider_timeout")

    async def test_an_absurd_delay_does_not_harm_the_rest_of_the_batch(self, bench: Bench) -> None:
        for _ in range(2):
            await bench.add()
        slow, good = await bench.claim()

        lost = await bench.queue.finalise(
            [(slow.lease, Retry(1e15, "later", "provider_rate_limited")), (good.lease, Completed({}))]
        )

        assert not lost
        assert (await bench.view(good.id)).status is JobStatus.COMPLETED
        assert (await bench.queue.depth()).delayed == 1

    async def test_an_interruption_costs_no_attempt(self, bench: Bench) -> None:
        await bench.add(max_attempts=1)
        for _ in range(3):
            job = await bench.claim_one()
            assert job.attempt == 1
            assert await bench.finish(job, Interrupted())

        view = await bench.view(job.id)
        assert (view.status, view.attempts, view.progress, view.worker_id) == (JobStatus.PENDING, 0, 0, None)

    async def test_progress_is_seen_while_it_runs(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()

        await bench.queue.report({job.lease: (40, "detect")})
        await bench.queue.report({})

        view = await bench.view(job.id)
        assert (view.status, view.progress, view.stage) == (JobStatus.PROCESSING, 40, "detect")
        assert view.updated_at >= view.started_at


class TestPause:
    async def test_nothing_is_handed_out_until_the_queue_is_resumed(self, bench: Bench) -> None:
        job_id = await bench.add()
        await bench.queue.pause()
        await bench.queue.pause()

        assert await bench.claim() == []
        assert (await bench.queue.depth()).paused == ("*",)
        await bench.queue.resume()

        assert (await bench.claim_one()).id == job_id
        assert (await bench.queue.depth()).paused == ()

    async def test_all_that_came_meanwhile_is_handed_out_then(self, bench: Bench) -> None:
        await bench.queue.pause()
        assert await bench.claim() == []
        wanted = [await bench.add() for _ in range(30)]
        assert await bench.claim() == []
        await bench.advance(60, remembering=True)
        await bench.queue.resume()

        claimed: list[UUID] = []
        for _ in range(10):
            claimed += [job.id for job in await bench.claim(limit=3)]

        assert claimed == wanted

    async def test_a_paused_type_does_not_hold_up_the_others(self, bench: Bench) -> None:
        paused = await bench.add(type=IMAGE, priority=1)
        other = await bench.add()
        await bench.queue.pause(IMAGE)

        assert [job.id for job in await bench.claim()] == [other]
        await bench.queue.resume(IMAGE)
        assert [job.id for job in await bench.claim()] == [paused]

    async def test_what_runs_goes_on_and_what_came_back_waits(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.queue.pause()

        assert (await bench.queue.renew([job.lease], LEASE_S)).lost == frozenset()
        assert await bench.finish(job, Retry(0.0, "later", "provider_timeout"))
        assert await bench.claim() == []


class TestPrune:
    async def test_old_ends_go_and_nothing_else(self, bench: Bench) -> None:
        for _ in range(3):
            await bench.add()
        done, failed, running = await bench.claim()
        await bench.finish(done, Completed({}))
        await bench.finish(failed, Failed("bad", "image_unreadable"))
        pending = await bench.add()
        assert await bench.queue.prune(keep_s=3600) == 0
        await bench.advance(1)

        assert await bench.queue.prune(keep_s=0) == 2

        for gone in (done.id, failed.id):
            with pytest.raises(JobNotFound):
                await bench.view(gone)
        assert (await bench.view(running.id)).status is JobStatus.PROCESSING
        assert (await bench.view(pending)).status is JobStatus.PENDING

    async def test_in_bounded_batches(self, bench: Bench) -> None:
        for _ in range(5):
            await bench.add()
        await bench.queue.finalise([(job.lease, Completed({})) for job in await bench.claim()])
        await bench.advance(1)

        assert [await bench.queue.prune(0, limit=2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_expired_results_go_too(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({}, cache_ttl_s=60))
        assert await bench.queue.prune(keep_s=3600) == 0
        await bench.advance(61)

        assert await bench.queue.prune(keep_s=3600) == 1


class TestRescue:
    async def test_a_silent_worker_loses_its_job_and_a_renewed_lease_does_not(self, bench: Bench) -> None:
        silent, alive = await bench.add(), await bench.add()
        jobs = {job.id: job for job in await bench.claim()}
        await bench.advance(LEASE_S - 1)
        assert await bench.queue.rescue() == 0
        await bench.queue.renew([jobs[alive].lease], LEASE_S)
        await bench.advance(2)

        assert await bench.queue.rescue() == 1

        assert (await bench.view(silent)).status is JobStatus.PENDING
        assert (await bench.view(alive)).status is JobStatus.PROCESSING
        again = await bench.claim_one()
        assert (again.id, again.attempt) == (silent, 2)

    async def test_a_job_that_kills_its_worker_every_time_ends_failed(self, bench: Bench) -> None:
        job_id = await bench.add()
        for attempt in (1, 2, 3):
            assert (await bench.claim_one()).attempt == attempt
            await bench.advance(LEASE_S + 1)
            assert await bench.queue.rescue() == 1

        view = await bench.view(job_id)
        assert (view.status, view.error_code) == (JobStatus.FAILED, "attempts_exhausted")
        assert view.error == sentence("attempts_exhausted")
        assert await bench.claim() == []

    @pytest.mark.parametrize("end", ["rescued", "cancelled", "finished"])
    async def test_a_job_that_was_begun_a_month_ago_can_still_end(self, bench: Bench, end: str) -> None:
        """The milliseconds are more than an integer holds: switched off for so long, or the clock was put right."""
        await bench.add(max_attempts=1)
        job = await bench.claim_one()
        await bench.advance(30 * 86_400)

        if end == "rescued":
            assert await bench.queue.rescue() == 1
        elif end == "cancelled":
            await bench.queue.cancel(job.id, None)
        else:
            assert await bench.finish(job, Completed({}))

        assert (await bench.view(job.id)).status.terminal

    async def test_who_worked_beside_a_job_that_kills_does_not_fail_with_it(self, bench: Bench) -> None:
        killer = await bench.add()
        others = [await bench.add() for _ in range(4)]
        for _ in range(2):
            assert len(await bench.claim()) == 5
            await bench.advance(LEASE_S + 1)
            assert await bench.queue.rescue() == 5

        for _ in range(5):
            [job] = await bench.claim()
            assert (job.attempt, job.apart) == (3, True)
            if job.id == killer:
                await bench.advance(LEASE_S + 1)
                assert await bench.queue.rescue() == 1
            else:
                assert await bench.finish(job, Completed({}))

        assert (await bench.view(killer)).status is JobStatus.FAILED
        assert {(await bench.view(job_id)).status for job_id in others} == {JobStatus.COMPLETED}

    async def test_suspects_and_others_take_turns_as_the_claim_says(self, bench: Bench) -> None:
        suspect = await bench.add(max_attempts=2)
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        await bench.queue.rescue()
        other = await bench.add()

        assert [job.id for job in await bench.claim(suspects=False)] == [other]
        assert await bench.claim(suspects=False) == []
        await bench.add()
        assert [job.id for job in await bench.claim()] == [suspect]

    async def test_who_waited_for_a_job_that_kills_is_suspected_too(self, bench: Bench) -> None:
        first, *others = [await bench.add(type=SHARED) for _ in range(5)]
        # The last of them leads next.
        ids = [first, *reversed(others)]
        for killer, alone in zip([ids[0], ids[0], *ids[:3]], [False, False, True, True, True], strict=True):
            [job] = await bench.claim()
            assert (job.id, job.apart) == (killer, alone)
            await bench.advance(LEASE_S + 1)
            assert await bench.queue.rescue() == 1

        assert [(await bench.view(job_id)).status for job_id in ids[:3]] == [JobStatus.FAILED] * 3
        assert [(await bench.view(job_id)).attempts for job_id in ids[:3]] == [3, 1, 1]
        assert (await bench.view(ids[2])).error_code == "attempts_exhausted"
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        assert [(await bench.view(job_id)).result for job_id in ids[3:]] == [{"kcal": 5}] * 2

    async def test_a_cancel_clears_nobody_of_suspicion(self, bench: Bench) -> None:
        first = await bench.add(type=SHARED, max_attempts=2)
        heir = await bench.add(type=SHARED)
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        await bench.queue.rescue()
        await bench.queue.cancel(first, USER)

        assert [(job.id, job.apart) for job in await bench.claim()] == [(heir, True)]

    async def test_a_suspect_that_ended_properly_is_none_any_more(self, bench: Bench) -> None:
        await bench.add(type=SHARED, max_attempts=1)
        heir = await bench.add(type=SHARED)
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        await bench.queue.rescue()
        await bench.finish(await bench.claim_one(), Retry(0.0, "later", "provider_timeout"))

        assert [(job.id, job.apart) for job in await bench.claim()] == [(heir, False)]
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 1
        assert (await bench.view(heir)).status is JobStatus.PENDING

    async def test_an_attempt_that_ended_properly_is_followed_by_an_ordinary_one(self, bench: Bench) -> None:
        await bench.add()
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        await bench.queue.rescue()
        assert await bench.finish(await bench.claim_one(), Retry(0.0, "later", "provider_unavailable"))
        await bench.add()

        assert [job.apart for job in await bench.claim()] == [False, False]

    async def test_rescuers_share_the_work(self, bench: Bench) -> None:
        for _ in range(20):
            await bench.add()
        await bench.claim(limit=20)
        await bench.advance(LEASE_S + 1)

        assert sum(await asyncio.gather(*(bench.queue.rescue() for _ in range(4)))) == 20
