"""The gate judges rightly: its plan, its mix, its open loop, its figures and its page."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes.gemini_server import FakeGemini
from fakes.llm_server import Reply
from gate import soak, system
from gate.drive import Call, Driver, Log, Sent
from gate.mix import BY_NAME, KINDS, Quantiles, kinds_here, model_latency
from gate.old_design import OldWorker
from gate.plan import DAY_MEAN, Phase, arrivals, phases, soak_phases
from gate.report import page
from gate.show import Display, show_old
from gate.simulate import need, waits
from gate.stand_ins import Addresses, purpose_of
from gate.svg import cumulative, line_chart, ticks
from gate.system import environment
from gate.verdict import Job, Target, against_old, changes, percentile, summary, targets
from gate.watch import Sample, Watch, peak_mb
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aiworker.cli.bench import run_gate
from aiworker.domain.errors import ConfigurationError
from aiworker.settings import Settings


def job(phase: str = "steady", **more: Any) -> Job:
    usual: dict[str, Any] = {
        "status": "completed",
        "attempts": 1,
        "end_to_end_s": 3.0,
        "worker_s": 2.5,
        "pickup_s": 0.01,
    }
    return Job(phase, "sofia_text", **(usual | more))


def sample(at: float = 1.0, phase: str = "steady", **more: Any) -> Sample:
    usual: dict[str, Any] = {
        "pending": 1,
        "processing": 2,
        "memory_mb": {"worker": 90.0},
        "own_mb": {"worker": 80.0},
        "files": 50,
        "threads": 20,
        "connections": 5,
        "series": 300,
        "batches": 2.0,
        "images": 5.0,
    }
    return Sample(at, phase, **(usual | more))


def test_latencies_have_the_quantiles_of_the_documents_less_the_other_stages() -> None:
    image = BY_NAME["sofia_image"].model
    assert [image.at(share) for share in (0.5, 0.95, 0.99, 1.0)] == pytest.approx([6, 14, 24, 41])
    assert BY_NAME["unified_assistant"].model.at(0.5) == pytest.approx(5)
    drawn = sorted(model_latency("sofia_image", rng) for rng in [Random(7)] for _ in range(4000))
    assert drawn[2000] == pytest.approx(6, rel=0.06)
    assert drawn[3800] == pytest.approx(14, rel=0.06)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_quantile_never_takes_less(one: float, other: float) -> None:
    low, high = sorted((one, other))
    quantiles = Quantiles(5, 10, 15, 25)
    assert 2.5 - 1e-9 <= quantiles.at(low) <= quantiles.at(high) + 1e-9 <= 25 + 1e-6


def test_the_mix_has_the_days_calls_and_uses_what_this_release_knows() -> None:
    assert {kind.name for kind in kinds_here()} >= {"sofia_image", "sofia_text", "unified_assistant"}
    assert sum(kind.calls_a_day for kind in KINDS) == pytest.approx(3650, rel=0.06)


def test_a_plan_is_the_same_each_time_and_keeps_its_rate() -> None:
    phase = Phase("steady", "5 jobs/s", "jobs", 5.0, 200.0)
    plan = arrivals(phase, KINDS, Random(3))
    assert plan == arrivals(phase, KINDS, Random(3))
    assert len(plan) == pytest.approx(1000, rel=0.1)
    assert all(0 <= each.at < phase.seconds for each in plan)
    assert [each.at for each in plan] == sorted(each.at for each in plan)
    assert len(arrivals(Phase("mean", "", "jobs", DAY_MEAN, 1.0, at_least=3), KINDS, Random(3))) == 3


def test_both_lengths_have_every_phase_and_fit_their_time() -> None:
    names = ["warm_up", "mean", "peak", "gateway", "users", "steady", "overload", "recovery"]
    for scale, most in (("quick", 100), ("full", 400)):
        plan = phases(scale)  # type: ignore[arg-type]
        assert [phase.name for phase in plan] == names
        assert sum(phase.seconds for phase in plan) <= most


async def test_requests_are_sent_when_they_are_due_even_if_nothing_is_answered() -> None:
    """A server that answers only once all have come would hang a client that waits for answers before it goes on."""
    expected, received = 10, asyncio.Semaphore(0)
    all_here = asyncio.Event()
    dues: list[float] = []

    async def enqueue(request: web.Request) -> web.Response:
        received.release()
        dues.append(0.0)
        if len(dues) == expected:
            all_here.set()
        await all_here.wait()
        return web.json_response({"jobId": str(uuid4())}, status=202)

    app = web.Application()
    app.router.add_post("/functions/v1/enqueue-analysis", enqueue)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        driver = Driver(session, str(server.make_url("")).rstrip("/"), "key", KINDS[:1], ["http://x/a.jpg"], Random(1))
        phase = Phase("steady", "", "jobs", 1e-9, 0.05, at_least=expected)
        async with asyncio.timeout(20):
            await driver.run(phase)
    assert [call.status for call in driver.log.calls] == [202] * expected
    assert len(driver.log.sent) == expected
    # The first ones were held up, and their latency says so: it counts from when they were due.
    first = min(driver.log.sent, key=lambda sent: sent.due).due
    last = max(driver.log.sent, key=lambda sent: sent.due).due
    assert max(call.ms for call in driver.log.calls) >= 1000 * (last - first) - 1


async def test_everything_is_jobs_requests_of_every_kind_and_users() -> None:
    asked: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.Response:
        body = await request.json() if request.method == "POST" else {}
        what = request.path.rpartition("/")[2]
        asked[f"{what} later" if "delaySeconds" in body else what] += 1
        status = {"jobId": str(uuid4()), "status": "completed"}
        return web.json_response(status, status=202 if what == "enqueue-analysis" else 200)

    app = web.Application()
    app.router.add_route("*", "/functions/v1/{what}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        driver = Driver(session, str(server.make_url("")).rstrip("/"), "key", KINDS[:1], ["http://x/a.jpg"], Random(1))
        phase = Phase("round_1", "", "everything", 40.0, 0.5)
        await driver.run(phase)
        users_began = len(driver.log.seen_s)
        await driver.finish()
    assert min(asked[what] for what in ("enqueue-analysis", "enqueue-analysis later", "get-analysis-status")) > 10
    during = [call for call in driver.log.calls if call.phase == "round_1"]
    assert sum(call.what == "cancel" for call in during) > 5, "cancels belong to the load, not to its end"
    assert asked["cancel-analysis"] == asked["enqueue-analysis later"]
    assert len(driver.log.seen_s) > users_began


async def test_users_whose_gateway_is_gone_are_given_up_and_counted() -> None:
    async def enqueue(_request: web.Request) -> web.Response:
        return web.json_response({"jobId": str(uuid4())}, status=202)

    app = web.Application()
    app.router.add_post("/functions/v1/enqueue-analysis", enqueue)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        driver = Driver(session, str(server.make_url("")).rstrip("/"), "key", KINDS[:1], ["http://x/a.jpg"], Random(1))
        await driver.run(Phase("users", "", "users", 3, 2.1))
        async with asyncio.timeout(5):
            await driver.finish(0.1)
    assert driver.log.unseen == 3


async def test_a_watch_that_died_leaves_no_memory_that_meets_a_target() -> None:
    watch = Watch(None, None, "http://worker", {})  # type: ignore[arg-type]
    watch.samples.append(sample())
    with pytest.raises(AttributeError):
        await watch.run()
    assert not Target("total memory at its peak", peak_mb(watch.samples), 4000, "MB").met


def test_percentiles_are_of_values_that_were_seen() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.95) == 4.0
    assert math.isnan(percentile([], 0.5))


def test_a_summary_counts_every_way_to_end() -> None:
    jobs = [
        job(),
        job(status="failed", error_code="deadline_exceeded"),
        job(status="failed", error_code="media_not_found"),
        job(status="cancelled"),
        job(end_to_end_s=31.0),
        job(degraded_code="no_provider"),
        job(status="processing", end_to_end_s=None),
    ]
    found = summary(jobs)
    counts = {key: found[key] for key in ("jobs", "unfinished", "completed", "failed", "degraded", "timed_out")}
    assert counts == {"jobs": 7, "unfinished": 1, "completed": 3, "failed": 3, "degraded": 1, "timed_out": 2}
    assert found["why"] == {"deadline_exceeded": 1, "media_not_found": 1, "no_provider": 1}


def missed(found: list[Target]) -> set[str]:
    return {target.name for target in found if not target.met}


def test_targets_are_met_and_missed_one_by_one() -> None:
    fine = [job() for _ in range(2000)]
    assert missed(targets(fine, fine, [10.0], 0, 600, 4000)) == set()
    assert missed(targets(fine, [*fine, job(status="processing")], [10.0], 0, 600, 4000)) == {"jobs lost"}
    assert missed(targets(fine, fine, [10.0] * 9 + [500.0], 1, 5000, 4000)) == {
        "gateway p95",
        "gateway requests that failed",
        "total memory at its peak",
    }
    slow = [job(worker_s=16.0, end_to_end_s=21.0)] * 60 + [job()] * 940
    assert missed(targets(slow, slow, [1.0], 0, 1, 4000)) == {"worker p95", "end to end p95"}
    failing = [job(status="failed", error_code="provider_timeout")] * 30 + [job()] * 1970
    assert missed(targets(failing, failing, [1.0], 0, 1, 4000)) == {"timeouts", "errors"}
    by_rule = [job(degraded_code="no_provider")] * 101 + [job()] * 899
    assert missed(targets(by_rule, by_rule, [1.0], 0, 1, 4000)) == {"answers by rule, for want of a model"}
    assert "worker p95" in missed(targets([], [], [1.0], 0, 1, 4000)), "nothing measured is nothing met"


def test_a_request_that_is_refused_has_failed_as_one_without_an_answer_has() -> None:
    statuses = (0, 200, 202, 400, 401, 409, 429, 503)
    assert [status for status in statuses if not Call("steady", "enqueue", 1.0, status).refused] == [200, 202]


def test_the_old_design_is_the_bar() -> None:
    assert missed(against_old(0.8, 5.0, [0.5], [0.01], 0)) == set()
    assert missed(against_old(2.0, 5.0, [0.5], [0.1], 1)) == {
        "throughput against the old design",
        "pick-up against the old design",
        "the old design's jobs that failed",
    }


async def test_gemini_answers_what_the_old_design_asks_and_a_refusal_is_no_job_done() -> None:
    database = SimpleNamespace(execute=AsyncMock())
    async with FakeGemini() as gemini, aiohttp.ClientSession() as session:

        async def detect(_request: web.Request) -> web.Response:
            return web.json_response({"objects": []})

        app = web.Application()
        app.router.add_post("/detect", detect)
        async with TestServer(app) as yolo:
            places = Addresses("", gemini.url, gemini.key, "", [])
            worker = OldWorker(database, session, places, str(yolo.make_url("")).rstrip("/"))  # type: ignore[arg-type]
            for kind in kinds_here():
                body = json.dumps(kind.make(Random(1), "http://x/a.jpg"))
                await worker._job({"id": 1, "type": kind.name, "input": body})
            assert database.execute.await_count == len(kinds_here())
            gemini.script(Reply(status=500))
            with pytest.raises(aiohttp.ClientResponseError):
                await worker._job({"id": 1, "type": "sofia_text", "input": "{}"})
            assert database.execute.await_count == len(kinds_here())


def rounds(*values: float) -> list[tuple[float, float]]:
    return [(150.0 * number, value) for number, value in enumerate(values, 1)]


def test_growth_looks_past_the_warm_up() -> None:
    assert soak.growth(rounds(50, 70, 90, 99, *[100.0] * 8)) == 0
    assert math.isnan(soak.growth(rounds(1, 1, 1, 1)))


def test_a_slow_leak_a_late_step_and_a_slow_release_are_told_apart() -> None:
    leak = [100 + 3 * number / 7 for number in range(8)]
    assert soak.growth(rounds(*[100.0] * 4, *leak)) == pytest.approx(3, abs=0.5)
    assert soak.growth(rounds(*[100.0] * 10, 104, 104)) == pytest.approx(4)
    assert soak.growth(rounds(*[100.0] * 4, *[110.0 - number for number in range(8)])) < 0


def test_what_is_gone_or_cannot_be_looked_at_is_no_level_that_was_kept() -> None:
    assert math.isnan(soak.growth(rounds(*[0.0] * 12)))
    assert math.isnan(soak.growth(rounds(*[100.0] * 10, 0.0, 0.0)))
    dead = [
        sample(
            25.0 * number,
            f"rest {number}",
            own_mb={"gateway": 60, "children": 200} | ({"worker": 80} if number < 8 else {}),
        )
        for number in range(12)
    ]
    assert missed(soak.targets(dead)) == {"growth of worker's memory"}


@given(st.lists(st.floats(99.5, 100.5), min_size=12, max_size=12), st.integers(4, 11), st.floats(50, 200))
def test_noise_and_one_odd_level_are_no_growth(levels: list[float], odd: int, value: float) -> None:
    levels[odd] = value
    assert soak.growth(rounds(*levels)) < 2


@given(st.lists(st.floats(99.7, 100.3), min_size=12, max_size=12), st.floats(4, 50))
def test_a_leak_shows_through_noise(levels: list[float], per_cent: float) -> None:
    leaking = [level + per_cent * number / 7 for number, level in enumerate(levels)]
    assert soak.growth(rounds(*leaking)) > 2


def test_levels_are_of_the_end_of_each_rest() -> None:
    """Connections that are still open while work goes on, and some seconds after it, are no leak."""
    samples = [
        sample(at + 40 * number, phase, files=files)
        for number in range(6)
        for at, phase, files in [
            *((at, f"round_{number}", 80) for at in range(15)),
            *((at, f"rest {number}", 70 if at < 30 else 50) for at in range(15, 40)),
        ]
    ]
    found = soak.levels(samples, lambda each: each.files)
    assert [value for _, value in found] == [50] * 6


def test_the_soak_names_what_grows_and_lets_files_be_mapped() -> None:
    samples = [
        sample(
            25.0 * number,
            f"rest {number}",
            memory_mb={"gateway": 70, "worker": 100 + 5 * number, "children": 300 + 20 * number, "postgres": 40},
            own_mb={"gateway": 60, "worker": 80 + 5 * number, "children": 200, "postgres": 30},
            threads=20 + number,
        )
        for number in range(12)
    ]
    assert missed(soak.targets(samples)) == {
        "growth of worker's memory",
        "growth of memory in all",
        "growth of threads",
    }


@pytest.mark.parametrize(("leak_mb", "found"), [(0.0, set()), (0.2, {"growth of memory in all"})])
def test_a_connection_more_is_no_growth_of_memory_and_larger_ones_are(leak_mb: float, found: set[str]) -> None:
    samples = [
        sample(
            25.0 * number,
            f"rest {number}",
            own_mb={"gateway": 60, "worker": 80, "children": 130, "postgres": connections * (5 + leak_mb * number)},
            files=40 + connections,
            connections=connections,
        )
        for number, connections in enumerate([7] * 8 + [9] * 4)
    ]
    assert missed(soak.targets(samples)) == found


def test_a_soak_takes_its_time_in_rounds_with_rests() -> None:
    for seconds in (300.0, 1800.0):
        plan = [phase for phase in soak_phases(seconds) if phase.rest_s]
        assert len(plan) >= 6
        # Ten seconds of each round are for the queue to become empty.
        assert sum(phase.seconds + phase.rest_s + 10 for phase in plan) == pytest.approx(seconds)


def test_noise_is_told_from_change() -> None:
    found = {
        name: verdict
        for name, _, _, verdict in changes({"a": 100, "b": 100, "c": 100, "gone": 1}, {"a": 120, "b": 130, "c": 70})
    }
    assert found == {"a": "noise", "b": "worse", "c": "better"}


def a_run(*, met: bool) -> dict[str, Any]:
    phase = summary([job()]) | {"gateway_ms": {"n": 1, "p50": 2.0, "p95": 3.0}}
    target = {"name": "gateway <p95>", "value": 1.0, "limit": 2.0, "unit": "ms", "at_least": False, "met": met}
    return {
        "about": {"mode": "quick", "types": "<sofia>"},
        "targets": [target],
        "phases": {"steady": phase},
        "latency_by_kind_s": {"sofia_text": [1.0, 2.0]},
        "samples": [dataclasses.asdict(sample(at)) | {"batch": 1.5} for at in (1.0, 2.0)],
        "old_design": {"peak": {"rate": 0.5, "pickup_s": {"p50": 0.5}, "end_to_end_s": {"p50": 5.0}}},
        "changes": [("a", 1.0, 2.0, "worse")],
    }


def test_the_page_needs_nothing_else_and_shows_everything() -> None:
    html = page(json.loads(json.dumps(a_run(met=False))))
    assert "missed: gateway &lt;p95&gt;" in html
    assert "&lt;sofia&gt;" in html
    assert html.count("<svg") == 5
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)
    assert "all targets met" in page(a_run(met=True))


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=500))
def test_a_cumulative_curve_ends_with_all(values: list[float]) -> None:
    points = cumulative(values)
    assert points[-1] == (max(values), 100.0)
    assert [share for _, share in points] == sorted(share for _, share in points)


@given(st.floats(1e-6, 1e9))
def test_ticks_cover_the_axis_with_few_round_numbers(most: float) -> None:
    found = ticks(most)
    assert found[0] == 0
    assert found[-1] >= most * 0.999
    assert len(found) <= 12


def test_the_terminal_shows_what_happens_while_it_happens() -> None:
    log = Log(sent=[Sent(uuid4(), "mean", "sofia_text", 0.0)], calls=[Call("mean", "enqueue", 12.0, 202)])
    watch = Watch(None, None, "http://worker", {})  # type: ignore[arg-type]
    display = Display(log, watch, phases("quick"))
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(display)
    watch.samples.append(sample(phase="mean", pending=7, processing=3, memory_mb={"worker": 90.0, "children": 300.0}))
    display.begin(phases("quick")[1])
    console.print(display)
    display.end(phases("quick")[1], "1 request so far")
    console.print(display)
    shown = console.export_text()
    for part in ("the day's mean", "7", "3", "12 ms", "390 MB", "2.50", "1 request so far"):
        assert part in shown


def test_the_terminal_shows_what_the_old_design_reached() -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    show_old(console, a_run(met=True)["old_design"])
    shown = console.export_text()
    for part in ("peak", "0.50/s", "0.50 s", "5.00 s"):
        assert part in shown


def test_a_chart_of_nothing_says_so() -> None:
    assert line_chart({"a": []}, x_title="x", y_title="y") == "<p>nothing to draw</p>"


def test_the_stand_in_knows_who_asks() -> None:
    def body(schema: dict[str, Any] | None, *parts: dict[str, Any]) -> dict[str, Any]:
        config = {"generationConfig": {"responseJsonSchema": schema}} if schema else {}
        return {"contents": [{"parts": list(parts)}]} | config

    photo = {"inlineData": {"mimeType": "image/jpeg", "data": ""}}
    foods = {"properties": {"foods": {}, "confidence": {}}}
    assert purpose_of(body(foods, photo)) == "sofia_image"
    assert purpose_of(body({"properties": {"sections": {}}}, photo)) == "medical_exam"
    assert purpose_of(body({"properties": {"foods": {}}})) == "sofia_text"
    assert purpose_of(body(None, {"text": "oi"})) == "unified_assistant"


def test_the_gate_never_loads_the_database_of_the_environment(tmp_path: Path) -> None:
    places = Addresses("http://ollama", "http://gemini", "fake-key", "http://127.0.0.1:9", [])
    outside = {
        "DATABASE_URL": "postgresql://production",
        "HEALTH_TOKEN": "token",
        "GEMINI_API_KEY": "real-key",
        "SUPABASE_JWT_SECRET": "without the service key that the driver needs",
        "HOST": "0.0.0.0",
        "WORKER_CONCURRENCY": "8",
        "PATH": "/bin",
    }
    seen = environment(outside, places, tmp_path / "a.pt", tmp_path, live=False)
    assert "production" not in str(seen)
    assert not seen.keys() & {"HEALTH_TOKEN", "SUPABASE_JWT_SECRET", "HOST"}
    assert (seen["GEMINI_API_KEY"], seen["WORKER_CONCURRENCY"], seen["PATH"]) == ("fake-key", "8", "/bin")
    assert environment(outside, places, tmp_path / "a.pt", tmp_path, live=True)["GEMINI_API_KEY"] == "real-key"


@pytest.mark.parametrize("named", [None, "models"])
async def test_the_system_finds_what_was_measured_before_although_it_runs_elsewhere(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    @asynccontextmanager
    async def stack(settings: Settings, *_: Any, **__: Any) -> AsyncIterator[None]:
        started.append(settings.models_dir.resolve())
        yield None

    @asynccontextmanager
    async def no_stand_ins(_photos: Path) -> AsyncIterator[Addresses]:
        yield Addresses("http://ollama", "http://gemini", "fake-key", "http://127.0.0.1:9", [])

    monkeypatch.setattr(system, "running_stack", stack)
    monkeypatch.setattr(system, "stand_ins", no_stand_ins)
    monkeypatch.setattr(system, "_weights", lambda _model, models: models / "a.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELS_DIR", raising=False)
    if named:
        monkeypatch.setenv("MODELS_DIR", named)
    async with system.running_system(lambda _: None, live=False):
        assert started == [tmp_path / "models"]


def test_without_a_checkout_the_command_says_where_the_gate_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make bench"):
        run_gate([], tmp_path)


def test_waiting_for_servers_is_first_come_first_served() -> None:
    assert waits([0, 0, 0], [2, 2, 2], 1) == [2, 4, 6]
    assert waits([0, 0, 0], [2, 2, 2], 2) == [2, 2, 4]
    assert waits([0, 10], [2, 2], 1) == [2, 2]


def test_more_load_needs_more_slots_and_not_more_than_in_proportion() -> None:
    few, many = need(0.5, 0.06, jobs=3000), need(5.0, 0.06, jobs=3000)
    assert few.slots < many.slots <= 10 * few.slots
    assert many.p95_s < 20
    assert few.children == 1
