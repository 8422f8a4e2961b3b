"""Spans that go to an OpenTelemetry collector. The only module that imports opentelemetry, and only when traces are on.

Where they go is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_RESOURCE_ATTRIBUTES, ...).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import SpanKind, StatusCode

from aiworker.domain.errors import WorkerError
from aiworker.telemetry.traces import Attributes, Kind, Span, Traces

_LAST_SEND_S = 3.0
_KINDS: dict[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}


class OtelTraces(Traces):
    """Sends in the background, by OTLP over HTTP."""

    kept = True

    def __init__(self, instance: str) -> None:
        ours = Resource({"service.name": "aiworker", "service.instance.id": instance})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("aiworker")

    @contextmanager
    def span(self, name: str, kind: Kind, attributes: Attributes) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, kind=_KINDS[kind], attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as sdk_span:
            span = _OtelSpan(sdk_span)
            try:
                yield span
            except BaseException as error:
                span.fail(_code_of(error))
                raise

    def stop(self) -> None:
        # By itself it tries a collector that is away for up to half a minute, which a worker that stops has not got.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_LAST_SEND_S)


class _OtelSpan(Span):
    def __init__(self, span: SdkSpan) -> None:
        self._span = span

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, code: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(StatusCode.ERROR)


def _code_of(error: BaseException) -> str:
    if isinstance(error, WorkerError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__
