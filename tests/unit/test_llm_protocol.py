"""Bodies that we send and lines that we read, without a socket."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from fakes.gemini_server import bad_key_details, error_body, quota_details
from fakes.ollama_server import RECORDINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from aiworker.domain.completion import Completion, PromptRequest, Tool, ToolCall, Turn
from aiworker.domain.errors import (
    AnswerBlocked,
    AnswerEmpty,
    AnswerInvalid,
    KeyRejected,
    ModelNotFound,
    PromptBlocked,
    PromptTooLong,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnavailable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm import gemini_errors, gemini_generate, gemini_models, ollama_chat, ollama_errors
from aiworker.llm.http import CONNECT_S, MAX_BODY, MAX_LINE, Lines, connect_limit
from aiworker.llm.structured import RawCall
from aiworker.settings import load_settings

JPEG = b"\xff\xd8\xff\xe0rest"


class Answer(BaseModel):
    n: int


REQUEST = PromptRequest(
    "test",
    "sistema",
    "pergunta",
    ("ollama",),
    history=(Turn("user", "a"), Turn("assistant", "b")),
    images=(JPEG,),
    seed=7,
)


def recording(name: str) -> dict[str, Any]:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def ollama_completion(lines: list[dict[str, Any]]) -> Completion:
    stream = ollama_chat.ChatStream("smollm2:135m")
    for item in lines:
        stream.feed(item["line"].encode())
    return stream.said().completion


def test_ollama_stream_as_recorded() -> None:
    completion = ollama_completion(recording("chat_stream")["lines"])
    assert completion.text.endswith("2019-05-07: 202")
    assert (completion.finish, completion.prompt_tokens, completion.answer_tokens) == ("length", 15, 30)
    assert completion.load_ms == pytest.approx(53.129, abs=0.001)
    parts = completion.load_ms + completion.prompt_ms + completion.answer_ms
    assert completion.wait_ms == pytest.approx(6758.251 - parts, abs=0.001)


@pytest.mark.parametrize(
    ("name", "error", "retryable"),
    [
        ("chat_bad_format", RequestRejected, False),
        ("chat_bad_option", RequestRejected, False),
        ("chat_bad_image", RequestRejected, False),
        ("chat_missing_model", ModelNotFound, False),
        ("chat_missing_model_stream", ModelNotFound, False),
        ("chat_no_model", RequestRejected, False),
        ("chat_tools_unsupported", RequestRejected, False),
        ("not_found_path", ProviderMisconfigured, False),
    ],
)
def test_ollama_recorded_errors_are_typed(name: str, error: type[ProviderError], retryable: bool) -> None:
    recorded = recording(name)
    caught = ollama_errors.error_of(recorded["status"], recorded["lines"][0]["line"].encode(), {})
    assert type(caught) is error
    assert (caught.retryable, caught.provider, caught.details["status"]) == (retryable, "ollama", recorded["status"])
    assert ("models pull" in caught.note) == name.startswith("chat_missing")


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (503, "server busy, please try again.  maximum pending requests exceeded", ProviderRateLimited),
        (503, "", ProviderUnavailable),
        (500, "llama runner process has terminated: signal: killed", ProviderUnavailable),
        (500, "model requires more system memory (5.6 GiB) than is available (2.0 GiB)", ProviderUnavailable),
        (499, "request cancelled", ProviderUnavailable),
        (502, "", ProviderUnavailable),
        (400, "the input length exceeds the context length", PromptTooLong),
        (400, '{"error":{"message":"request (8889 tokens) exceeds the available context size"}}', PromptTooLong),
        (500, "the prompt is longer than the context length currently available to the model", PromptTooLong),
        (401, "unauthorized", ProviderMisconfigured),
        (301, "", ProviderMisconfigured),
    ],
)
def test_ollama_other_errors(status: int, text: str, error: type[ProviderError]) -> None:
    caught = ollama_errors.error_of(status, json.dumps({"error": text}).encode(), {})
    assert type(caught) is error
    assert not text or text not in str(caught)


@pytest.mark.parametrize(
    ("name", "error"),
    [("chat_empty_messages_load", AnswerInvalid), ("unload", AnswerInvalid), ("pull_missing", ProviderUnavailable)],
)
def test_ollama_lines_that_are_no_answer(name: str, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        ollama_completion(recording(name)["lines"])


def test_ollama_stream_without_end_or_with_garbage() -> None:
    stream = ollama_chat.ChatStream("m")
    stream.feed(b'{"message":{"content":"a"},"done":false}')
    with pytest.raises(ProviderUnavailable):
        stream.said()
    for garbage in (b"<html>", b"[]", b"\xff\xfe", b"1"):
        with pytest.raises(ProviderUnavailable):
            stream.feed(garbage)


def test_ollama_body() -> None:
    body = ollama_chat.chat_body(REQUEST, "m", 4096, "30m", thinks=True)
    assert body["options"] == {"num_ctx": 4096, "num_predict": 1024, "temperature": 0.2, "seed": 7}
    assert (body["stream"], body["keep_alive"], body["think"], body["truncate"]) == (True, "30m", False, False)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][-1]["images"] == ["/9j/4HJlc3Q="]
    assert "format" not in body
    plain = ollama_chat.chat_body(PromptRequest("t", "", "p", (), answer=Answer), "m", 512, "1m", thinks=False)
    assert "think" not in plain
    assert "seed" not in plain["options"]
    assert plain["format"]["required"] == ["n"]
    assert '"required":["n"]' in plain["messages"][0]["content"]


def test_gemini_body() -> None:
    request = PromptRequest("t", "sistema", "p", (), history=REQUEST.history, images=(JPEG,), answer=Answer, seed=3)
    body = gemini_generate.generate_body(request, "gemini-2.5-flash")
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][-1]["parts"] == [
        {"inlineData": {"mimeType": "image/jpeg", "data": "/9j/4HJlc3Q="}},
        {"text": "p"},
    ]
    assert body["systemInstruction"] == {"parts": [{"text": "sistema"}]}
    assert body["generationConfig"] == {
        "temperature": 0.2,
        "maxOutputTokens": 1024,
        "seed": 3,
        "thinkingConfig": {"thinkingBudget": 0},
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    }
    bare = gemini_generate.generate_body(PromptRequest("t", "", "p", ()), "gemini-9")
    assert set(bare) == {"contents", "generationConfig"}
    assert set(bare["generationConfig"]) == {"temperature", "maxOutputTokens"}


class Weigh(BaseModel):
    """How much of a food."""

    food: str = Field(max_length=80)
    grams: float = Field(gt=0)


TOOL = Tool("weigh", "Pesa um alimento.", Weigh)
CALL = ToolCall("weigh", Weigh(food="ovo", grams=50), "c2ln", "call-7")
CONVERSATION = PromptRequest(
    "test",
    "sistema",
    "",
    ("ollama",),
    history=(
        Turn("user", "quanto pesa?"),
        Turn("assistant", "", calls=(CALL,)),
        Turn("tool", "50 g", result_of=CALL),
    ),
    answer=Answer,
    tools=(TOOL,),
)
PARAMETERS = {
    "type": "object",
    "description": "How much of a food.",
    "properties": {"food": {"type": "string"}, "grams": {"type": "number", "minimum": 0}},
    "required": ["food", "grams"],
}


def test_ollama_tools() -> None:
    body = ollama_chat.chat_body(CONVERSATION, "m", 4096, "30m", thinks=False)
    function = {"name": "weigh", "description": "Pesa um alimento.", "parameters": PARAMETERS}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert "format" not in body
    system, _, asked, given = body["messages"]
    assert '"required":["n"]' in system["content"]
    weigh = {"name": "weigh", "arguments": {"food": "ovo", "grams": 50.0}}
    assert asked["tool_calls"] == [{"function": weigh, "id": "call-7"}]
    assert given == {"role": "tool", "content": "50 g", "tool_name": "weigh", "tool_call_id": "call-7"}
    stream = ollama_chat.ChatStream("m")
    stream.feed(
        b'{"message":{"role":"assistant","content":"","tool_calls":'
        b'[{"function":{"name":"weigh","arguments":{"food":"ovo"}}},'
        b'{"id":"call_x","function":{"index":1,"name":"weigh","arguments":{}}}]},"done":false}'
    )
    stream.feed(b'{"message":{"content":""},"done":true,"done_reason":"stop"}')
    assert stream.said().calls == (RawCall("weigh", {"food": "ovo"}), RawCall("weigh", {}, id="call_x"))


@pytest.mark.parametrize("function", [{"name": "now", "arguments": None}, {"name": "now"}])
def test_ollama_call_without_arguments(function: dict[str, Any]) -> None:
    stream = ollama_chat.ChatStream("m")
    message = {"content": "", "tool_calls": [{"function": function}]}
    stream.feed(json.dumps({"message": message, "done": True, "done_reason": "stop"}).encode())
    assert stream.said().calls == (RawCall("now", {}),)


def test_gemini_tools() -> None:
    body = gemini_generate.generate_body(CONVERSATION, "gemini-2.5-flash")
    (declared,) = body["tools"][0]["functionDeclarations"]
    assert declared == {"name": "weigh", "description": "Pesa um alimento.", "parametersJsonSchema": PARAMETERS}
    assert "responseJsonSchema" not in body["generationConfig"]
    assert '"required":["n"]' in body["systemInstruction"]["parts"][0]["text"]
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    call = {"name": "weigh", "args": {"food": "ovo", "grams": 50.0}, "id": "call-7"}
    assert body["contents"][1]["parts"] == [{"functionCall": call, "thoughtSignature": "c2ln"}]
    result = {"name": "weigh", "response": {"result": "50 g"}, "id": "call-7"}
    assert body["contents"][2]["parts"] == [{"functionResponse": result}]
    said = gemini_stream(
        {
            "candidates": [
                {"content": {"parts": [{"functionCall": call, "thoughtSignature": "x"}]}, "finishReason": "STOP"}
            ]
        }
    ).said()
    assert said.calls == (RawCall("weigh", {"food": "ovo", "grams": 50.0}, "x", "call-7"),)


def test_gemini_gets_the_results_of_a_turn_together_and_nothing_with_them() -> None:
    calls = (CALL, ToolCall("weigh", Weigh(food="pão", grams=25), id="call-8"))
    results = [Turn("tool", "50 g", result_of=calls[0]), Turn("tool", "25 g", result_of=calls[1])]
    before = (Turn("user", "Quanto pesam?"), Turn("assistant", "", calls), *results)
    for after in ((Turn("user", "E o pão?"),), (Turn("user", "E"), Turn("user", "o pão?"), Turn("assistant", "25 g"))):
        request = dataclasses.replace(CONVERSATION, history=(*before, *after), prompt="Obrigado")
        contents = gemini_generate.generate_body(request, "gemini-3.5-flash")["contents"]
        given, then = contents[2:4]
        assert [part["functionResponse"]["id"] for part in given["parts"]] == ["call-7", "call-8"]
        assert (given["role"], then["role"]) == ("user", "user")
        assert all("text" in part for part in then["parts"])


@pytest.mark.parametrize("opening", [Turn("assistant", "Oi, sou a Sofia!"), Turn("assistant", "", (CALL,))])
def test_gemini_hears_the_user_first(opening: Turn) -> None:
    history = (opening, Turn("tool", "50 g", result_of=CALL)) if opening.calls else (opening,)
    request = dataclasses.replace(CONVERSATION, history=history, prompt="Oi")
    for model in ("gemini-3.5-flash", "gemini-2.5-flash"):
        for _ in range(2):
            contents = gemini_generate.generate_body(request, model)["contents"]
            before, opened = contents[:2]
            assert before == {"role": "user", "parts": [{"text": "(início da conversa)"}]}
            assert opened["role"] == "model"


def test_gemini_3_is_told_which_calls_are_not_its_own() -> None:
    own, other = CALL, ToolCall("weigh", Weigh(food="pão", grams=25), id="call-8")
    for calls, signatures in (
        ((own, other), ["c2ln", None]),
        ((other, other), ["skip_thought_signature_validator", None]),
    ):
        request = dataclasses.replace(CONVERSATION, history=(Turn("user", "?"), Turn("assistant", "", calls)))
        for model, expected in (
            ("gemini-3.5-flash", signatures),
            ("gemini-2.5-flash", [calls[0].opaque or None, None]),
        ):
            parts = gemini_generate.generate_body(request, model)["contents"][1]["parts"]
            assert [part.get("thoughtSignature") for part in parts] == expected


KEYS = (
    *("candidates", "content", "parts", "text", "functionCall", "args", "usageMetadata", "promptFeedback", "error"),
    *("finishReason", "message", "tool_calls", "function", "name", "done", "done_reason", "eval_count"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(["candidates", "message", "done", "error", "x"]), JSON), max_size=3))
@settings(deadline=None)
def test_whatever_a_server_sends_only_typed_errors_come_out(items: list[Any]) -> None:
    for stream in (ollama_chat.ChatStream("m"), gemini_generate.GenerateStream("gemini-2.5-flash")):
        with contextlib.suppress(ProviderError):
            for item in items:
                stream.feed(b"data:" * isinstance(stream, gemini_generate.GenerateStream) + json.dumps(item).encode())
            stream.said()


ERROR_KEYS = ["error", "details", "message", "status", "code", "reason", "@type", "violations", "quotaId", "retryDelay"]
ERROR_LEAVES = (
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["9" * 400 + "s", "1.5s", "google.rpc.RetryInfo"])
)
ERROR_JSON = st.recursive(
    ERROR_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ERROR_KEYS), inner, max_size=4),
    max_leaves=15,
)


@given(
    status=st.integers(100, 599),
    body=st.binary(max_size=20) | ERROR_JSON.map(lambda value: json.dumps(value).encode()),
    after=st.sampled_from(["", "7", "-1", "1e9", "9" * 400, "²", "Wed, 21 Oct 2026 07:28:00 GMT"]),
)
@settings(deadline=None)
def test_whatever_comes_instead_of_an_answer_is_a_typed_error(status: int, body: bytes, after: str) -> None:
    for error_of in (ollama_errors.error_of, gemini_errors.error_of):
        error = error_of(status, body, {"Retry-After": after})
        assert isinstance(error, ProviderError)
        assert error.retry_after is None or 0 <= error.retry_after <= 86_400


def test_a_proxy_in_front_of_ollama_may_say_when_to_come_back() -> None:
    for status, after in ((503, 9), (429, 9)):
        assert ollama_errors.error_of(status, b"<html>", {"Retry-After": "9"}).retry_after == after
    assert ollama_errors.error_of(429, b"", {}).retry_after == 1


def test_gemini_price_by_longest_name() -> None:
    flash, lite = gemini_models.price_of("gemini-2.5-flash"), gemini_models.price_of("gemini-2.5-flash-lite-preview")
    assert flash is not None
    assert lite is not None
    assert flash.of(1_000_000, 1_000_000) == pytest.approx(2.80)
    assert lite.of(1_000_000, 1_000_000) == pytest.approx(0.50)
    assert gemini_models.price_of("palm-2") is None
    assert gemini_models.price_of(load_settings().gemini_model) == gemini_models.Price(0.30, 2.50)


@pytest.mark.parametrize(
    ("model", "config", "tokens"),
    [
        ("gemini-2.5-flash", {"thinkingBudget": 0}, 1024),
        ("gemini-2.5-pro", {"thinkingBudget": 128}, 1152),
        ("gemini-3-flash-preview", {"thinkingLevel": "minimal"}, 1536),
        ("gemini-3-pro-preview", {"thinkingLevel": "low"}, 3072),
        ("gemini-3.5-flash-lite", {"thinkingLevel": "minimal"}, 1536),
        ("gemini-3.8-flash", {"thinkingLevel": "low"}, 3072),
        ("gemini-flash-lite-latest", {"thinkingLevel": "low"}, 3072),
        ("gemini-9", None, 1024),
    ],
)
def test_gemini_thinks_as_little_as_it_can(model: str, config: dict[str, Any] | None, tokens: int) -> None:
    sent = gemini_generate.generate_body(PromptRequest("t", "", "p", ()), model)["generationConfig"]
    assert (sent.get("thinkingConfig"), sent["maxOutputTokens"]) == (config, tokens)
    assert ("temperature" in sent) == ("thinkingLevel" not in (config or {}))


RATE = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerMinutePerProject", "53s"))
PER_DAY = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerDayPerProject-FreeTier", "0.5s"))
SAID = error_body(429, "RESOURCE_EXHAUSTED", message="quota. Please retry in 53.5s.")
EMPTY_INFO = [{"@type": "type.googleapis.com/google.rpc.RetryInfo"}]
SAID_BESIDE = error_body(429, "RESOURCE_EXHAUSTED", EMPTY_INFO, message="Please retry in 7.5s.")
SAID_MS = error_body(429, "RESOURCE_EXHAUSTED", message="quota. Please retry in 250ms.")
SAID_HOURS = error_body(429, "RESOURCE_EXHAUSTED", message="quota. Please retry in 14h28m39.5s.")
IN_MINUTES = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerMinutePerProject", "18m5s"))
GARBLED = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerMinutePerProject", "5s or so"))


RATE_LIST = [RATE]
SCOPES = {id(body): "minute" for body in (RATE, RATE_LIST, IN_MINUTES, GARBLED)} | {id(PER_DAY): "day"}


@pytest.mark.parametrize(
    ("status", "body", "error", "retry_after"),
    [
        (400, error_body(400, "INVALID_ARGUMENT"), RequestRejected, None),
        (400, error_body(400, "INVALID_ARGUMENT", bad_key_details()), KeyRejected, None),
        (400, error_body(400, "FAILED_PRECONDITION"), ProviderMisconfigured, None),
        (400, error_body(400, "INVALID_ARGUMENT", message="Unable to process input image."), ProviderRefused, None),
        (401, error_body(401, "UNAUTHENTICATED"), KeyRejected, None),
        (403, error_body(403, "PERMISSION_DENIED"), KeyRejected, None),
        (404, error_body(404, "NOT_FOUND"), ModelNotFound, None),
        (404, "<html>", ProviderMisconfigured, None),
        (429, RATE, ProviderRateLimited, 53.0),
        (429, RATE_LIST, ProviderRateLimited, 53.0),
        (429, PER_DAY, ProviderRateLimited, 0.5),
        (429, SAID, ProviderRateLimited, 53.5),
        (429, SAID_BESIDE, ProviderRateLimited, 7.5),
        (429, SAID_MS, ProviderRateLimited, 0.25),
        (429, SAID_HOURS, ProviderRateLimited, 14 * 3600 + 28 * 60 + 39.5),
        (429, IN_MINUTES, ProviderRateLimited, 18 * 60 + 5),
        (429, GARBLED, ProviderRateLimited, None),
        (429, error_body(429, "RESOURCE_EXHAUSTED"), ProviderRateLimited, None),
        (500, error_body(500, "INTERNAL"), ProviderUnavailable, None),
        (503, error_body(503, "UNAVAILABLE"), ProviderUnavailable, None),
        (504, error_body(504, "DEADLINE_EXCEEDED"), ProviderTimeout, None),
        (502, "<html>", ProviderUnavailable, None),
        (400, [], RequestRejected, None),
        (400, {"error": "text"}, RequestRejected, None),
        (302, None, ProviderMisconfigured, None),
    ],
)
def test_gemini_errors_are_typed(status: int, body: Any, error: type[ProviderError], retry_after: float | None) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    caught = gemini_errors.error_of(status, raw, {})
    assert type(caught) is error
    assert caught.retry_after == retry_after
    assert (caught.provider, caught.details["status"]) == ("gemini", status)
    if isinstance(caught, ProviderRateLimited):
        assert caught.per_day == (body is PER_DAY)
        assert caught.scope == SCOPES.get(id(body))


def test_of_several_gemini_quotas_the_longest_decides() -> None:
    quotas = [{"quotaId": "GenerateRequestsPerMinutePerProject"}, {"quotaId": "GenerateRequestsPerDayPerProject"}]
    body = error_body(429, "RESOURCE_EXHAUSTED", [{"violations": quotas}])
    caught = gemini_errors.error_of(429, json.dumps(body).encode(), {})
    assert isinstance(caught, ProviderRateLimited)
    assert caught.per_day


def test_gemini_retry_after_header_and_bad_key() -> None:
    assert gemini_errors.error_of(429, b"", {"Retry-After": "7"}).retry_after == 7
    assert gemini_errors.error_of(429, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}).retry_after is None
    bad = gemini_errors.error_of(400, json.dumps(error_body(400, "INVALID_ARGUMENT", bad_key_details())).encode(), {})
    assert "GEMINI_API_KEY" in bad.note


def test_gemini_messages_do_not_reach_the_error() -> None:
    raw = json.dumps(error_body(400, "not an enum: secret", message="secret")).encode()
    assert "secret" not in repr(vars(gemini_errors.error_of(400, raw, {})))


@pytest.mark.parametrize("reason", ["stop", "", None, "eos", ["stop"]])
def test_whatever_ends_an_answer_of_ollama_it_has_ended(reason: Any) -> None:
    stream = ollama_chat.ChatStream("m")
    stream.feed(json.dumps({"message": {"content": "Sim."}, "error": None, "done": False}).encode())
    stream.feed(json.dumps({"message": {"content": ""}, "done": True, "done_reason": reason}).encode())
    completion = stream.said().completion
    assert (completion.text, completion.finish) == ("Sim.", "stop")


def test_gemini_error_in_mid_stream_that_is_no_event() -> None:
    stream = gemini_stream(candidate(None, "a"))
    details = quota_details("GenerateRequestsPerMinutePerProjectPerModel", "5s")
    for line in json.dumps([error_body(429, "RESOURCE_EXHAUSTED", details)], indent=2).splitlines():
        stream.feed(line.strip().encode())
    with pytest.raises(ProviderRateLimited) as caught:
        stream.said()
    assert (caught.value.retry_after, caught.value.scope) == (5, "minute")


def gemini_stream(*events: Any) -> gemini_generate.GenerateStream:
    stream = gemini_generate.GenerateStream("gemini-2.5-flash", gemini_models.Price(0.3, 2.5))
    for event in events:
        stream.feed(b"data: " + json.dumps(event).encode())
    return stream


def candidate(finish: str | None, *texts: str) -> dict[str, Any]:
    content = {"content": {"parts": [{"text": text} for text in texts]}} if texts else {}
    return {"candidates": [content | ({"finishReason": finish} if finish else {})]}


def test_gemini_stream_joins_pieces_and_counts_thinking() -> None:
    thought = {"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}]}}]}
    usage = {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 4, "thoughtsTokenCount": 6}}
    stream = gemini_stream(thought, candidate(None, "a"), candidate("STOP", "b", "c") | usage)
    stream.feed(b": comment")
    stream.feed(b"event: x")
    completion = stream.said().completion
    assert (completion.text, completion.finish) == ("abc", "stop")
    assert (completion.prompt_tokens, completion.answer_tokens) == (10, 10)
    assert completion.cost_usd == pytest.approx((10 * 0.3 + 10 * 2.5) / 1e6)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([{"promptFeedback": {"blockReason": "SAFETY"}}], PromptBlocked),
        ([candidate("SAFETY")], AnswerBlocked),
        ([candidate(None, "a"), candidate("RECITATION")], AnswerBlocked),
        ([candidate("PROHIBITED_CONTENT")], AnswerBlocked),
        ([candidate("MALFORMED_RESPONSE")], AnswerInvalid),
        ([candidate("OTHER", "a")], AnswerInvalid),
        ([candidate("NEW_REASON", "a")], AnswerInvalid),
        ([{"candidates": []}], AnswerEmpty),
        ([{"usageMetadata": {}}], AnswerEmpty),
        ([candidate(None, "a")], StreamBroken),
        ([], StreamBroken),
        ([{"error": {"code": 503, "status": "UNAVAILABLE"}}], ProviderUnavailable),
        ([{"error": {"code": 429}}], ProviderRateLimited),
        ([{"error": "text"}], ProviderUnavailable),
    ],
)
def test_gemini_streams_that_are_no_answer(events: list[Any], error: type[ProviderError]) -> None:
    with pytest.raises(error) as caught:
        gemini_stream(*events).said()
    assert type(caught.value) is error


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.integers(1, 7))
@settings(deadline=None)
def test_lines_do_not_depend_on_how_bytes_arrive(lines: list[bytes], size: int) -> None:
    whole = b"\n".join(lines)
    splitter = Lines("ollama")
    got = [line for i in range(0, len(whole), size) for line in splitter.feed(whole[i : i + size])] + splitter.end()
    assert got == [stripped for line in lines if (stripped := line.strip())]


def test_lines_have_limits() -> None:
    with pytest.raises(AnswerInvalid):
        Lines("ollama").feed(b"x" * (MAX_LINE + 1))
    splitter = Lines("ollama")
    for _ in range(MAX_BODY // MAX_LINE):
        splitter.feed(b"x" * (MAX_LINE - 1) + b"\n")
    with pytest.raises(AnswerInvalid):
        splitter.feed(b"x\n")


@given(st.floats(0, 3600))
def test_a_connection_gets_a_share_of_the_time_left(remaining_s: float) -> None:
    limit = connect_limit(remaining_s)
    assert 0 < limit <= CONNECT_S
    assert limit <= max(0.05, remaining_s / 4)
