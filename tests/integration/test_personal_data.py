"""What users write and models answer stays out of logs, metrics and spans; what leaves is what the page says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
from fakes.collector import FakeCollector, SeenSpan
from fakes.databases import execute
from fakes.gemini_server import FakeGemini, error_body
from fakes.llm_server import Reply
from fakes.ollama_server import FakeOllama
from fakes.pictures import picture
from fakes.ports import FunctionDetector, FunctionImages, detections
from pydantic import SecretStr

from aiworker.analyses.base import Tools
from aiworker.analyses.registry import ANALYSES
from aiworker.cli.wiring import traces_of
from aiworker.domain.errors import ConfigurationError
from aiworker.domain.job import ClaimedJob, Lease, NewJob
from aiworker.domain.outcome import Completed, Failed, Outcome, Retry
from aiworker.domain.ports import TextModel
from aiworker.domain.retry import RetryPolicy
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.lane import LaneRules
from aiworker.llm.local_only import LocalOnlyRule
from aiworker.llm.ollama import OllamaModel
from aiworker.llm.router import ModelRouter
from aiworker.queue.postgres import PostgresQueue, QueueRules
from aiworker.scheduler.executor import JobExecutor
from aiworker.settings import load_settings
from aiworker.telemetry import otel
from aiworker.telemetry.logs import configure_logging
from aiworker.telemetry.metrics import Metrics
from aiworker.telemetry.otel import OtelTraces
from aiworker.telemetry.traces import Traces

PAGE = (Path(__file__).parents[2] / "docs" / "personal-data.md").read_text()
SECRET = "sigiloso"
INPUTS: dict[str, dict[str, Any]] = {
    "sofia_image": {
        "imageUrl": "https://example.org/imageUrlsigiloso.jpg",
        "mealType": "mealTypesigiloso",
        "userContext": {"userName": "userNamesigiloso", "currentMeal": "currentMealsigiloso"},
    },
    "sofia_text": {"text": "comi textsigiloso e 100 g de arroz"},
    "unified_assistant": {
        "message": "messagesigiloso",
        "history": [{"role": "assistant", "content": "historysigiloso"}],
        "context": {"contextsigiloso": "contextsigiloso"},
    },
}
USER = uuid4()


def job(name: str, seconds: float) -> ClaimedJob:
    return ClaimedJob(
        lease=Lease(uuid4(), uuid4()),
        user_id=USER,
        type=name,
        input=json.dumps(INPUTS[name]),
        attempt=1,
        max_attempts=3,
        deadline_in_s=seconds,
        waited_s=0,
    )


def executor(model: TextModel, metrics: Metrics, traces: Traces | None = None) -> JobExecutor:
    tools = Tools(FunctionImages(picture()), FunctionDetector(detections(("banana", 0.9))), model)
    return JobExecutor(tools, metrics, policy=RetryPolicy(), attempt_timeout_s=30, cache_ttl_s=None, traces=traces)


async def run(
    name: str, model: TextModel, metrics: Metrics, traces: Traces | None = None, *, seconds: float = 20
) -> Outcome:
    return await executor(model, metrics, traces).execute(job(name, seconds), lambda _percent, _stage: None)


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(slots=8) as running:
        yield running


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini() as running:
        yield running


def gemini_model(server: FakeGemini, *purposes: str, traces: Traces | None = None) -> GeminiModel:
    return GeminiModel(SecretStr(server.key), "gemini-2.5-flash", server.url, frozenset(purposes), traces)


def ollama_model(server: FakeOllama, traces: Traces | None = None) -> OllamaModel:
    return OllamaModel(server.url, "llama3.2:3b", "qwen2.5vl:3b", 4096, traces=traces)


@pytest.fixture
def log() -> Any:
    root = logging.getLogger()
    level = root.level
    stream = StringIO()
    configure_logging("DEBUG", "test", stream)
    (ours,) = root.handlers
    yield stream
    root.removeHandler(ours)
    root.setLevel(level)
    structlog.reset_defaults()


FAILURES = (
    Reply(f'{{"foods": "{SECRET}"}}'),
    Reply(SECRET),
    Reply(f"{SECRET} " * 9, cut_after=3),
    Reply(f"{SECRET} " * 9, garbage_after=3),
    Reply(f"{SECRET} " * 9, error_after=3),
    Reply(status=400, body=error_body(400, "INVALID_ARGUMENT", message=f"cannot read {SECRET}")),
    Reply(status=400, body={"error": f"cannot read {SECRET}"}),
    Reply(status=500, body=f"<html>{SECRET}"),
)


@pytest.mark.parametrize("name", ANALYSES)
async def test_neither_logs_nor_metrics_nor_spans_hold_content(
    ollama: FakeOllama, gemini: FakeGemini, name: str, log: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    async with FakeCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        traces = OtelTraces("worker-1")
        models = {"ollama": ollama_model(ollama, traces), "gemini": gemini_model(gemini, traces=traces)}
        router = ModelRouter(models, {key: LaneRules(slots=4) for key in models}, metrics)
        outcomes = [await run(name, router, metrics, traces)]
        for failure in FAILURES:
            ollama.script(failure)
            gemini.script(failure)
            outcomes.append(await run(name, router, metrics, traces))
        await router.close()
        await asyncio.to_thread(traces.stop)
    assert isinstance(outcomes[0], Completed)
    assert len(collector.spans) > 2 * len(FAILURES)
    sent = json.dumps(gemini.requests + ollama.requests)
    assert SECRET in sent
    told = log.getvalue() + metrics.render().decode() + repr(collector.raw)
    assert "aiworker_job_seconds" in told
    assert (name == "unified_assistant") == ("attempt failed" in log.getvalue())
    assert SECRET not in told
    assert str(USER) not in told + sent


async def test_a_failed_attempt_says_what_it_has_cost(gemini: FakeGemini, log: StringIO) -> None:
    gemini.script(Reply("x", finish="SAFETY"))
    router = ModelRouter({"gemini": gemini_model(gemini)}, {})
    assert isinstance(await run("unified_assistant", router, Metrics()), Failed)
    await router.close()
    (line,) = (line for line in log.getvalue().splitlines() if "attempt failed" in line)
    assert json.loads(line)["cost_microdollars"] == round(12 * 0.3 + 2.5)


def only(spans: list[SeenSpan], name: str) -> SeenSpan:
    (found,) = (span for span in spans if span.name == name)
    return found


async def test_a_call_is_a_span_within_its_jobs(gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        traces = OtelTraces("worker-1")
        model = gemini_model(gemini, traces=traces)
        await run("sofia_text", model, Metrics(), traces)
        await model.close()
        await asyncio.to_thread(traces.stop)
    work, call = only(collector.spans, "job sofia_text"), only(collector.spans, "chat gemini-2.5-flash")
    assert (work.kind, call.kind) == (5, 3)
    assert (work.parent_id, call.parent_id) == (b"", work.span_id)
    assert work.attributes["aiworker.outcome"] == "completed"
    assert call.attributes.pop("aiworker.cost_usd") > 0
    timings = {key: call.attributes.pop(key) for key in ("aiworker.wait_ms", "aiworker.load_ms")}
    assert timings == {"aiworker.wait_ms": 0, "aiworker.load_ms": 0}
    assert call.attributes.pop("gen_ai.usage.output_tokens") > 0
    assert call.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-2.5-flash",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 1024,
        "gen_ai.request.temperature": 0.1,
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "gemini-2.5-flash",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 12,
        "server.address": "127.0.0.1",
        "server.port": int(gemini.url.rsplit(":", 1)[1]),
        "aiworker.purpose": "sofia_text",
        "aiworker.images": 0,
    }
    assert (collector.resource["service.name"], collector.resource["service.instance.id"]) == ("aiworker", "worker-1")


async def test_a_failed_span_has_the_code_and_no_text(ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.script(Reply(status=503, body={"error": "server busy, please try again."}), Reply(before=asyncio.Event()))
    async with FakeCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        traces = OtelTraces("worker-1")
        model = ollama_model(ollama, traces)
        assert isinstance(await run("unified_assistant", model, Metrics(), traces), Retry | Failed)
        hanging = asyncio.create_task(run("unified_assistant", model, Metrics(), traces))
        await ollama.hung()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await model.close()
        await asyncio.to_thread(traces.stop)
    assert all(span.failed and span.events == 0 for span in collector.spans)
    codes = [(span.name.split()[0], span.attributes["error.type"]) for span in collector.spans]
    limited, cancelled = "provider_rate_limited", "cancelled"
    assert codes == [("chat", limited), ("job", limited), ("chat", cancelled), ("job", cancelled)]


def test_traces_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(traces_of(load_settings())) is Traces
    on = traces_of(load_settings(traces="otlp"))
    assert isinstance(on, OtelTraces)
    on.stop()
    monkeypatch.setitem(sys.modules, "aiworker.telemetry.otel", None)
    with pytest.raises(ConfigurationError, match=r"aiworker\[otel\]"):
        traces_of(load_settings(traces="otlp"))


def test_without_traces_opentelemetry_is_not_imported() -> None:
    code = "import sys, aiworker.cli.wiring; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def result_of(outcome: Outcome) -> Any:
    assert isinstance(outcome, Completed)
    assert isinstance(outcome.result, bytes)
    return json.loads(outcome.result)


async def test_what_is_kept_here_never_reaches_gemini(ollama: FakeOllama, gemini: FakeGemini) -> None:
    metrics = Metrics()
    models = {"ollama": ollama_model(ollama), "gemini": gemini_model(gemini)}
    router = ModelRouter(models, {"ollama": LaneRules(local=True), "gemini": LaneRules()}, metrics)
    model = LocalOnlyRule(router, frozenset({"sofia_text"}))
    kept = await run("sofia_text", model, metrics)
    assert result_of(kept)["provider"]["name"] == "ollama"
    assert gemini.requests == []
    await ollama.stop()
    degraded = await run("sofia_text", model, metrics, seconds=1)
    assert result_of(degraded)["degraded"]
    assert result_of(degraded)["providers_skipped"]["gemini"] == "local_only"
    assert gemini.requests == []
    free = await run("unified_assistant", model, metrics)
    assert isinstance(free, Completed)
    assert len(gemini.requests) == 1
    await router.close()


async def test_the_page_says_how_to_erase_all_of_a_users_words(database_url: str, gemini: FakeGemini) -> None:
    model = gemini_model(gemini)
    outcome = await run("sofia_text", model, Metrics())
    await model.close()
    assert isinstance(outcome, Completed)
    assert SECRET in json.dumps(result_of(outcome))
    rules = QueueRules((ANALYSES["sofia_text"].job_type,))
    found = re.search(r"## Erasing.*?```sql\n(.*?)```", PAGE, re.DOTALL)
    assert found
    async with PostgresQueue(database_url, rules) as queue:
        await queue.configure(rules)
        order = NewJob(user_id=USER, type="sofia_text", input=INPUTS["sofia_text"])
        await queue.enqueue(order)
        (claimed,) = await queue.claim("w", 1, 6.0, ["sofia_text"])
        await queue.finalise([(claimed.lease, Completed(outcome.result, cache_ttl_s=3600))])
        assert (await queue.enqueue(order)).cached_result
        await execute(database_url, found.group(1).replace(":'user'", f"'{USER}'"))
        assert not (await queue.enqueue(order)).cached_result


def documented(name: str) -> dict[str, set[str]]:
    """The fields named in the page's row of an analysis, by column."""
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, sent, kept, _ = row.split("|")
    return {"sent": set(re.findall(r"`(\w+)`", sent)), "kept": set(re.findall(r"`(\w+)`", kept))}


