"""OllamaModel against the fake Ollama on a real socket, which answers as the recordings do."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
from fakes.llm_server import Reply
from fakes.ollama_server import FakeOllama
from fakes.pictures import picture
from PIL import Image
from pydantic import BaseModel, Field

from aiworker.domain.completion import PromptRequest, Tool, ToolCall, Turn
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerInvalid,
    AnswerTruncated,
    ImageUnreadable,
    LocalOnly,
    ModelCannotSee,
    ModelNotFound,
    PromptTooLong,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm import http
from aiworker.llm.ollama import OllamaModel

TEXT, VISION = "llama3.2:3b", "qwen2.5vl:3b"
JPEG = picture(2000, 1500)
SECRET = "pergunta-sigilosa"


class Food(BaseModel):
    name: str = Field(min_length=2)
    grams: float = Field(gt=0, le=2000)


class Meal(BaseModel):
    foods: list[Food]


GOOD = json.dumps({"foods": [{"name": "arroz", "grams": 100}]})


def ask(**more: Any) -> PromptRequest:
    return PromptRequest("test", "Você é a Sofia.", SECRET, ("ollama",), **more)


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


@pytest.fixture
async def server() -> AsyncIterator[FakeOllama]:
    async with FakeOllama() as running:
        yield running


@pytest.fixture
async def model(server: FakeOllama) -> AsyncIterator[OllamaModel]:
    running = OllamaModel(server.url, TEXT, VISION, 4096)
    yield running
    await running.close()


async def test_text_comes_with_tokens_and_times(server: FakeOllama, model: OllamaModel) -> None:
    completion = await model.complete(ask(), soon())
    assert (completion.text, completion.finish) == ("Oi! Tudo bem?", "stop")
    assert (completion.provider, completion.model, completion.value) == ("ollama", TEXT, None)
    assert (completion.load_ms, completion.prompt_ms, completion.wait_ms) == (100, 200, pytest.approx(50))
    assert completion.answer_tokens == completion.answer_ms / 10 > 0
    sent = server.requests[0]
    assert (sent["model"], sent["stream"], sent["options"]["num_ctx"]) == (TEXT, True, 4096)
    assert "think" not in sent


async def test_schema_bound_answer_is_a_value(server: FakeOllama, model: OllamaModel) -> None:
    completion = await model.complete(ask(answer=Meal), soon())
    assert isinstance(completion.value, Meal)
    assert completion.value.foods
    assert server.requests[0]["format"]["properties"]["foods"]["type"] == "array"


async def test_image_goes_to_the_vision_model(server: FakeOllama, model: OllamaModel) -> None:
    completion = await model.complete(ask(images=(JPEG,)), soon())
    assert completion.model == VISION
    (sent,) = server.requests[0]["messages"][-1]["images"]
    with Image.open(BytesIO(base64.b64decode(sent))) as seen:
        assert 950_000 < seen.width * seen.height <= 1_003_520


async def test_broken_image_is_the_jobs_fault(server: FakeOllama, model: OllamaModel) -> None:
    with pytest.raises(ImageUnreadable):
        await model.complete(ask(images=(JPEG[:2000],)), soon())
    assert server.requests == []


async def test_thinking_model_is_told_not_to(server: FakeOllama, model: OllamaModel) -> None:
    server.models[TEXT] = ("completion", "thinking")
    await model.complete(ask(), soon())
    assert server.requests[0]["think"] is False


async def test_a_prompt_that_does_not_fit_is_an_error_and_not_an_invention(
    server: FakeOllama, model: OllamaModel
) -> None:
    with pytest.raises(PromptTooLong, match="OLLAMA_NUM_CTX"):
        await model.complete(dataclasses.replace(ask(answer=Meal), prompt="ovo " * 5000), soon())
    assert server.requests == []


async def test_an_answer_that_fills_the_context_is_cut_and_forgets_no_instructions(
    server: FakeOllama, model: OllamaModel
) -> None:
    server.script(Reply('{"foods": [], "x": "' + "ovo " * 1000 + '"}'))
    with pytest.raises(AnswerTruncated):
        await model.complete(dataclasses.replace(ask(answer=Meal), prompt="ovo " * 3500), soon())
    assert len(server.requests) == 1


async def test_an_answer_without_room_is_none(server: FakeOllama, model: OllamaModel) -> None:
    long = Reply("palavra " * 1000)
    server.script(long, long, long)
    with pytest.raises(PromptTooLong, match="room"):
        await model.complete(dataclasses.replace(ask(), prompt="ovo " * 3900), soon())
    history = (Turn("user", "ovo " * 3800), Turn("assistant", "sim"))
    completion = await model.complete(ask(history=history), soon())
    assert (completion.finish, completion.answer_tokens) == ("stop", 1001)
    assert len(server.requests) == 3


async def test_a_repair_that_does_not_fit_leaves_the_answer_wrong(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply("não sei " * 100))
    with pytest.raises(AnswerInvalid, match="no room"):
        await model.complete(dataclasses.replace(ask(answer=Meal), prompt="ovo " * 3880), soon())
    assert len(server.requests) == 1


async def test_of_a_conversation_that_does_not_fit_the_oldest_turns_are_left_out(
    server: FakeOllama, model: OllamaModel
) -> None:
    history = tuple(
        Turn(role, f"{number} " + "palavra " * 900) for number in range(4) for role in ("user", "assistant")
    )
    await model.complete(ask(history=history), soon())
    (sent,) = server.requests
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert sent["messages"][1]["content"].startswith("2 ")
    await model.complete(ask(history=history[1:]), soon())
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


async def test_the_question_of_a_tool_loop_is_not_left_out(server: FakeOllama, model: OllamaModel) -> None:
    call = ToolCall("weigh", Food(name="ovo", grams=50))
    loop = (Turn("user", "quanto pesa?"), Turn("assistant", "", (call,)))
    before = tuple(Turn(role, "palavra " * 3000) for role in ("user", "assistant"))
    asked = dataclasses.replace(ask(), prompt="")
    await model.complete(dataclasses.replace(asked, history=(*before, *loop, Turn("tool", "50 g", (), call))), soon())
    assert [message["content"] for message in server.requests[0]["messages"][1:]] == ["quanto pesa?", "", "50 g"]
    long = Turn("tool", "50 g " * 3000, (), call)
    with pytest.raises(PromptTooLong):
        await model.complete(dataclasses.replace(asked, history=(*loop, long)), soon())
    assert len(server.requests) == 1


async def test_image_for_a_text_only_model_is_refused_before_the_call(server: FakeOllama, model: OllamaModel) -> None:
    server.models[VISION] = ("completion",)
    with pytest.raises(ModelCannotSee, match="text-only"):
        await model.complete(ask(images=(JPEG,)), soon())
    assert server.requests == []


async def test_wrong_answer_is_repaired_once(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply('{"foods": [{"name": "arroz", "grams": -1}]}'), Reply(GOOD))
    completion = await model.complete(ask(answer=Meal), soon())
    assert isinstance(completion.value, Meal)
    first, second = server.requests
    assert [message["role"] for message in second["messages"][-3:]] == ["user", "assistant", "user"]
    assert '"grams": -1' in second["messages"][-2]["content"]
    assert "foods.0.grams" in second["messages"][-1]["content"]
    assert first["options"] == second["options"]
    assert completion.load_ms == 200


async def test_cut_json_is_truncated_and_not_asked_again(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply(GOOD))
    with pytest.raises(AnswerTruncated):
        await model.complete(ask(answer=Meal, max_tokens=5), soon())
    assert len(server.requests) == 1


async def test_cut_text_is_an_answer_that_says_so(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply("um dois três quatro cinco"))
    completion = await model.complete(ask(max_tokens=3), soon())
    assert (completion.text, completion.finish) == ("um dois três", "length")


async def test_complete_json_followed_by_endless_blanks_is_taken(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply(GOOD + "\n" * 9, finish="length"))
    assert (await model.complete(ask(answer=Meal), soon())).value


@pytest.mark.parametrize("text", ["", "<think>hm</think>", "  \n"])
async def test_empty_answer(server: FakeOllama, model: OllamaModel, text: str) -> None:
    server.script(Reply(text))
    with pytest.raises(AnswerInvalid):
        await model.complete(ask(), soon())


async def test_model_that_is_not_there(server: FakeOllama, model: OllamaModel) -> None:
    del server.models[TEXT]
    with pytest.raises(ModelNotFound, match="models pull"):
        await model.complete(ask(), soon())


FAILURES: dict[str, tuple[Reply, type[ProviderError]]] = {
    "400": (Reply(status=400, body={"error": "bad"}), RequestRejected),
    "401": (Reply(status=401, body={"error": "unauthorized"}), ProviderMisconfigured),
    "404 not pulled": (Reply(status=404, body={"error": "model 'x' not found"}), ModelNotFound),
    "404 path": (Reply(status=404, body="404 page not found"), ProviderMisconfigured),
    "499": (Reply(status=499, body={"error": "request cancelled"}), ProviderUnavailable),
    "500": (Reply(status=500, body={"error": "boom"}), ProviderUnavailable),
    "500 memory": (Reply(status=500, body={"error": "model requires more system memory"}), ProviderUnavailable),
    "500 bad format": (Reply(status=500, body={"error": "invalid format: x"}), RequestRejected),
    "500 bad option": (Reply(status=500, body={"error": 'option "x" must be of type integer'}), RequestRejected),
    "503 busy": (Reply(status=503, body={"error": "server busy, please try again."}), ProviderRateLimited),
    "503": (Reply(status=503, body={"error": "loading"}), ProviderUnavailable),
    "error line": (Reply(error_after=2), StreamBroken),
    "permanent error line": (Reply(error_after=0, error='option "x" must be of type integer'), RequestRejected),
    "garbage line": (Reply(garbage_after=1), StreamBroken),
    "cut at once": (Reply(cut_after=0), StreamBroken),
    "cut in mid-stream": (Reply(cut_after=2), StreamBroken),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failures_are_typed(server: FakeOllama, model: OllamaModel, name: str) -> None:
    reply, kind = FAILURES[name]
    server.script(reply)
    with pytest.raises(kind) as caught:
        await model.complete(ask(), soon())
    assert type(caught.value) is kind
    assert caught.value.provider == "ollama"
    assert caught.value.__cause__ is None
    assert caught.value.retry_after == (1 if name == "503 busy" else None)
    assert len(server.requests) == 1


async def test_bad_image_by_the_servers_own_word(server: FakeOllama, model: OllamaModel) -> None:
    server.script(Reply(status=500, body={"error": "Failed to load image or audio file: invalid image"}))
    with pytest.raises(RequestRejected):
        await model.complete(ask(images=(JPEG,)), soon())


async def test_redirect_is_not_followed(server: FakeOllama, model: OllamaModel) -> None:
    async with FakeOllama() as other:
        server.script(Reply(status=307, body={}, headers={"Location": f"{other.url}/api/chat"}))
        with pytest.raises(ProviderMisconfigured):
            await model.complete(ask(), soon())
        assert other.requests == []


async def test_once_tokens_flow_the_whole_deadline_counts(
    server: FakeOllama, model: OllamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await model.probe(soon())
    monkeypatch.setattr(http, "FIRST_TOKEN_SHARE", 0.02)
    go_on = asyncio.Event()
    server.script(Reply(after_first=go_on))
    call = asyncio.create_task(model.complete(ask(), soon(40)))
    await server.hung()
    asyncio.get_running_loop().call_later(1, go_on.set)
    assert (await call).text == "Oi! Tudo bem?"


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_a_load_that_nobody_has_time_for_goes_on(server: FakeOllama, model: OllamaModel, how: str) -> None:
    await model.probe(soon())
    server.script(Reply(before=asyncio.Event()))
    call = asyncio.create_task(model.complete(ask(), soon(1.0 if how == "late" else 20)))
    await server.hung()
    # Ollama aborts it with the call that it was for.
    server.loaded.clear()
    if how == "cancelled":
        call.cancel()
    with pytest.raises(ProviderTimeout if how == "late" else asyncio.CancelledError):
        await call
    async with asyncio.timeout(20):
        while TEXT not in server.loaded:
            await asyncio.sleep(0.01)
    assert server.loaded == {TEXT: server.requests[0]["options"]["num_ctx"]}


async def test_a_load_that_nobody_had_anything_of_does_not_go_on_again(server: FakeOllama, model: OllamaModel) -> None:
    await model.probe(soon())

    async def loads_on_after_a_call_left() -> bool:
        server.script(Reply(before=asyncio.Event()))
        call = asyncio.create_task(model.complete(ask(), soon(20)))
        await server.hung(server.hangs + 1)
        server.loaded.clear()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.gather(*model._loads.values())
        return TEXT in server.loaded

    assert await loads_on_after_a_call_left()
    # The other model's calls have put it away, unused.
    assert not await loads_on_after_a_call_left()
    await model.complete(ask(), soon())
    assert await loads_on_after_a_call_left()


async def test_refused_connection(server: FakeOllama, model: OllamaModel) -> None:
    await server.stop()
    with pytest.raises(ProviderUnavailable) as caught:
        await model.complete(ask(), soon())
    assert caught.value.details["phase"] == "connect"
    await server.start()
    assert (await model.complete(ask(), soon())).text


async def test_capabilities_are_asked_once(server: FakeOllama, model: OllamaModel) -> None:
    await model.complete(ask(), soon())
    server.models[TEXT] = ("completion", "thinking")
    await model.complete(ask(), soon())
    assert "think" not in server.requests[1]


async def test_probe_says_what_is_there(server: FakeOllama, model: OllamaModel) -> None:
    assert await model.probe(soon()) == {
        "reachable": True,
        "version": "0.13.5",
        "models": {
            TEXT: {"present": True, "vision": False, "remote": False},
            VISION: {"present": True, "vision": True, "remote": False},
        },
        "error": None,
        "note": "",
    }
    del server.models[VISION]
    assert (await model.probe(soon()))["models"][VISION] == {"present": False, "vision": None, "remote": None}
    await server.stop()
    assert await model.probe(soon()) == {
        "reachable": False,
        "version": None,
        "models": {},
        "error": "provider_unreachable",
        "note": "cannot connect",
    }


async def test_environment_proxy_is_not_followed(model: OllamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert (await model.complete(ask(), soon())).text


async def test_nothing_of_prompt_or_answer_is_logged(
    server: FakeOllama, model: OllamaModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script(Reply("resposta-sigilosa"), Reply("resposta-sigilosa", error_after=1))
    completion = await model.complete(ask(), soon())
    with pytest.raises(ProviderUnavailable) as caught:
        await model.complete(ask(), soon())
    told = caplog.text + repr(completion) + repr(caught.value) + repr(vars(caught.value))
    assert "sigilosa" not in told


class Weigh(BaseModel):
    food: str
    grams: float = Field(gt=0)


WEIGH = Tool("weigh", "Pesa um alimento.", Weigh)


async def test_a_model_without_tools_is_not_asked_for_them(server: FakeOllama, model: OllamaModel) -> None:
    server.models[TEXT] = ("completion",)
    with pytest.raises(RequestRejected, match="tools"):
        await model.complete(ask(tools=(WEIGH,)), soon())
    assert server.requests == []


async def test_a_model_in_ollamas_cloud_is_not_here(server: FakeOllama, model: OllamaModel) -> None:
    server.remote.add(TEXT)
    assert (await model.complete(ask(), soon())).text
    with pytest.raises(LocalOnly):
        await model.complete(ask(local_only=True), soon())
    assert len(server.requests) == 1
