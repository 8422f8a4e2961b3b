"""The client's side of a queue, whichever it is: cancel, status, idempotency, limit, cache, hints."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from fakes.queue_bench import EVERY_OUTCOME, IMAGE, LEASE_S, LIMIT, PERSONAL, SHARED, SLO_S, TEXT, USER, Bench, new_job

from aiworker.domain.errors import (
    IdempotencyConflict,
    JobAlreadyFinished,
    JobNotFound,
    TooManyActiveJobs,
    UnknownJobType,
)
from aiworker.domain.job import JobStatus
from aiworker.domain.outcome import Completed, Failed, Interrupted, Outcome, Retry


class TestCancel:
    async def test_a_pending_job_ends_at_once(self, bench: Bench) -> None:
        job_id = await bench.add()

        assert (await bench.queue.cancel(job_id, USER)).status is JobStatus.CANCELLED

        assert await bench.claim() == []
        assert (await bench.view(job_id)).completed_at is not None

    async def test_a_retry_that_waits_ends_at_once(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.finish(job, Retry(60.0, "later", "provider_timeout"))

        view = await bench.queue.cancel(job.id, USER)

        assert (view.status, view.error_code) == (JobStatus.CANCELLED, None)

    @pytest.mark.parametrize("outcome", EVERY_OUTCOME, ids=lambda outcome: type(outcome).__name__)
    async def test_a_running_job_ends_at_once_whatever_its_worker_does(self, bench: Bench, outcome: Outcome) -> None:
        await bench.add(type=SHARED)
        job = await bench.claim_one()
        await bench.queue.report({job.lease: (40, "detect")})

        view = await bench.queue.cancel(job.id, USER)

        assert (view.status, view.result, view.error, view.stage) == (JobStatus.CANCELLED, None, None, None)
        assert view.processing_time_ms is not None
        assert not await bench.finish(job, outcome)
        await bench.queue.report({job.lease: (99, "save")})
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 0
        assert (await bench.view(job.id)).status is JobStatus.CANCELLED
        assert (await bench.queue.enqueue(new_job(type=SHARED))).cached_result is None

    async def test_its_worker_is_told_so_once_it_renews(self, bench: Bench) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.queue.cancel(job.id, USER)

        renewal = await bench.queue.renew([job.lease], LEASE_S)

        assert (renewal.cancelled, renewal.lost) == ({job.id}, frozenset())

    @pytest.mark.parametrize("outcome", [Completed({}), Failed("bad", "image_unreadable")])
    async def test_a_finished_job_cannot_be_cancelled(self, bench: Bench, outcome: Outcome) -> None:
        await bench.add()
        job = await bench.claim_one()
        await bench.finish(job, outcome)

        with pytest.raises(JobAlreadyFinished):
            await bench.queue.cancel(job.id, USER)

    async def test_asking_again_changes_nothing(self, bench: Bench) -> None:
        job_id = await bench.add()
        first = await bench.queue.cancel(job_id, USER)
        await bench.advance(5)

        assert (await bench.queue.cancel(job_id, USER)).updated_at == first.updated_at

    async def test_only_the_owner_and_the_service_may(self, bench: Bench) -> None:
        job_id = await bench.add()

        with pytest.raises(JobNotFound):
            await bench.queue.cancel(job_id, uuid4())
        with pytest.raises(JobNotFound):
            await bench.queue.cancel(uuid4(), USER)
        assert (await bench.queue.cancel(job_id, None)).status is JobStatus.CANCELLED


class TestStatus:
    async def test_another_users_job_does_not_exist(self, bench: Bench) -> None:
        job_id = await bench.add(priority=3)

        view = await bench.queue.status(job_id, USER)

        assert (view.id, view.user_id, view.type, view.priority, view.max_attempts) == (job_id, USER, TEXT, 3, 3)
        assert (view.status, view.attempts, view.progress) == (JobStatus.PENDING, 0, 0)
        assert (await bench.queue.status(job_id, None)) == view
        with pytest.raises(JobNotFound):
            await bench.queue.status(job_id, uuid4())
        with pytest.raises(JobNotFound):
            await bench.queue.status(uuid4(), None)

    async def test_depth_counts_what_is_unfinished(self, bench: Bench) -> None:
        done = await bench.add()
        running = await bench.add()
        jobs = {job.id: job for job in await bench.claim()}
        await bench.finish(jobs[done], Completed({}))
        await bench.add(type=IMAGE)
        await bench.add(delay_s=60)
        await bench.advance(4)

        depth = await bench.queue.depth()

        assert running in jobs
        assert (depth.pending, depth.processing, depth.delayed) == (1, 1, 1)
        assert depth.by_type == {TEXT: 2, IMAGE: 1}
        assert 4 <= depth.oldest_pending_s < 20

    async def test_depth_of_nothing(self, bench: Bench) -> None:
        depth = await bench.queue.depth()

        assert (depth.pending, depth.processing, depth.delayed, depth.oldest_pending_s) == (0, 0, 0, 0.0)


class TestIdempotency:
    async def test_the_same_request_again_is_the_same_job_even_when_it_has_ended(self, bench: Bench) -> None:
        wanted = new_job(idempotency_key="once", input={"a": 1, "b": {"c": 2}})
        first = await bench.queue.enqueue(wanted)
        shuffled = replace(wanted, input={"b": {"c": 2}, "a": 1})

        assert await bench.queue.enqueue(shuffled) == first
        await bench.finish(await bench.claim_one(), Completed({}))
        again = await bench.queue.enqueue(shuffled)

        assert (again.job_id, again.status) == (first.job_id, JobStatus.COMPLETED)
        assert await bench.claim() == []

    @pytest.mark.parametrize("other", [{"type": IMAGE}, {"input": {"text": "outro"}}])
    async def test_another_request_under_the_key_is_refused(self, bench: Bench, other: dict[str, Any]) -> None:
        await bench.add(idempotency_key="once")

        with pytest.raises(IdempotencyConflict):
            await bench.add(idempotency_key="once", **other)

    async def test_a_key_whose_request_the_cache_answered_stands_for_that_request(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        wanted = new_job(type=SHARED, idempotency_key="once")
        answer = await bench.queue.enqueue(wanted)
        assert (answer.job_id, answer.cached_result) == (None, {"kcal": 5})

        with pytest.raises(IdempotencyConflict):
            await bench.queue.enqueue(replace(wanted, input={"text": "outro"}))
        assert await bench.queue.enqueue(wanted) == answer
        assert await bench.hits() == 1

    async def test_it_stands_no_longer_than_the_result_is_kept(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        await bench.queue.enqueue(new_job(type=SHARED, idempotency_key="once"))
        await bench.advance(61)

        other = new_job(type=SHARED, idempotency_key="once", input={"text": "outro"})
        anew = await bench.queue.enqueue(other)

        assert anew.job_id is not None
        assert await bench.queue.enqueue(other) == anew

    async def test_it_may_be_answered_by_the_cache_once_more_after_that(self, bench: Bench) -> None:
        for body in ({"text": "arroz"}, {"text": "outro"}):
            await bench.add(type=SHARED, input=body)
            await bench.finish(await bench.claim_one(), Completed(body, cache_ttl_s=60))
            again = new_job(type=SHARED, idempotency_key="once", input=body)
            assert [(await bench.queue.enqueue(again)).cached_result for _ in range(2)] == [body] * 2
            await bench.advance(61)

    async def test_keys_that_the_cache_answers_do_not_pile_up(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        for number in range(3 * LIMIT):
            assert (await bench.queue.enqueue(new_job(type=SHARED, idempotency_key=f"{number}"))).job_id is None

        other = new_job(type=SHARED, input={"text": "outro"})
        for number in range(2 * LIMIT, 3 * LIMIT):
            with pytest.raises(IdempotencyConflict):
                await bench.queue.enqueue(replace(other, idempotency_key=f"{number}"))
        assert (await bench.queue.enqueue(replace(other, idempotency_key="0"))).job_id is not None
        assert len(await bench.states()) == 2

    async def test_keys_belong_to_their_user(self, bench: Bench) -> None:
        mine = await bench.add(idempotency_key="once")
        theirs = await bench.add(idempotency_key="once", user_id=uuid4(), input={"text": "outro"})

        assert mine != theirs

    async def test_simultaneous_repeats_make_one_job(self, bench: Bench) -> None:
        ids = await asyncio.gather(*(bench.add(idempotency_key="once") for _ in range(12)))

        assert len(set(ids)) == 1
        assert len(await bench.claim()) == 1


class TestLimit:
    async def test_the_next_one_is_refused_until_one_has_ended(self, bench: Bench) -> None:
        for _ in range(LIMIT):
            await bench.add(unlimited=False)
        with pytest.raises(TooManyActiveJobs):
            await bench.add(unlimited=False)
        await bench.add(unlimited=False, user_id=uuid4())
        [job] = await bench.claim(limit=1)
        with pytest.raises(TooManyActiveJobs):
            await bench.add(unlimited=False)

        await bench.finish(job, Completed({}))

        await bench.add(unlimited=False)

    async def test_delayed_and_following_jobs_count_too(self, bench: Bench) -> None:
        for _ in range(LIMIT - 2):
            await bench.add(unlimited=False, type=SHARED)
        for _ in range(2):
            await bench.add(unlimited=False, delay_s=3600)

        with pytest.raises(TooManyActiveJobs):
            await bench.add(unlimited=False)
        assert await bench.add(unlimited=True)

    async def test_it_is_exact_when_everybody_asks_at_once(self, bench: Bench) -> None:
        replies = await asyncio.gather(*(bench.add(unlimited=False) for _ in range(60)), return_exceptions=True)

        accepted = [reply for reply in replies if isinstance(reply, UUID)]
        refused = [reply for reply in replies if isinstance(reply, TooManyActiveJobs)]
        assert (len(accepted), len(refused)) == (10, 50)


class TestTypes:
    async def test_a_type_that_nobody_serves_is_refused(self, bench: Bench) -> None:
        with pytest.raises(UnknownJobType):
            await bench.add(type="palmistry")


class TestCache:
    async def test_a_result_is_shared_until_it_expires_and_every_hit_counts(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))

        for count in (1, 2):
            hit = await bench.queue.enqueue(new_job(type=SHARED, user_id=uuid4()))
            assert (hit.job_id, hit.status, hit.cached_result) == (None, JobStatus.COMPLETED, {"kcal": 5})
            assert await bench.hits() == count
        assert (await bench.queue.enqueue(new_job(type=SHARED, use_cache=False))).job_id is not None
        await bench.advance(61)
        assert (await bench.queue.enqueue(new_job(type=SHARED))).job_id is not None

    @pytest.mark.parametrize(
        ("same", "body"),
        [
            (True, {"b": {"d": [1, None], "c": 2.0}, "a": "x"}),
            (False, {"a": "x", "b": {"c": 3, "d": [1, None]}}),
            (False, {"a": "x", "b": {"c": 2, "d": [None, 1]}}),
            (False, {"a": "x", "b": {"c": "2", "d": [1, None]}}),
            (False, {"a": "x"}),
        ],
        ids=["other order of keys", "nested value", "order of a list", "type of a value", "key left out"],
    )
    async def test_the_whole_input_counts(self, bench: Bench, same: bool, body: dict[str, Any]) -> None:
        await bench.add(type=SHARED, input={"a": "x", "b": {"c": 2, "d": [1, None]}})
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))

        again = await bench.queue.enqueue(new_job(type=SHARED, input=body))

        assert (again.cached_result is not None) is same

    async def test_what_reads_personal_context_is_shared_with_its_own_user_only(self, bench: Bench) -> None:
        await bench.add(type=PERSONAL)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))

        assert (await bench.queue.enqueue(new_job(type=PERSONAL))).cached_result == {"kcal": 5}
        other = await bench.queue.enqueue(new_job(type=PERSONAL, user_id=uuid4()))
        assert other.cached_result is None
        assert (await bench.claim_one()).id == other.job_id

    async def test_a_hit_is_free_of_the_limit(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        for _ in range(LIMIT):
            await bench.add()

        assert (await bench.queue.enqueue(new_job(type=SHARED, unlimited=False))).cached_result == {"kcal": 5}

    @pytest.mark.parametrize(
        ("job_type", "outcome"),
        [
            (SHARED, Completed({"degraded": True}, cache_ttl_s=None)),
            (TEXT, Completed({"kcal": 5}, cache_ttl_s=60)),
            (SHARED, Failed("bad", "image_unreadable")),
        ],
        ids=["degraded", "a type that is never shared", "failed"],
    )
    async def test_nothing_else_is_shared(self, bench: Bench, job_type: str, outcome: Outcome) -> None:
        await bench.add(type=job_type)
        await bench.finish(await bench.claim_one(), outcome)

        assert (await bench.queue.enqueue(new_job(type=job_type))).cached_result is None

    async def test_a_newer_result_replaces_the_older(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Completed({"n": 1}, cache_ttl_s=60))
        await bench.add(type=SHARED, use_cache=False)
        await bench.finish(await bench.claim_one(), Completed({"n": 2}, cache_ttl_s=60))

        assert (await bench.queue.enqueue(new_job(type=SHARED))).cached_result == {"n": 2}

    async def test_one_batch_may_hold_the_same_request_twice(self, bench: Bench) -> None:
        for _ in range(2):
            await bench.add(type=SHARED, use_cache=False)
        jobs = await bench.claim()

        assert not await bench.queue.finalise([(job.lease, Completed({"n": 1}, cache_ttl_s=60)) for job in jobs])

        assert (await bench.queue.enqueue(new_job(type=SHARED))).cached_result == {"n": 1}


class TestSingleFlight:
    async def test_identical_jobs_wait_for_the_first_and_have_its_result(self, bench: Bench) -> None:
        first = await bench.add(type=SHARED)
        second = await bench.add(type=SHARED, user_id=uuid4())
        job = await bench.claim_one()
        third = await bench.add(type=SHARED, user_id=uuid4())

        depth = await bench.queue.depth()
        assert (depth.processing, depth.pending, depth.following) == (1, 0, 2)
        assert await bench.finish(job, Completed({"kcal": 5}, cache_ttl_s=60))

        assert job.id == first
        for job_id in (first, second, third):
            view = await bench.view(job_id)
            assert (view.status, view.result, view.progress) == (JobStatus.COMPLETED, {"kcal": 5}, 100)
            assert view.completed_at is not None
        assert await bench.claim() == []

    async def test_simultaneous_requests_make_one_run(self, bench: Bench) -> None:
        ids = await asyncio.gather(*(bench.add(type=SHARED, user_id=uuid4()) for _ in range(12)))

        assert await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))

        assert [(await bench.view(job_id)).status for job_id in ids] == [JobStatus.COMPLETED] * 12

    @pytest.mark.parametrize(
        "outcome",
        [Failed("bad", "image_unreadable"), Completed({"degraded": True}, cache_ttl_s=None)],
        ids=["failed", "degraded"],
    )
    async def test_an_end_that_is_not_shared_lets_the_next_run(self, bench: Bench, outcome: Outcome) -> None:
        first = await bench.add(type=SHARED)
        ids = [await bench.add(type=SHARED, user_id=uuid4(), priority=priority) for priority in (9, 4, 8)]
        await bench.finish(await bench.claim_one(), outcome)

        heir = await bench.claim_one()

        # Who asked last has the most time left.
        assert heir.id == ids[2]
        assert (await bench.view(first)).result == getattr(outcome, "result", None)
        await bench.finish(heir, Completed({"kcal": 5}, cache_ttl_s=60))
        assert [(await bench.view(job_id)).result for job_id in ids] == [{"kcal": 5}] * 3

    async def test_a_cancelled_first_does_not_take_the_others_along(self, bench: Bench) -> None:
        pending = await bench.add(type=SHARED)
        second = await bench.add(type=SHARED)
        third = await bench.add(type=SHARED)

        await bench.queue.cancel(pending, USER)
        job = await bench.claim_one()
        assert job.id == third
        await bench.queue.cancel(third, USER)
        await bench.finish(job, Completed({"kcal": 5}, cache_ttl_s=60))

        assert (await bench.view(second)).status is JobStatus.PENDING
        assert (await bench.claim_one()).id == second

    async def test_who_leads_next_stands_where_the_first_of_the_others_stood(self, bench: Bench) -> None:
        await bench.add(type=SHARED, priority=9)
        await bench.add(type=SHARED, priority=2, user_id=uuid4())
        last = await bench.add(type=SHARED, priority=9, user_id=uuid4())
        job = await bench.claim_one()
        other = await bench.add(priority=5)
        await bench.finish(job, Failed("bad", "image_unreadable"))

        assert [job.id for job in await bench.claim()] == [last, other]

    async def test_who_has_waited_nearly_until_the_deadline_runs_for_itself(self, bench: Bench) -> None:
        """As time goes by each would lead when it is too late to ask a model, and the next one after it."""
        await bench.add(type=SHARED)
        late = await bench.add(type=SHARED)
        leader = await bench.claim_one()
        await bench.advance(SLO_S / 2)
        young = await bench.add(type=SHARED)
        await bench.queue.renew([leader.lease], 4 * SLO_S)
        await bench.advance(SLO_S / 2 - 3)
        assert await bench.queue.rescue() == 0

        alone = await bench.claim_one()
        assert alone.id == late
        assert await bench.finish(alone, Completed({"degraded": True}))
        assert await bench.finish(leader, Completed({"kcal": 5}, cache_ttl_s=60))
        assert (await bench.view(late)).result == {"degraded": True}
        assert (await bench.view(young)).result == {"kcal": 5}

    async def test_behind_a_backlog_identical_jobs_are_still_one_run(self, bench: Bench) -> None:
        """Who is let go when time is short stands behind the first: all would run just when there is no time."""
        ids = [await bench.add(type=SHARED) for _ in range(5)]
        await bench.advance(SLO_S - 1)
        await bench.queue.rescue()
        assert (await bench.queue.depth()).following == 4
        leader = await bench.claim_one()
        await bench.queue.rescue()
        begun = (await bench.claim(limit=1))[0]

        assert await bench.finish(leader, Completed({"kcal": 5}, cache_ttl_s=60))

        assert await bench.claim() == []
        assert {(await bench.view(job_id)).status for job_id in ids if job_id != begun.id} == {JobStatus.COMPLETED}
        assert await bench.finish(begun, Completed({"kcal": 6}))

    async def test_nobody_runs_what_may_have_silenced_a_worker_because_time_is_short(self, bench: Bench) -> None:
        await bench.add(type=SHARED)
        await bench.add(type=SHARED)
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 1
        again = await bench.claim_one()
        await bench.queue.renew([again.lease], 4 * SLO_S)
        await bench.advance(SLO_S)
        assert await bench.queue.rescue() == 0

        assert await bench.claim() == []

    async def test_a_retry_of_the_first_keeps_the_others_waiting(self, bench: Bench) -> None:
        first = await bench.add(type=SHARED)
        await bench.add(type=SHARED)
        await bench.finish(await bench.claim_one(), Retry(0.0, "later", "provider_timeout"))

        assert [job.id for job in await bench.claim()] == [first]

    async def test_a_first_that_died_for_good_lets_the_next_run(self, bench: Bench) -> None:
        await bench.add(type=SHARED, max_attempts=1)
        second = await bench.add(type=SHARED)
        await bench.claim_one()
        await bench.advance(LEASE_S + 1)
        assert await bench.queue.rescue() == 1

        assert (await bench.claim_one()).id == second

    async def test_a_follower_is_cancelled_alone(self, bench: Bench) -> None:
        first = await bench.add(type=SHARED)
        follower = await bench.add(type=SHARED)

        assert (await bench.queue.cancel(follower, USER)).status is JobStatus.CANCELLED

        await bench.finish(await bench.claim_one(), Completed({"kcal": 5}, cache_ttl_s=60))
        assert (await bench.view(first)).status is JobStatus.COMPLETED
        assert (await bench.view(follower)).status is JobStatus.CANCELLED

    async def test_an_urgent_follower_lends_the_first_its_urgency(self, bench: Bench) -> None:
        slow = await bench.add(type=SHARED, priority=9)
        other = await bench.add(user_id=uuid4(), priority=4)
        await bench.add(type=SHARED, priority=1, user_id=uuid4())

        assert [job.id for job in await bench.claim()] == [slow, other]

    async def test_what_is_delayed_or_wants_no_cache_runs_for_itself(self, bench: Bench) -> None:
        await bench.add(type=SHARED, delay_s=30)
        alone = await bench.add(type=SHARED, use_cache=False)
        first = await bench.add(type=SHARED)

        assert {job.id for job in await bench.claim()} == {alone, first}

    async def test_personal_requests_fly_alone(self, bench: Bench) -> None:
        ids = [await bench.add(type=PERSONAL, user_id=uuid4()) for _ in range(2)]

        assert {job.id for job in await bench.claim()} == set(ids)


class TestWakeUps:
    async def test_work_and_cancel_are_heard_and_nothing_else(self, bench: Bench) -> None:
        async with aclosing(bench.wake_ups.listen()) as hints, asyncio.timeout(20):
            assert {await anext(hints), await anext(hints)} == {"work", "cancel"}
            await bench.add()
            assert await anext(hints) == "work"
            job = await bench.claim_one()
            await bench.queue.cancel(job.id, USER)
            assert await anext(hints) == "cancel"
            await bench.finish(job, Completed({}))
            await bench.add()
            assert await anext(hints) == "work"
            await bench.finish(await bench.claim_one(), Interrupted())
            assert await anext(hints) == "work"
