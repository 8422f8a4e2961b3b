"""GeminiModel against the fake Gemini on a real socket."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any, NamedTuple

import pytest
from fakes.gemini_server import FakeGemini, bad_key_details, error_body, quota_details
from fakes.llm_server import Reply
from fakes.pictures import picture
from PIL import Image
from pydantic import BaseModel, SecretStr

from aiworker.domain.completion import PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerBlocked,
    AnswerEmpty,
    AnswerInvalid,
    AnswerTruncated,
    KeyRejected,
    LocalOnly,
    MediaTypeUnsupported,
    ModelNotFound,
    PromptBlocked,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm.bill import Bill
from aiworker.llm.gemini import GeminiModel

KEY = "AIza-right-key"


class Answer(BaseModel):
    name: str
    grams: int


def ask(**more: Any) -> PromptRequest:
    return PromptRequest("test", "Você é a Sofia.", "Quanto pesa?", ("gemini",), **more)


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


@pytest.fixture
async def server() -> AsyncIterator[FakeGemini]:
    async with FakeGemini(key=KEY) as running:
        yield running


@pytest.fixture
async def model(server: FakeGemini) -> AsyncIterator[GeminiModel]:
    running = GeminiModel(SecretStr(KEY), "gemini-2.5-flash", server.url)
    yield running
    await running.close()


async def test_text_comes_with_tokens_times_and_cost(model: GeminiModel) -> None:
    completion = await model.complete(ask(), soon())
    assert (completion.text, completion.finish, completion.provider) == ("Oi! Tudo bem?", "stop", "gemini")
    assert (completion.prompt_tokens, completion.answer_tokens) == (12, 2)
    assert completion.cost_usd == pytest.approx((12 * 0.3 + 2 * 2.5) / 1e6)
    assert completion.prompt_ms > 0


async def test_schema_bound_answer_with_image(server: FakeGemini, model: GeminiModel) -> None:
    completion = await model.complete(ask(answer=Answer, images=(picture(3000, 2000, "png"),)), soon())
    assert isinstance(completion.value, Answer)
    sent = server.requests[0]["contents"][0]["parts"][0]["inlineData"]
    assert sent["mimeType"] == "image/jpeg"
    with Image.open(BytesIO(base64.b64decode(sent["data"]))) as seen:
        assert seen.format == "JPEG"
        assert 2_300_000 < seen.width * seen.height <= 4 * 768 * 768


async def test_what_is_no_image_is_not_sent(server: FakeGemini, model: GeminiModel) -> None:
    with pytest.raises(MediaTypeUnsupported):
        await model.complete(ask(images=(b"%PDF",)), soon())
    assert server.requests == []


async def test_wrong_answer_is_repaired_once(server: FakeGemini, model: GeminiModel) -> None:
    server.script(Reply('{"name": "a"}'), Reply('```json\n{"name": "a", "grams": 3}\n```'))
    assert (await model.complete(ask(answer=Answer), soon())).value == Answer(name="a", grams=3)
    assert [turn["role"] for turn in server.requests[1]["contents"]] == ["user", "model", "user"]


def quota(quota_id: str, delay: str | None) -> dict[str, Any]:
    return error_body(429, "RESOURCE_EXHAUSTED", quota_details(quota_id, delay))


PER_MINUTE, PER_DAY = "GenerateRequestsPerMinutePerProjectPerModel", "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
FAILURES: dict[str, tuple[Reply, type[ProviderError]]] = {
    "400": (Reply(status=400, body=error_body(400, "INVALID_ARGUMENT")), RequestRejected),
    "400 bad key": (Reply(status=400, body=error_body(400, "INVALID_ARGUMENT", bad_key_details())), KeyRejected),
    "400 billing": (Reply(status=400, body=error_body(400, "FAILED_PRECONDITION")), ProviderMisconfigured),
    "403": (Reply(status=403, body=error_body(403, "PERMISSION_DENIED")), KeyRejected),
    "404": (Reply(status=404, body=error_body(404, "NOT_FOUND")), ModelNotFound),
    "429": (Reply(status=429, body=error_body(429, "RESOURCE_EXHAUSTED")), ProviderRateLimited),
    "429 minute": (Reply(status=429, body=quota(PER_MINUTE, "53s")), ProviderRateLimited),
    "429 minute, no RetryInfo": (Reply(status=429, body=quota(PER_MINUTE, None)), ProviderRateLimited),
    "429 day": (Reply(status=429, body=quota(PER_DAY, "9.5s")), ProviderRateLimited),
    "429 day, no RetryInfo": (Reply(status=429, body=quota(PER_DAY, None)), ProviderRateLimited),
    "429 in a list": (Reply(status=429, body=[quota(PER_DAY, "9.5s")]), ProviderRateLimited),
    "429 header": (Reply(status=429, body={}, headers={"Retry-After": "7"}), ProviderRateLimited),
    "500": (Reply(status=500, body=error_body(500, "INTERNAL")), ProviderUnavailable),
    "503": (Reply(status=503, body=error_body(503, "UNAVAILABLE")), ProviderUnavailable),
    "503 in a list": (Reply(status=503, body=[error_body(503, "UNAVAILABLE")]), ProviderUnavailable),
    "504": (Reply(status=504, body=error_body(504, "DEADLINE_EXCEEDED")), ProviderTimeout),
    "blocked prompt": (Reply(body={"promptFeedback": {"blockReason": "SAFETY"}}), PromptBlocked),
    "blocked answer": (Reply("x", finish="SAFETY"), AnswerBlocked),
    "recitation": (Reply("x", finish="RECITATION"), AnswerBlocked),
    "bad function call": (Reply("x", finish="MALFORMED_FUNCTION_CALL"), AnswerInvalid),
    "empty candidates": (Reply(body={"candidates": [], "usageMetadata": {"promptTokenCount": 1}}), AnswerEmpty),
    "no content": (Reply(body={"candidates": [{"finishReason": "STOP"}]}), AnswerEmpty),
    "malformed JSON": (Reply("a" * 99, garbage_after=1), StreamBroken),
    "error in the stream": (Reply("a" * 99, error_after=1), ProviderUnavailable),
    "cut stream": (Reply("a" * 99, cut_after=1), StreamBroken),
}
QUOTAS = {
    "429": (None, None),
    "429 minute": (53, "minute"),
    "429 minute, no RetryInfo": (None, "minute"),
    "429 day": (9.5, "day"),
    "429 day, no RetryInfo": (None, "day"),
    "429 in a list": (9.5, "day"),
    "429 header": (7, None),
}


async def test_an_answer_whose_every_event_says_stop_is_read_to_its_end(server: FakeGemini, model: GeminiModel) -> None:
    text = "Arroz e feijão. " * 15
    server.script(Reply(text, finish_always=True, token_s=0.05))
    assert (await model.complete(ask(), soon())).text == text.strip()


async def test_a_blocked_prompt_counts_though_the_connection_stays_open(server: FakeGemini, model: GeminiModel) -> None:
    server.script(Reply(body={"promptFeedback": {"blockReason": "SAFETY"}}, at_end=asyncio.Event()))
    with pytest.raises(PromptBlocked):
        await model.complete(ask(), soon(2))


@pytest.mark.parametrize("name", FAILURES)
async def test_failures_are_typed(server: FakeGemini, model: GeminiModel, name: str) -> None:
    reply, kind = FAILURES[name]
    server.script(reply)
    with pytest.raises(kind) as caught:
        await model.complete(ask(), soon())
    error = caught.value
    assert type(error) is kind
    assert (error.provider, error.__cause__) == ("gemini", None)
    assert len(server.requests) == 1
    if isinstance(error, ProviderRateLimited):
        assert (error.retry_after, error.scope) == QUOTAS[name]
        assert error.per_day == (error.scope == "day")


async def test_text_cut_by_the_limit_says_so(server: FakeGemini, model: GeminiModel) -> None:
    completion = await model.complete(ask(max_tokens=1), soon())
    assert (completion.text, completion.finish) == ("Oi! Tudo bem", "length")


async def test_unknown_model(server: FakeGemini) -> None:
    model = GeminiModel(SecretStr(KEY), "gemini-1/../x", server.url)
    with pytest.raises(ProviderMisconfigured, match="GEMINI_MODEL"):
        await model.complete(ask(), soon())
    await model.close()


async def test_the_key_is_nowhere_to_be_read(server: FakeGemini, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = GeminiModel(SecretStr("AIza-wrong-key"), "gemini-2.5-flash", server.url)
    told = [repr(wrong)]
    for stopped in (False, True):
        if stopped:
            await server.stop()
        with pytest.raises(ProviderError) as caught:
            await wrong.complete(ask(), soon())
        error = caught.value
        told += [repr(error), repr(vars(error)), repr(error.__cause__)]
        assert error.__suppress_context__ or error.__context__ is None
    await wrong.close()
    assert "AIza" not in "".join(told) + caplog.text


async def test_probe_says_what_is_wrong(server: FakeGemini, model: GeminiModel) -> None:
    good = {"reachable": True, "model": "gemini-2.5-flash", "present": True, "error": None, "note": ""}
    assert await model.probe(soon()) == good
    server.key = "another"
    bad_key = await model.probe(soon())
    assert (bad_key["reachable"], bad_key["error"]) == (True, "provider_key_rejected")
    assert "GEMINI_API_KEY" in bad_key["note"]
    server.key, server.models = KEY, ("gemini-3-flash",)
    assert "GEMINI_MODEL" in (await model.probe(soon()))["note"]
    await server.stop()
    assert not (await model.probe(soon()))["reachable"]


async def test_a_key_read_from_a_file_may_end_in_a_newline(server: FakeGemini) -> None:
    model = GeminiModel(SecretStr(f"{KEY}\n"), "gemini-2.5-flash", server.url)
    assert (await model.complete(ask(), soon())).text
    await model.close()


@pytest.mark.parametrize(("purposes", "flag"), [({"test"}, False), ({"all"}, False), (set(), True)])
async def test_what_must_stay_here_is_not_sent(server: FakeGemini, purposes: set[str], flag: bool) -> None:
    model = GeminiModel(SecretStr(KEY), "gemini-2.5-flash", server.url, frozenset(purposes))
    with pytest.raises(LocalOnly):
        await model.complete(ask(local_only=flag), soon())
    await model.close()
    assert server.requests == []


async def test_another_purpose_may_leave(server: FakeGemini) -> None:
    model = GeminiModel(SecretStr(KEY), "gemini-2.5-flash", server.url, frozenset({"sofia_text"}))
    assert (await model.complete(ask(), soon())).text
    await model.close()


class Cost(NamedTuple):
    replies: tuple[Reply, ...]
    error: type[ProviderError]
    tokens: int


COSTS = {
    "blocked answer": Cost((Reply("x", finish="SAFETY"),), AnswerBlocked, 1),
    "cut stream": Cost((Reply("a" * 99, cut_after=3),), StreamBroken, 3),
    "cut JSON": Cost((Reply('{"name": "a', finish="MAX_TOKENS"),), AnswerTruncated, 1),
    "wrong twice": Cost((Reply("x"), Reply("x")), AnswerInvalid, 2),
    "failed repair": Cost((Reply("x"), Reply(status=503, body={})), ProviderUnavailable, 1),
    "refused": Cost((Reply(status=503, body={}),), ProviderUnavailable, 0),
}


@pytest.mark.parametrize("name", COSTS)
async def test_what_a_failure_cost_is_known(server: FakeGemini, model: GeminiModel, name: str) -> None:
    replies, kind, tokens = COSTS[name]
    server.script(*replies)
    bill = Bill()
    with pytest.raises(kind):
        await model.complete(ask(answer=Answer), soon(), bill)
    paid_calls = sum(reply.status == 200 for reply in replies)
    assert bill.calls == len(replies)
    assert bill.cost_usd == pytest.approx((12 * 0.3 * paid_calls + tokens * 2.5) / 1e6)
