"""The OpenAPI document is valid, complete, and what the gateway really answers."""

from __future__ import annotations

import re
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fakes.memory_queue import MemoryQueue
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from aiworker.analyses.registry import ANALYSES
from aiworker.analyses.unified_assistant import UnifiedAssistantResult
from aiworker.domain.outcome import Completed, Failed
from aiworker.gateway.app import Gateway, build_gateway
from aiworker.gateway.auth import Authenticator
from aiworker.gateway.openapi import document
from aiworker.gateway.ops import Ops, add_ops
from aiworker.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
KEY = {"Authorization": "Bearer key"}
USER = str(UUID(int=5))
TYPES = list(ANALYSES)
ANSWER = UnifiedAssistantResult(
    message="Oi!",
    personality="sofia",
    personality_name="Sofia",
    data_completeness=0,
    total_data_points=0,
    api_used="ollama/llama3.2:3b",
).model_dump(mode="json", by_alias=True)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
async def api(queue: MemoryQueue) -> AsyncIterator[TestClient[Any, Any]]:
    metrics = Metrics()
    gateway = Gateway(queue, Authenticator(jwt_secret=None, service_key="key"), metrics, enable_cache=True)
    app = build_gateway(gateway, metrics, max_body_bytes=10_000)

    async def checks() -> dict[str, bool]:
        return {"database": True}

    add_ops(app, Ops(checks), metrics)
    async with TestClient(TestServer(app)) as client:
        yield client


def fits(status: int, reply: Any, path: str, method: str = "post") -> None:
    """Raises when the document does not allow this reply."""
    api = document()
    content = api["paths"][path][method]["responses"][str(status)]["content"]
    schema = content["application/json"]["schema"] | {"components": api["components"]}
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(reply)


async def test_the_document_is_valid_and_served(api: TestClient[Any, Any]) -> None:
    async with api.get("/openapi.json") as response:
        served = await response.json()
    assert served == document()
    assert list(OpenAPIV31SpecValidator(served).iter_errors()) == []


async def test_every_route_is_described_and_nothing_else(api: TestClient[Any, Any]) -> None:
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in api.app.router.routes()
        if route.resource and route.method != "HEAD"
    }
    described = {(method, path) for path, methods in document()["paths"].items() for method in methods}
    bare = {(method, path.removeprefix("/functions/v1")) for method, path in described}
    assert routes == described | bare


async def test_real_replies_fit(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    async def post(path: str, body: Any, **headers: str) -> tuple[int, Any]:
        async with api.post(path, json=body, headers=KEY | headers) as response:
            reply = await response.json()
        fits(response.status, reply, path)
        return response.status, reply

    enqueue, cancel = "/functions/v1/enqueue-analysis", "/functions/v1/cancel-analysis"
    look = "/functions/v1/get-analysis-status"
    order = {"type": "sofia_text", "input": {"text": "um ovo"}, "userId": USER}
    statuses = []
    for outcome in (Completed(ANSWER), Failed("não deu", "no_provider")):
        status, accepted = await post(enqueue, order | {"useCache": False})
        statuses.append(status)
        await post(look, {"jobId": accepted["jobId"]})
        (job,) = await queue.claim("w", 1, 10, TYPES)
        await post(look, {"jobId": accepted["jobId"]})
        await queue.finalise([(job.lease, outcome)])
        await post(look, {"jobId": accepted["jobId"]})
        statuses.append((await post(cancel, {"jobId": accepted["jobId"]}))[0])
    _, waiting = await post(enqueue, order | {"useCache": False})
    statuses.append((await post(cancel, {"jobId": waiting["jobId"]}))[0])
    for _ in range(2):
        statuses.append((await post(enqueue, order | {"useCache": False}, **{"Idempotency-Key": "k"}))[0])
        for job in await queue.claim("w", 1, 10, TYPES):
            await queue.finalise([(job.lease, Completed(ANSWER))])
    for path in (enqueue, look, cancel):
        statuses.append((await post(path, {"jobId": "a" * 20_000}))[0])
    statuses.append((await post(enqueue, {"type": "nothing", "input": {}}))[0])
    statuses.append((await post(enqueue, order, Authorization="Bearer other"))[0])
    statuses.append((await post(look, {"jobId": str(uuid4())}))[0])
    assert statuses == [202, 409, 202, 409, 200, 202, 202, 413, 413, 413, 400, 401, 404]


def test_a_request_that_the_document_forbids_is_refused_by_it() -> None:
    schema = document()["components"]["schemas"]["EnqueueRequest"] | {"components": document()["components"]}
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"type": "sofia_text", "input": {"text": "um ovo"}})
    assert not validator.is_valid({"type": "sofia_text"})
    assert not validator.is_valid({"type": "sofia_text", "input": {"text": "um ovo"}, "priority": 11})


def test_the_reference_is_what_the_document_says() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "build_api_reference.py"))["page"]()
    assert (ROOT / "docs" / "api.md").read_text() == page
    assert set(re.findall(r"^### (\w+Input)$", page, re.MULTILINE)) >= {"SofiaImageInput", "UnifiedAssistantInput"}
