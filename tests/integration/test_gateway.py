"""The HTTP API on a real socket, over the in-memory queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from aiohttp import StreamReader
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from fakes.memory_queue import MemoryQueue

from aiworker.domain.errors import DatabaseUnavailable, InputRejected
from aiworker.domain.job import Enqueued, NewJob
from aiworker.domain.outcome import Completed, Failed
from aiworker.gateway.app import Gateway, build_gateway
from aiworker.gateway.auth import Authenticator, user_token
from aiworker.gateway.ops import Ops, add_ops
from aiworker.telemetry.metrics import Metrics

SECRET = "a-secret-of-at-least-thirty-two-bytes!"
KEY = "service-key"
USER = UUID("11111111-1111-4111-8111-111111111111")
OTHER = UUID("33333333-3333-4333-8333-333333333333")
TEXT = {"type": "sofia_text", "input": {"text": "um ovo"}}


class BrokenQueue(MemoryQueue):
    async def enqueue(self, job: NewJob) -> Enqueued:
        raise DatabaseUnavailable("refused")


class BuggyQueue(MemoryQueue):
    async def enqueue(self, job: NewJob) -> Enqueued:
        raise KeyError("the text of a bug")


def as_user(user: UUID = USER) -> dict[str, str]:
    return {"Authorization": f"Bearer {user_token(SECRET, user, int(time.time()) + 60)}"}


def as_service() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
async def api(queue: MemoryQueue) -> AsyncIterator[TestClient[Any, Any]]:
    async with client_of(queue) as client:
        yield client


def client_of(queue: MemoryQueue) -> TestClient[Any, Any]:
    auth = Authenticator(jwt_secret=SECRET, service_key=KEY)
    metrics = Metrics()
    gateway = Gateway(queue, auth, metrics, enable_cache=True)
    app = build_gateway(gateway, metrics, max_body_bytes=10_000)

    async def checks() -> dict[str, bool]:
        return {"database": True}

    add_ops(app, Ops(checks), metrics)
    return TestClient(TestServer(app))


async def enqueue(api: TestClient[Any, Any], body: Any = TEXT, **headers: str) -> tuple[int, dict[str, Any]]:
    async with api.post("/functions/v1/enqueue-analysis", json=body, headers=as_user() | headers) as response:
        return response.status, await response.json()


async def finish(queue: MemoryQueue, outcome: Completed | Failed) -> None:
    (job,) = await queue.claim("w", 1, 10, ["sofia_text", "sofia_image", "unified_assistant"])
    await queue.finalise([(job.lease, outcome)])


async def test_enqueue_answers_202_and_the_way_to_the_result(api: TestClient[Any, Any]) -> None:
    status, reply = await enqueue(api)
    assert status == 202
    assert reply["status"] == "pending"
    assert reply["estimatedTime"] == 5
    async with api.get(reply["pollUrl"], headers=as_user()) as response:
        job = await response.json()
    assert job["jobId"] == reply["jobId"]
    assert job["type"] == "sofia_text"
    assert job["priority"] == 5


async def test_paths_work_without_the_prefix(api: TestClient[Any, Any]) -> None:
    async with api.post("/enqueue-analysis", json=TEXT, headers=as_user()) as response:
        assert response.status == 202


async def test_the_user_is_the_tokens_whatever_the_body_says(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    _, reply = await enqueue(api, TEXT | {"userId": str(OTHER)})
    assert (await queue.status(UUID(reply["jobId"]), None)).user_id == USER


@pytest.mark.parametrize(
    "body", [TEXT | {"userId": str(OTHER)}, {**TEXT, "input": {"text": "x", "userId": str(OTHER)}}]
)
async def test_the_service_names_the_user(api: TestClient[Any, Any], queue: MemoryQueue, body: dict[str, Any]) -> None:
    _, reply = await enqueue(api, body, **as_service())
    assert (await queue.status(UUID(reply["jobId"]), None)).user_id == OTHER


async def test_an_old_type_name_becomes_the_new_one(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    _, reply = await enqueue(api, {"type": "food_image", "input": {"imageUrl": "https://example.org/a.jpg"}})
    assert (await queue.status(UUID(reply["jobId"]), None)).type == "sofia_image"


async def test_a_second_identical_request_gets_the_cached_result(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    await enqueue(api)
    await finish(queue, Completed({"ok": 1}, cache_ttl_s=60))
    assert await enqueue(api) == (
        200,
        {"jobId": None, "status": "completed", "result": {"ok": 1}, "cached": True},
    )
    assert (await enqueue(api, TEXT | {"useCache": False}))[0] == 202


async def test_chat_is_never_cached(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    chat = {"type": "unified_assistant", "input": {"message": "oi"}}
    await enqueue(api, chat)
    await finish(queue, Completed({"ok": 1}, cache_ttl_s=60))
    assert (await enqueue(api, chat))[0] == 202


async def test_idempotency_key_by_header_or_body(api: TestClient[Any, Any]) -> None:
    _, first = await enqueue(api, TEXT, **{"Idempotency-Key": "k"})
    _, second = await enqueue(api, TEXT | {"idempotencyKey": "k"})
    assert first["jobId"] == second["jobId"]
    status, reply = await enqueue(api, {**TEXT, "input": {"text": "outro"}}, **{"Idempotency-Key": "k"})
    assert (status, reply["code"]) == (409, "idempotency_conflict")


async def test_a_key_that_the_cache_answered_is_answered_so_again(
    api: TestClient[Any, Any], queue: MemoryQueue
) -> None:
    await enqueue(api)
    await finish(queue, Completed({"ok": 1}, cache_ttl_s=60))
    replies = [await enqueue(api, TEXT, **{"Idempotency-Key": "k"}) for _ in range(2)]
    assert replies == [(200, {"jobId": None, "status": "completed", "result": {"ok": 1}, "cached": True})] * 2


async def test_the_eleventh_active_job_is_refused(api: TestClient[Any, Any]) -> None:
    for number in range(10):
        assert (await enqueue(api, {**TEXT, "input": {"text": f"ovo {number}"}}))[0] == 202
    status, reply = await enqueue(api)
    assert (status, reply["code"]) == (429, "too_many_active_jobs")


async def test_the_service_may_leave_out_the_limit_and_a_user_may_not(api: TestClient[Any, Any]) -> None:
    asked = TEXT | {"unlimited": True, "userId": str(USER)}
    status, reply = await enqueue(api, asked)
    assert (status, reply["code"]) == (403, "not_allowed")
    replies = [await enqueue(api, {**asked, "input": {"text": str(n)}}, **as_service()) for n in range(11)]
    assert {status for status, _ in replies} == {202}


async def test_a_delayed_job_is_not_handed_out_yet(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    status, reply = await enqueue(api, TEXT | {"delaySeconds": 3600})
    assert (status, reply["status"]) == (202, "pending")
    assert not await queue.claim("w", 1, 10, ["sofia_text"])
    assert (await queue.depth()).delayed == 1


async def test_completed_and_failed_jobs(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    _, first = await enqueue(api)
    await finish(queue, Completed({"answer": 1}))
    async with api.post("/get-analysis-status", json={"jobId": first["jobId"]}, headers=as_user()) as response:
        done = await response.json()
    assert (done["status"], done["result"], done["progress"]) == ("completed", {"answer": 1}, 100)
    assert isinstance(done["processingTime"], int)
    _, second = await enqueue(api, TEXT | {"useCache": False})
    await finish(queue, Failed("A imagem está corrompida.", "image_unreadable"))
    query = {"jobId": second["jobId"]}
    async with api.get("/get-analysis-status", params=query, headers=as_user()) as response:
        failed = await response.json()
    assert (failed["status"], failed["code"]) == ("failed", "image_unreadable")
    assert failed["error"] == "A imagem está corrompida."
    english = as_user() | {"Accept-Language": "en-GB,en;q=0.9"}
    async with api.get("/get-analysis-status", params=query, headers=english) as response:
        assert (await response.json())["error"].startswith("The image is damaged")


async def test_only_the_owner_and_the_service_see_or_cancel_a_job(api: TestClient[Any, Any]) -> None:
    _, reply = await enqueue(api)
    for path in ("/get-analysis-status", "/cancel-analysis"):
        async with api.post(path, json={"jobId": reply["jobId"]}, headers=as_user(OTHER)) as response:
            assert response.status == 404
            assert (await response.json())["code"] == "job_not_found"
    async with api.post("/cancel-analysis", json={"jobId": reply["jobId"]}, headers=as_service()) as response:
        assert (await response.json())["status"] == "cancelled"


async def test_cancel_pending_running_and_finished(api: TestClient[Any, Any], queue: MemoryQueue) -> None:
    async def cancel(job_id: str) -> tuple[int, dict[str, Any]]:
        async with api.post("/cancel-analysis", json={"jobId": job_id}, headers=as_user()) as response:
            return response.status, await response.json()

    _, pending = await enqueue(api)
    status, reply = await cancel(pending["jobId"])
    assert (status, reply["status"]) == (200, "cancelled")
    _, running = await enqueue(api)
    await queue.claim("w", 1, 10, ["sofia_text"])
    status, reply = await cancel(running["jobId"])
    assert (status, reply["status"]) == (200, "cancelled")
    _, finished = await enqueue(api, TEXT | {"useCache": False})
    await finish(queue, Completed({}))
    status, reply = await cancel(finished["jobId"])
    assert (status, reply["code"]) == (409, "job_already_finished")


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "invalid_input", "type"),
        ({"type": "sofia_text"}, "invalid_input", "input"),
        ({"type": "sofia_text", "input": []}, "invalid_input", "input"),
        ({"type": "sofia_text", "input": {}}, "invalid_input", "input.text"),
        ({"type": "sofia_text", "input": {"text": 7}}, "invalid_input", "input.text"),
        ({"type": "sofia_text", "input": {"text": "a\x00b"}}, "invalid_input", "U+0000"),
        (TEXT | {"priority": 11}, "invalid_input", "priority"),
        (TEXT | {"priority": "high"}, "invalid_input", "priority"),
        ({"type": "body_composition", "input": {}}, "unknown_job_type", "sofia_image"),
    ],
)
async def test_a_bad_request_names_what_is_wrong(
    api: TestClient[Any, Any], body: dict[str, Any], code: str, field: str
) -> None:
    status, reply = await enqueue(api, body)
    assert status == 400
    assert reply["code"] == code
    assert field in str(reply["details"])
    assert reply["error"].endswith(".")


async def test_the_service_key_without_a_user_is_a_bad_request(api: TestClient[Any, Any]) -> None:
    status, reply = await enqueue(api, TEXT, **as_service())
    assert (status, reply["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 2000])
async def test_a_body_that_is_no_json_object(api: TestClient[Any, Any], raw: bytes) -> None:
    async with api.post("/enqueue-analysis", data=raw, headers=as_user()) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid_json"


@pytest.mark.parametrize("inner", [b"1", b'"\\u0000"'])
async def test_a_body_that_is_nested_deeper_than_can_be_kept(api: TestClient[Any, Any], inner: bytes) -> None:
    raw = b'{"type": "sofia_text", "input": {"text": "a", "x": ' + b"[" * 1000 + inner + b"]" * 1000 + b"}}"
    async with api.post("/enqueue-analysis", data=raw, headers=as_user()) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_json")


async def test_a_body_that_is_not_compressed_as_its_header_says(api: TestClient[Any, Any]) -> None:
    headers = as_user() | {"Content-Encoding": "gzip"}
    async with api.post("/enqueue-analysis", data=b"plain", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_json")


async def test_an_upload_that_breaks_off_is_no_bug(queue: MemoryQueue) -> None:
    # aiohttp's test server cancels the handler then, the real one lets its reading fail.
    upload = StreamReader(Mock(_reading_paused=False), 1000, loop=asyncio.get_running_loop())
    upload.set_exception(ConnectionResetError("gone"))
    gateway = Gateway(queue, Authenticator(jwt_secret=SECRET, service_key=KEY), Metrics(), enable_cache=True)
    with pytest.raises(InputRejected):
        await gateway.enqueue(make_mocked_request("POST", "/", headers=as_user(), payload=upload))


async def test_a_body_over_the_limit(api: TestClient[Any, Any]) -> None:
    status, reply = await enqueue(api, {"type": "sofia_image", "input": {"imageUrl": "data:" + "a" * 20_000}})
    assert (status, reply["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("job_id", ["", "7", "not-a-uuid"])
async def test_a_job_id_that_is_no_uuid(api: TestClient[Any, Any], job_id: str) -> None:
    async with api.get("/get-analysis-status", params={"jobId": job_id}, headers=as_user()) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid_job_id"
    async with api.post("/cancel-analysis", json={"jobId": job_id}, headers=as_user()) as response:
        assert (await response.json())["code"] == "invalid_job_id"


async def test_an_unknown_job(api: TestClient[Any, Any]) -> None:
    async with api.get("/get-analysis-status", params={"jobId": str(uuid4())}, headers=as_user()) as response:
        assert response.status == 404


@pytest.mark.parametrize("path", ["/enqueue-analysis", "/get-analysis-status", "/cancel-analysis"])
async def test_nobody_gets_in_without_a_token(api: TestClient[Any, Any], path: str) -> None:
    async with api.post(path, json=TEXT) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json())["code"] == "not_authenticated"


async def test_unknown_paths_and_methods_answer_in_the_same_shape(api: TestClient[Any, Any]) -> None:
    async with api.get("/nowhere") as response:
        assert (response.status, (await response.json())["code"]) == (404, "not_found")
    async with api.delete("/enqueue-analysis") as response:
        assert (response.status, (await response.json())["code"]) == (405, "method_not_allowed")
        assert response.headers["Allow"] == "POST"


async def test_errors_are_in_portuguese_or_english_as_the_browser_asks(api: TestClient[Any, Any]) -> None:
    async with api.get("/nowhere", headers={"Accept-Language": "pt-BR,pt;q=0.9,en;q=0.8"}) as response:
        assert (await response.json())["error"] == "Este endereço não existe."
    async with api.get("/nowhere", headers={"Accept-Language": "en-US"}) as response:
        assert (await response.json())["error"] == "There is no such address."


async def test_a_database_that_is_away_sends_the_client_its_synchronous_way() -> None:
    api = client_of(BrokenQueue())
    async with api, api.post("/enqueue-analysis", json=TEXT, headers=as_user()) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        reply = await response.json()
    assert (reply["code"], reply["fallback"]) == ("database_unavailable", True)


async def test_a_bug_shows_no_text() -> None:
    api = client_of(BuggyQueue())
    async with api, api.post("/enqueue-analysis", json=TEXT, headers=as_user()) as response:
        assert response.status == 500
        body = await response.text()
    assert "internal_error" in body
    assert "bug" not in body


async def test_browsers_may_call_from_another_origin(api: TestClient[Any, Any]) -> None:
    async with api.options("/functions/v1/enqueue-analysis") as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert "authorization" in response.headers["Access-Control-Allow-Headers"]


async def test_health_and_metrics(api: TestClient[Any, Any]) -> None:
    await enqueue(api)
    for path in ("/health", "/ready", "/live", "/health/detailed"):
        async with api.get(path) as response:
            assert response.status == 200
    async with api.get("/metrics") as response:
        text = await response.text()
    assert 'route="/enqueue-analysis",status="202"' in text
    assert text.endswith("# EOF\n")
