"""Logs that never hold content, metrics that parse."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from aiworker.domain.errors import ProviderMisconfigured
from aiworker.telemetry.logs import configure_logging, get_logger
from aiworker.telemetry.metrics import Metrics


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


def test_one_json_line_an_event_with_the_bound_job(log: StringIO) -> None:
    with structlog.contextvars.bound_contextvars(job_id="j-1"):
        get_logger("here").info("job started", type="sofia_text")
    (line,) = lines(log)
    assert line["event"] == "job started"
    assert line["job_id"] == "j-1"
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


def test_metrics_are_valid_openmetrics() -> None:
    metrics = Metrics()
    metrics.jobs.labels("sofia_text", "completed").inc()
    metrics.pickup_seconds.labels("sofia_text").observe(0.004)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert families["aiworker_jobs"].samples[0].value == 1
    assert "aiworker_pickup_seconds" in families
