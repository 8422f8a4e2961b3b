"""The queue when its database is slow, silent, restarted, killed, absent or not ours. No call hangs, none needs a
restart of its caller."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from fakes.queue_bench import RULES
from fakes.queue_bench import TEXT as TYPE
from fakes.silent_proxy import SilentProxy

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.domain.errors import ConfigurationError, DatabaseUnavailable, InputRejected
from aiworker.domain.job import JobStatus, NewJob
from aiworker.domain.outcome import Completed, Failed
from aiworker.queue.connect import Connector
from aiworker.queue.listen import Listener
from aiworker.queue.migrate import migrate
from aiworker.queue.postgres import PostgresQueue
from aiworker.scheduler.leases import LeaseKeeper
from aiworker.scheduler.running import RunningJob, RunningJobs
from aiworker.telemetry.metrics import Metrics

KILL_OTHERS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and {}"
OURS = "application_name like 'aiworker%'"


def new_job(**changes: Any) -> NewJob:
    return NewJob(**({"user_id": uuid4(), "type": TYPE, "input": {}} | changes))


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop."""
    directory = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory, durable=False, outside=directory / "outside")
    yield server
    server.stop()
    shutil.rmtree(directory)


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """The first answer; DatabaseUnavailable is the only error that may come before it."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await call()
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)


async def both_hints(hints: Any) -> None:
    async with asyncio.timeout(30):
        assert {await anext(hints), await anext(hints)} == {"work", "cancel"}


async def test_killed_connections_are_replaced(database_url: str, admin: Any) -> None:
    async with PostgresQueue(database_url, RULES, timeout_s=10) as queue:
        await asyncio.gather(*(queue.depth() for _ in range(4)))
        for _ in range(5):
            assert await admin.fetch(KILL_OTHERS.format(OURS))
            await eventually(lambda: queue.enqueue(new_job()))
        assert (await eventually(queue.depth)).pending >= 5


async def test_a_restart_of_the_server_costs_nothing(own_server: EmbeddedPostgres) -> None:
    url = await asyncio.to_thread(own_server.start)
    await migrate(url)
    async with PostgresQueue(url, RULES, timeout_s=10) as queue, aclosing(Listener(url).listen()) as hints:
        await both_hints(hints)
        await queue.enqueue(new_job())
        assert await anext(hints) == "work"
        [job] = await queue.claim("w", 1, 60.0, [TYPE])

        await asyncio.to_thread(own_server.stop)
        with pytest.raises(DatabaseUnavailable):
            await queue.renew([job.lease], 60.0)
        assert await asyncio.to_thread(own_server.start) == url

        assert not (await eventually(lambda: queue.renew([job.lease], 60.0))).lost
        assert not await queue.finalise([(job.lease, Completed({"kcal": 1}))])
        await both_hints(hints)


async def test_a_server_that_does_not_answer_costs_one_time_limit(database_url: str) -> None:
    async with SilentProxy(database_url) as proxy, PostgresQueue(proxy.url, RULES, timeout_s=1.0) as queue:
        await queue.enqueue(new_job())
        proxy.go_silent()
        # Ten limits: none of them waits for a word of the connection that was silenced.
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable):
                await queue.claim("w", 1, 6.0, [TYPE])
            with pytest.raises(DatabaseUnavailable):
                await queue.depth()

        proxy.forget_and_speak()

        assert (await eventually(queue.depth)).pending == 1


async def test_after_one_silence_no_connection_of_before_is_trusted(database_url: str) -> None:
    async with SilentProxy(database_url) as proxy, PostgresQueue(proxy.url, RULES, timeout_s=2.0) as queue:
        await queue.depth()
        await asyncio.gather(*(queue.depth() for _ in range(4)))
        proxy.go_silent()
        with pytest.raises(DatabaseUnavailable):
            await queue.depth()
        proxy.forget_and_speak()

        assert [depth.pending for depth in await asyncio.gather(*(queue.depth() for _ in range(4)))] == [0] * 4


async def test_a_connection_that_goes_silent_costs_no_lease(database_url: str) -> None:
    """With the limit of all other calls the renewal would be missed, and whoever rescues would have the job."""
    lease_s = 8.0
    async with (
        SilentProxy(database_url) as proxy,
        PostgresQueue(proxy.url, RULES, timeout_s=10) as queue,
        PostgresQueue(database_url, timeout_s=10) as rescuer,
    ):
        await queue.enqueue(new_job())
        running = RunningJobs()
        [job] = await queue.claim("w", 1, lease_s, [TYPE])
        running.add([RunningJob(job, time.monotonic())])
        keeper = LeaseKeeper(queue, running, Metrics(), lease_s=lease_s, attempt_timeout_s=60)
        keeping = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.3)
        proxy.go_silent()
        proxy.forget_and_speak()
        ends = time.monotonic() + lease_s + 2
        while time.monotonic() < ends:
            assert await rescuer.rescue() == 0
            await asyncio.sleep(0.1)
        keeping.cancel()


async def test_the_server_gives_up_by_itself_what_its_client_has_forgotten(database_url: str) -> None:
    connect = Connector(database_url, timeout_s=1.0, application_name="aiworker", pooler="none")
    async with asyncio.timeout(30):
        connection = await connect()
        with pytest.raises(asyncpg.QueryCanceledError):
            await connection.execute("select pg_sleep(3600)")
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        await connection.execute("begin")
        await gone.wait()


async def test_a_statement_that_waits_too_long_is_given_up(database_url: str, admin: Any) -> None:
    async with PostgresQueue(database_url, RULES, timeout_s=0.5, connections=1) as queue:
        async with admin.transaction():
            await admin.execute("lock table analysis_jobs in access exclusive mode")
            with pytest.raises(DatabaseUnavailable):
                await queue.enqueue(new_job())

        assert (await eventually(queue.depth)).pending == 0


async def test_waiting_for_a_free_connection_is_limited_too(database_url: str, admin: Any) -> None:
    async with PostgresQueue(database_url, RULES, timeout_s=0.5, connections=1) as queue, admin.transaction():
        await admin.execute("lock table analysis_jobs in access exclusive mode")
        replies = await asyncio.gather(*(queue.depth() for _ in range(3)), return_exceptions=True)

    assert [type(reply) for reply in replies] == [DatabaseUnavailable] * 3


async def test_a_cancelled_call_gives_its_connection_back(database_url: str, admin: Any) -> None:
    async with PostgresQueue(database_url, RULES, timeout_s=10, connections=1) as queue:
        await queue.depth()
        async with admin.transaction():
            await admin.execute("lock table analysis_jobs in access exclusive mode")
            call = asyncio.create_task(queue.depth())
            while not await admin.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        assert (await queue.depth()).pending == 0


async def test_errors_say_what_to_do_and_quote_nothing(empty_database_url: str) -> None:
    async with PostgresQueue("postgresql://nobody:secret@127.0.0.1:1/none", timeout_s=2) as queue:
        with pytest.raises(DatabaseUnavailable) as absent:
            await queue.depth()
    assert "secret" not in str(absent.value)
    async with PostgresQueue(empty_database_url, RULES) as queue:
        with pytest.raises(ConfigurationError, match="aiworker migrate"):
            await queue.enqueue(new_job())
    with pytest.raises(DatabaseUnavailable):
        await queue.depth()


async def test_what_was_right_before_is_waited_for(empty_database_url: str) -> None:
    await migrate(empty_database_url)
    async with PostgresQueue(empty_database_url, RULES, timeout_s=5, connections=1) as queue:
        await queue.depth()
        connection = await asyncpg.connect(empty_database_url)
        await connection.execute("alter function analysis_queue_depth() rename to away")
        with pytest.raises(DatabaseUnavailable, match="aiworker migrate"):
            await queue.depth()
        await connection.execute("alter function away() rename to analysis_queue_depth")
        await connection.close()

        assert (await eventually(queue.depth)).pending == 0


@pytest.mark.parametrize(
    "changes",
    [{"input": {"text": "arroz\x00"}}, {"idempotency_key": "a\x00b"}, {"priority": 11}, {"input": {"n": 2**70}}],
    ids=["NUL in the input", "NUL in the key", "priority", "integer beyond 64 bits"],
)
async def test_a_value_that_cannot_be_stored_is_the_requests_fault(database_url: str, changes: dict[str, Any]) -> None:
    async with PostgresQueue(database_url, RULES) as queue:
        with pytest.raises(InputRejected) as rejected:
            await queue.enqueue(new_job(**changes))
        assert "arroz" not in str(rejected.value)
        assert (await queue.depth()).pending == 0


async def test_a_result_that_cannot_be_stored_fails_its_own_job_and_no_other(database_url: str) -> None:
    async with PostgresQueue(database_url, RULES) as queue:
        for _ in range(3):
            await queue.enqueue(new_job())
        good, nul, impossible = await queue.claim("w", 3, 6.0, [TYPE])
        results = [{"a": "\\u0000"}, {"a": ["x\x00"]}, {"a": object()}]

        lost = await queue.finalise(
            [(job.lease, Completed(result)) for job, result in zip((good, nul, impossible), results, strict=True)]
        )

        assert not lost
        assert (await queue.status(good.id, None)).result == {"a": "\\u0000"}
        assert (await queue.status(nul.id, None)).result == {"a": ["x\ufffd"]}
        failed = await queue.status(impossible.id, None)
        assert (failed.status, failed.error_code) == (JobStatus.FAILED, "internal_error")


@pytest.mark.parametrize("text", [b'{"n": 1}, {"n": 2}', b""], ids=["two values", "none"])
async def test_a_text_that_is_not_one_result_is_refused_and_moves_no_other_to_the_wrong_job(
    database_url: str, text: bytes
) -> None:
    async with PostgresQueue(database_url, RULES) as queue:
        for _ in range(2):
            await queue.enqueue(new_job())
        first, second = sorted(await queue.claim("w", 2, 6.0, [TYPE]), key=lambda job: job.id)
        for outcomes in (
            [(first.lease, Completed(text)), (second.lease, Completed({}))],
            [(first.lease, Completed(text))],
        ):
            with pytest.raises(InputRejected):
                await queue.finalise(outcomes)

        assert not await queue.finalise([(first.lease, Failed("bad", "bad")), (second.lease, Completed({}))])
        assert [(await queue.status(job.id, None)).result for job in (first, second)] == [None, {}]


class TestListener:
    async def test_a_killed_connection_is_replaced_and_hints_again(self, database_url: str, admin: Any) -> None:
        async with aclosing(Listener(database_url).listen()) as hints:
            await both_hints(hints)
            for _ in range(3):
                assert await admin.fetch(KILL_OTHERS.format("application_name = 'aiworker listener'"))
                await both_hints(hints)
            await admin.execute("select pg_notify('analysis_jobs', 'work')")
            assert await anext(hints) == "work"

    async def test_a_silent_connection_is_found_by_the_probe(self, database_url: str) -> None:
        async with SilentProxy(database_url) as proxy:
            listener = Listener(proxy.url, probe_s=0.1, timeout_s=1.0)
            async with aclosing(listener.listen()) as hints:
                await both_hints(hints)
                proxy.go_silent()
                next_hint = asyncio.ensure_future(anext(hints))
                await asyncio.sleep(0)
                proxy.forget_and_speak()
                async with asyncio.timeout(30):
                    assert await next_hint == "work"

    async def test_a_connection_that_lost_its_subscription_is_found_by_the_probe(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        connect = asyncpg.connect

        async def remember(*args: Any, **options: Any) -> Any:
            made.append(await connect(*args, **options))
            return made[-1]

        monkeypatch.setattr(asyncpg, "connect", remember)
        async with aclosing(Listener(database_url, probe_s=0.1, pooler="none").listen()) as hints:
            await both_hints(hints)
            await made[0].execute("unlisten *")
            await both_hints(hints)
        assert len(made) == 2

    async def test_quiet_probes_yield_nothing(self, database_url: str, admin: Any) -> None:
        async with aclosing(Listener(database_url, probe_s=0.01).listen()) as hints:
            await both_hints(hints)
            hint = asyncio.ensure_future(anext(hints))
            started = await self._last_probe(admin)
            while await self._last_probe(admin) == started:
                await asyncio.sleep(0.01)
            assert not hint.done()
            await admin.execute("select pg_notify('analysis_jobs', 'cancel')")
            assert await hint == "cancel"

    async def test_a_burst_comes_as_one_and_nothing_after_it_is_lost(self, database_url: str, admin: Any) -> None:
        async with aclosing(Listener(database_url).listen()) as hints:
            await both_hints(hints)
            async with admin.transaction():
                for number in range(200):
                    await admin.execute("select pg_notify('analysis_jobs', $1)", f"unknown {number}")
            await both_hints(hints)
            await admin.execute("select pg_notify('analysis_jobs', 'cancel')")
            heard = set()
            async with asyncio.timeout(30):
                while heard != {"cancel"}:
                    heard = {await anext(hints)}

    async def test_leaving_closes_the_connection(self, database_url: str, admin: Any) -> None:
        async with aclosing(Listener(database_url).listen()) as hints:
            await both_hints(hints)
        async with asyncio.timeout(30):
            while await admin.fetchval(f"select exists (select from pg_stat_activity where {OURS})"):
                await asyncio.sleep(0.01)

    async def test_it_waits_for_a_server_that_is_not_there_yet(self, own_server: EmbeddedPostgres) -> None:
        url = await asyncio.to_thread(own_server.start)
        await asyncio.to_thread(own_server.stop)
        async with aclosing(Listener(url).listen()) as hints:
            first = asyncio.ensure_future(anext(hints))
            await asyncio.sleep(0)
            assert not first.done()
            assert await asyncio.to_thread(own_server.start) == url
            async with asyncio.timeout(30):
                assert await first == "work"

    @staticmethod
    async def _last_probe(admin: Any) -> Any:
        return await admin.fetchval(
            "select query_start from pg_stat_activity where application_name = 'aiworker listener'"
        )