@pytest.mark.parametrize(
    ("name", "left_out"),
    # Of the two names of a meal only one is ever used.
    [*[(name, "mealType") for name in ANALYSES], ("sofia_image", "userContext")],
)
async def test_the_page_lists_what_is_sent_to_gemini(
    gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch, name: str, left_out: str
) -> None:
    given = {key: value for key, value in INPUTS[name].items() if key != left_out}
    monkeypatch.setitem(INPUTS, name, given)
    model = gemini_model(gemini)
    await run(name, model, Metrics())
    await model.close()
    (request,) = gemini.requests
    marked = set(re.findall(r"(\w+?)sigiloso", json.dumps(INPUTS[name])))
    sent = set(re.findall(r"(\w+?)sigiloso", json.dumps(request).replace("\\n", " ")))
    page = documented(name)
    assert sent == page["sent"] & marked
    assert marked - sent == page["kept"] & marked
    assert ("inlineData" in json.dumps(request)) == ("photo" in page["sent"])


@pytest.mark.parametrize("name", ANALYSES)
def test_every_field_that_a_user_can_write_into_has_a_mark(name: str) -> None:
    schema = ANALYSES[name].input_model.model_json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    fields = {field: about for model in models for field, about in model.get("properties", {}).items()}
    # A list that the schema closes holds none of their words, nor does the name of a detector; a turn's `content` is
    # marked as history.
    free = {
        field for field, about in fields.items() if "string" in json.dumps(about) and "enum" not in json.dumps(about)
    }
    marked = set(re.findall(r"(\w+?)sigiloso", json.dumps(INPUTS[name])))
    assert free - {"detector", "content"} <= marked


async def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(otel, "_LAST_SEND_S", 0.2)
    traces = OtelTraces("worker-1")
    with traces.span("job", "consumer", {}):
        pass
    async with asyncio.timeout(2):
        await asyncio.to_thread(traces.stop)
