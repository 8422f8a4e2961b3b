"""A fake OpenTelemetry collector: OTLP over HTTP, as protobuf, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class SeenSpan:
    name: str
    span_id: bytes
    parent_id: bytes
    kind: int
    attributes: dict[str, Any]
    failed: bool
    events: int


class FakeCollector:
    """`spans` in the order in which they came; `raw` is every byte that did; `resource` the last sender's."""

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.raw = b""
        self.resource: dict[str, Any] = {}
        self.url = ""
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def until(self, wanted: Callable[[SeenSpan], bool]) -> SeenSpan:
        """The first span that is `wanted`, when it has come."""

        def found() -> SeenSpan | None:
            return next(filter(wanted, self.spans), None)

        async with asyncio.timeout(30), self._came:
            span = await self._came.wait_for(found)
        assert span is not None
        return span

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = _attributes(resource.resource.attributes)
            self.spans += [_seen(span) for scope in resource.scope_spans for span in scope.spans]
        async with self._came:
            self._came.notify_all()
        return web.Response(content_type="application/x-protobuf")


def _seen(span: Any) -> SeenSpan:
    return SeenSpan(
        span.name,
        span.span_id,
        span.parent_span_id,
        span.kind,
        _attributes(span.attributes),
        span.status.code == 2,
        len(span.events),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
