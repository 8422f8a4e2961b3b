"""Logs that never hold content, metrics that parse."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from io import StringIO
from uuid import UUID

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from aiworker.domain.errors import ProviderMisconfigured
from aiworker.telemetry.logs import configure_logging, current_job, get_logger
from aiworker.telemetry.metrics import Metrics
from aiworker.telemetry.tally import Tally


@pytest.fixture
def log() -> Iterator[StringIO]:
    root = logging.getLogger()
    level = root.level
    stream = StringIO()
    configure_logging("INFO", "test", stream)
    (ours,) = root.handlers
    yield stream
    root.removeHandler(ours)
    root.setLevel(level)
    structlog.reset_defaults()


def lines(log: StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_one_json_line_an_event_with_the_job_at_hand(log: StringIO) -> None:
    def work() -> None:
        current_job.set(UUID(int=1))
        get_logger("here").info("stage ended", type="sofia_text", took_s=1.23456789)

    copy_context().run(work)
    (line,) = lines(log)
    assert line["event"] == "stage ended"
    assert line["job_id"] == str(UUID(int=1))
    assert line["took_s"] == 1.2346
    assert line["component"] == "test"
    assert line["logger"] == "here"
    assert line["level"] == "info"


def test_no_bytes_no_long_text_no_exception_text(log: StringIO) -> None:
    with pytest.raises(ValueError) as caught:
        int("o paciente tem diabetes")
    get_logger("here").error("broke", image=b"\xff\xd8" * 10, prompt="x" * 5000, exc_info=caught.value)
    captured = log.getvalue()
    assert "diabetes" not in captured
    line = json.loads(captured)
    assert line["image"] == "<20 bytes>"
    assert len(line["prompt"]) < 400
    assert line["error_type"] == "ValueError"
    assert any("test_telemetry" in frame for frame in line["frames"])


def test_our_errors_are_logged_by_code_and_note(log: StringIO) -> None:
    get_logger("here").info("failed", exc_info=ProviderMisconfigured("model not pulled", provider="ollama"))
    (line,) = lines(log)
    assert line["code"] == "provider_misconfigured"
    assert line["note"] == "model not pulled"


def test_the_standard_librarys_loggers_speak_json_too(log: StringIO) -> None:
    logging.getLogger("asyncio").warning("slow %s", "callback")
    (line,) = lines(log)
    assert line["event"] == "slow callback"


def test_asyncio_quotes_neither_exceptions_nor_arguments(log: StringIO) -> None:
    async def fail() -> None:
        raise ValueError("o paciente tem diabetes")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()
        asyncio.get_running_loop().call_soon(int, "diabetes")
        await asyncio.sleep(0)

    asyncio.run(main())
    assert "diabetes" not in log.getvalue()
    task_line, callback_line = lines(log)
    assert (task_line["event"], task_line["error_type"]) == ("Task exception was never retrieved", "ValueError")
    assert callback_line["event"] == "Exception in callback int"


def test_metrics_are_valid_openmetrics() -> None:
    metrics = Metrics()
    metrics.jobs.labels("sofia_text", "completed").inc()
    metrics.pickup_seconds.observe(0.004, "sofia_text")
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert families["aiworker_jobs"].samples[0].value == 1
    assert "aiworker_pickup_seconds" in families


@given(st.lists(st.floats(0, 20), max_size=30))
def test_timings_say_what_a_histogram_of_the_library_says(seconds: list[float]) -> None:
    ours, theirs, bounds = CollectorRegistry(), CollectorRegistry(), (0.1, 1.0, 10.0)
    timings = Tally("t", "help", ["type"], bounds=bounds, registry=ours)
    histogram = Histogram("t", "help", ["type"], buckets=bounds, registry=theirs)
    for each in seconds:
        timings.observe(each, "x")
        histogram.labels("x").observe(each)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("le", "")): pytest.approx(sample.value)
            for family in registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert samples(ours) == samples(theirs)


def test_two_timings_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    Tally("t", "help", [], bounds=(1.0,), registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Tally("t", "help", [], bounds=(1.0,), registry=registry)


def test_labels_have_few_values_by_what_they_are() -> None:
    """A new label needs a thought: how many values can it have in a year?"""
    few = {
        "cause",
        "check",
        "code",
        "direction",
        "how",
        "outcome",
        "pass",
        "place",
        "provider",
        "reason",
        "result",
        "route",
        "stage",
        "state",
        "status",
        "type",
    }
    names: set[str] = set()
    for collector in {*Metrics().registry._collector_to_names}:
        names |= set(getattr(collector, "_labelnames", None) or getattr(collector, "_labels", None) or ())
    assert {"type", "provider", "route"} <= names
    assert names - few == set()
