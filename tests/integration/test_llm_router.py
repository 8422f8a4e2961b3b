"""ModelRouter over both clients and both fake servers, and over scripted providers where time must stand still."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes.gemini_server import FakeGemini, error_body, quota_details
from fakes.llm_server import Reply
from fakes.ollama_server import FakeOllama
from fakes.pictures import picture
from pydantic import BaseModel, SecretStr

from aiworker.domain.completion import PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    MediaTypeUnsupported,
    NoProvider,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
)
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.lane import LaneRules
from aiworker.llm.ollama import OllamaModel
from aiworker.llm.router import ModelRouter
from aiworker.telemetry.metrics import Metrics

JPEG = picture()
NOON_IN_CALIFORNIA = datetime(2026, 11, 27, 20, tzinfo=UTC).timestamp()


class Answer(BaseModel):
    name: str


def ask(*order: str, **more: Any) -> PromptRequest:
    return PromptRequest("test", "s", "p", order or ("ollama", "gemini"), **more)


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with FakeOllama() as server:
        yield server


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini(key="k") as server:
        yield server


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def router(ollama: FakeOllama, gemini: FakeGemini, metrics: Metrics) -> AsyncIterator[ModelRouter]:
    providers = {
        "ollama": OllamaModel(ollama.url, "llama3.2:3b", None, 4096),
        "gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url),
    }
    rules = {"ollama": LaneRules(1, local=True), "gemini": LaneRules(4)}
    running = ModelRouter(providers, rules, metrics)
    yield running
    await running.close()


async def test_first_in_order_answers(router: ModelRouter, metrics: Metrics) -> None:
    completion = await router.complete(ask(), soon())
    assert (completion.provider, completion.skipped) == ("ollama", {})
    assert (await router.complete(ask("gemini", "ollama"), soon())).provider == "gemini"
    assert (
        metrics.registry.get_sample_value("aiworker_llm_calls_total", {"provider": "ollama", "outcome": "answered"})
        == 1
    )
    seen = router.snapshot()["ollama"]
    assert {name: seen[name] for name in ("breaker", "in_use", "waiting", "answered", "failed", "sees_images")} == {
        "breaker": "closed",
        "in_use": 0,
        "waiting": 0,
        "answered": 1,
        "failed": 0,
        "sees_images": False,
    }
    assert seen["tokens_per_s"] == 100


async def test_image_passes_over_who_cannot_see(router: ModelRouter, ollama: FakeOllama) -> None:
    completion = await router.complete(ask("other", "ollama", "gemini", images=(JPEG,)), soon())
    assert completion.provider == "gemini"
    assert completion.skipped == {"other": "not_configured", "ollama": "no_vision"}
    assert ollama.requests == []


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(status=500, body={"error": "boom"}), "provider_unavailable"),
        (Reply(status=400, body={"error": "no"}), "provider_request_rejected"),
        (Reply(cut_after=1), "provider_stream_broken"),
        (Reply('{"name": "abc', finish="length"), "answer_truncated"),
    ],
)
async def test_failure_falls_through_to_the_next(
    router: ModelRouter, ollama: FakeOllama, reply: Reply, code: str
) -> None:
    ollama.script(reply)
    completion = await router.complete(ask(answer=Answer), soon())
    assert (completion.provider, completion.skipped) == ("gemini", {"ollama": code})


async def test_hanging_first_provider_leaves_time_for_the_second(router: ModelRouter, ollama: FakeOllama) -> None:
    ollama.script(Reply(before=asyncio.Event()))
    completion = await router.complete(ask(), soon(2))
    assert (completion.provider, completion.skipped) == ("gemini", {"ollama": "provider_timeout"})
    await ollama.disconnected()


async def test_dead_provider_is_left_alone_for_a_while(router: ModelRouter, ollama: FakeOllama) -> None:
    await ollama.stop()
    assert (await router.complete(ask(), soon())).skipped == {"ollama": "provider_unreachable"}
    await ollama.start()
    assert (await router.complete(ask(), soon())).provider == "gemini"
    assert ollama.requests == []
    assert router.snapshot()["ollama"]["breaker"] == "open"
    # Where there is nobody else, it is waited for: the first rest is a second.
    assert (await router.complete(ask("ollama"), soon())).provider == "ollama"
    assert router.snapshot()["ollama"]["breaker"] == "closed"


async def test_delay_beyond_the_deadline_is_not_waited_for(router: ModelRouter, gemini: FakeGemini) -> None:
    gemini.script(Reply(status=429, body=error_body(429, "RESOURCE_EXHAUSTED", quota_details("PerMinute", "53s"))))
    with pytest.raises(ProviderRateLimited):
        await router.complete(ask("gemini", "other"), soon())
    with pytest.raises(NoProvider) as caught:
        await router.complete(ask("gemini", "other"), soon())
    assert caught.value.reasons == {"gemini": "provider_rate_limited", "other": "not_configured"}
    assert 50 < (caught.value.retry_after or 0) <= 53
    assert len(gemini.requests) == 1


async def test_retry_after_is_honoured(router: ModelRouter, gemini: FakeGemini) -> None:
    quota = error_body(429, "RESOURCE_EXHAUSTED", quota_details("PerMinute", "53s"))
    gemini.script(Reply(status=429, body=quota))
    assert (await router.complete(ask("gemini", "ollama"), soon())).provider == "ollama"
    assert (await router.complete(ask("gemini", "ollama"), soon())).skipped == {"gemini": "provider_rate_limited"}
    assert len(gemini.requests) == 1
    assert 50 < router.snapshot()["gemini"]["resting_s"] <= 53


async def test_everybody_failing_is_no_provider_with_reasons(
    router: ModelRouter, ollama: FakeOllama, gemini: FakeGemini
) -> None:
    ollama.script(*[Reply(status=500, body={"error": "boom"})] * 40)
    gemini.script(Reply("x", finish="SAFETY"))
    with pytest.raises(NoProvider) as caught:
        await router.complete(ask("ollama", "gemini", "other"), soon(2))
    assert caught.value.reasons == {
        "ollama": "provider_unavailable",
        "gemini": "answer_blocked",
        "other": "not_configured",
    }
    assert caught.value.retryable
    assert caught.value.cost_usd == pytest.approx((12 * 0.3 + 2.5) / 1e6)


async def test_the_only_provider_configured_speaks_for_itself(gemini: FakeGemini) -> None:
    router = ModelRouter({"gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url)}, {})
    gemini.script(Reply("x", finish="SAFETY"))
    with pytest.raises(ProviderRefused):
        await router.complete(ask(), soon())
    quota = error_body(429, "RESOURCE_EXHAUSTED", quota_details("PerMinute", "53s"))
    gemini.script(Reply(status=429, body=quota))
    with pytest.raises(ProviderRateLimited):
        await router.complete(ask(), soon())
    await router.close()


async def test_the_only_provider_that_can_look_speaks_for_itself(router: ModelRouter, gemini: FakeGemini) -> None:
    """It is not for want of time that nobody described the photo, and another try will not help."""
    gemini.script(Reply("x", finish="SAFETY"))
    with pytest.raises(ProviderRefused):
        await router.complete(ask("gemini", "ollama", images=(JPEG,)), soon())


async def test_nobody_configured_or_no_time() -> None:
    with pytest.raises(NoProvider) as caught:
        await ModelRouter({}, {}).complete(ask(), soon())
    assert caught.value.reasons == {"ollama": "not_configured", "gemini": "not_configured"}
    assert not caught.value.retryable


async def test_no_time_left_is_not_spent(router: ModelRouter, ollama: FakeOllama, gemini: FakeGemini) -> None:
    with pytest.raises(NoProvider) as caught:
        await router.complete(ask(), soon(0.1))
    assert set(caught.value.reasons.values()) == {"deadline_exceeded"}
    assert ollama.requests == gemini.requests == []


async def test_bad_input_is_not_tried_elsewhere(router: ModelRouter, gemini: FakeGemini) -> None:
    with pytest.raises(MediaTypeUnsupported):
        await router.complete(ask("gemini", "ollama", images=(b"%PDF",)), soon())
    assert router.snapshot()["gemini"]["in_use"] == 0


async def test_slots_bound_what_the_provider_sees(router: ModelRouter, ollama: FakeOllama) -> None:
    gate = asyncio.Event()
    ollama.script(Reply(before=gate))
    calls = [asyncio.create_task(router.complete(ask("ollama"), soon())) for _ in range(4)]
    await ollama.received(1)
    assert len(ollama.requests) == 1
    assert (router.snapshot()["ollama"]["in_use"], router.snapshot()["ollama"]["waiting"]) == (1, 3)
    gate.set()
    completions = await asyncio.gather(*calls)
    assert len(ollama.requests) == 4
    assert max(completion.wait_ms for completion in completions) > 50
    assert router.snapshot()["ollama"]["in_use"] == 0


async def test_cancelled_call_gives_its_slot_back(router: ModelRouter, ollama: FakeOllama) -> None:
    ollama.script(Reply(before=asyncio.Event()))
    call = asyncio.create_task(router.complete(ask("ollama"), soon()))
    await ollama.received(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await ollama.disconnected()
    assert router.snapshot()["ollama"]["in_use"] == 0
    assert (await router.complete(ask("ollama"), soon())).provider == "ollama"


async def test_only_failures_in_a_row_are_a_reason_to_rest(router: ModelRouter, ollama: FakeOllama) -> None:
    bad = Reply(status=500, body={"error": "boom"})
    ollama.script(Reply(), bad, bad, Reply(), bad, bad, bad)
    answered_by = [(await router.complete(ask(), soon())).provider for _ in range(6)]
    assert answered_by == ["ollama", "gemini", "gemini", "ollama", "gemini", "gemini"]
    assert router.snapshot()["ollama"]["breaker"] == "closed"
    await router.complete(ask(), soon())
    assert router.snapshot()["ollama"]["breaker"] == "open"


async def test_what_failed_has_been_paid_for(router: ModelRouter, gemini: FakeGemini) -> None:
    gemini.script(Reply("x", finish="SAFETY"))
    completion = await router.complete(ask("gemini", "ollama"), soon())
    assert completion.provider == "ollama"
    assert router.snapshot()["gemini"]["spent_today_usd"] > 0
    # It is part of what this job cost.
    assert completion.cost_usd == pytest.approx(router.snapshot()["gemini"]["spent_today_usd"], abs=1e-6)


async def test_a_first_answer_is_paid_for_although_its_repair_is_cancelled(
    router: ModelRouter, gemini: FakeGemini, metrics: Metrics
) -> None:
    gemini.script(Reply("x"), Reply(before=asyncio.Event()))
    call = asyncio.create_task(router.complete(ask("gemini", answer=Answer), soon()))
    await gemini.hung()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    spent = router.snapshot()["gemini"]["spent_today_usd"]
    assert spent == pytest.approx((12 * 0.3 + 2.5) / 1e6, abs=1e-6)
    told = metrics.registry.get_sample_value("aiworker_llm_cost_usd_total", {"provider": "gemini"})
    assert told == pytest.approx(spent, abs=1e-6)


async def test_a_repair_is_a_request_of_the_quota(ollama: FakeOllama, gemini: FakeGemini) -> None:
    providers = {
        "ollama": OllamaModel(ollama.url, "llama3.2:3b", None, 4096),
        "gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url),
    }
    router = ModelRouter(providers, {"gemini": LaneRules(4, requests_per_minute=20)})
    gemini.script(Reply("x"))
    # Two at once are what 20 a minute allow.
    first = await router.complete(ask("gemini", "ollama", answer=Answer), soon())
    assert (first.provider, first.calls) == ("gemini", 2)
    second = await router.complete(ask("gemini", "ollama"), soon())
    assert (second.provider, second.skipped) == ("ollama", {"gemini": "rate_limited_here"})
    await router.close()


async def test_models_that_were_put_away_have_to_be_loaded_again(ollama: FakeOllama) -> None:
    rules = {"ollama": LaneRules(1, local=True, keep_alive_s=1800)}
    router = ModelRouter({"ollama": OllamaModel(ollama.url, "llama3.2:3b", None, 4096)}, rules)
    await router.complete(ask("ollama"), soon())
    assert router.snapshot()["ollama"]["text_model_loaded"]
    router.model_gone("gemini")
    assert router.snapshot()["ollama"]["text_model_loaded"]
    router.model_gone("ollama")
    assert not router.snapshot()["ollama"]["text_model_loaded"]
    await router.close()


async def test_hedge_asks_a_second_and_closes_the_losers_socket(router: ModelRouter, ollama: FakeOllama) -> None:
    await router.complete(ask(), soon())
    ollama.script(Reply(before=asyncio.Event()))
    completion = await router.complete(ask(hedge=True), soon())
    assert (completion.provider, completion.skipped) == ("gemini", {"ollama": "provider_timeout"})
    await ollama.disconnected()
    assert router.snapshot()["ollama"]["in_use"] == 0


async def test_winner_of_a_race_closes_the_seconds_socket(
    router: ModelRouter, ollama: FakeOllama, gemini: FakeGemini
) -> None:
    await router.complete(ask(), soon())
    gate = asyncio.Event()
    ollama.script(Reply(before=gate))
    gemini.script(Reply(before=asyncio.Event()))
    call = asyncio.create_task(router.complete(ask(hedge=True), soon()))
    await gemini.hung()
    gate.set()
    assert (await call).provider == "ollama"
    # It was the first call that won, not another one after it was given up.
    assert len(ollama.requests) == 2
    await gemini.disconnected()


async def test_retry_info_is_waited_for_when_the_deadline_allows(router: ModelRouter, gemini: FakeGemini) -> None:
    gemini.script(Reply(status=429, body=error_body(429, "RESOURCE_EXHAUSTED", quota_details("PerMinute", "0.3s"))))
    assert (await router.complete(ask("gemini"), soon())).provider == "gemini"
    assert len(gemini.requests) == 2


async def test_a_used_up_day_is_left_alone_until_it_is_over(router: ModelRouter, gemini: FakeGemini) -> None:
    quota = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerDayPerProject", "2s"))
    gemini.script(Reply(status=429, body=quota))
    assert (await router.complete(ask("gemini", "ollama"), soon())).provider == "ollama"
    assert router.snapshot()["gemini"]["resting_s"] > 2


async def test_whoever_finds_the_day_used_up_is_told_when_it_is_over_and_not_the_delay_that_google_names() -> None:
    async with FakeGemini(key="k") as gemini:
        provider = GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url)
        router = ModelRouter({"gemini": provider}, {}, wall=lambda: NOON_IN_CALIFORNIA)
        quota = error_body(429, "RESOURCE_EXHAUSTED", quota_details("GenerateRequestsPerDayPerProject", "53s"))
        gemini.script(Reply(status=429, body=quota))
        with pytest.raises(ProviderRateLimited) as caught:
            await router.complete(ask("gemini"), soon())
        assert caught.value.retry_after == 12 * 3600
        await router.close()


async def test_line_is_sent_away_when_ollama_dies(router: ModelRouter, ollama: FakeOllama) -> None:
    ollama.script(Reply(before=asyncio.Event()))
    calls = [asyncio.create_task(router.complete(ask(), soon())) for _ in range(6)]
    await ollama.hung()
    assert router.snapshot()["ollama"]["waiting"] == 5
    await ollama.stop()
    completions = await asyncio.gather(*calls)
    assert {completion.provider for completion in completions} == {"gemini"}
    # The one that ran broke off, and after it a few found nobody: not all six.
    assert router.snapshot()["ollama"]["failed"] < 5


async def test_what_stays_here_is_not_sent_elsewhere(router: ModelRouter, gemini: FakeGemini) -> None:
    assert (await router.complete(ask("gemini", "ollama", local_only=True), soon())).skipped == {"gemini": "local_only"}
    assert gemini.requests == []


class WatchedRequest(PromptRequest):
    """A request that can be pointed at without being held."""


async def test_a_request_and_its_pictures_go_when_it_is_answered(
    router: ModelRouter, ollama: FakeOllama, gemini: FakeGemini
) -> None:
    """And not when the collector comes round: pictures of a thousand requests may lie there until then."""
    ollama.script(Reply(status=500, body={"error": "boom"}), Reply(cut_after=1), Reply())
    gone = []
    gc.disable()
    try:
        for order in (("gemini",), ("ollama", "gemini"), ("ollama", "gemini"), ("ollama",)):
            request = WatchedRequest("test", "s", "p", order)
            gone.append(weakref.ref(request))
            await router.complete(request, soon())
            del request
        # A cancelled or finished task is let go of one turn of the loop later.
        await asyncio.sleep(0)
        assert [each() for each in gone] == [None] * 4
    finally:
        gc.enable()


async def test_metrics_say_what_happened(router: ModelRouter, ollama: FakeOllama, metrics: Metrics) -> None:
    ollama.script(Reply(status=503, body={"error": "boom"}))
    await router.complete(ask(), soon())
    router.refresh_gauges()

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("aiworker_llm_breaker", provider="ollama", state="open") == 1
    assert value("aiworker_llm_breaker", provider="gemini", state="closed") == 1
    assert value("aiworker_llm_spills_total", provider="ollama", reason="provider_unavailable") == 1
    assert value("aiworker_llm_wasted_calls_total", provider="ollama", reason="provider_unavailable") == 1
    assert value("aiworker_llm_tokens_total", provider="gemini", direction="prompt") == 12
    assert value("aiworker_llm_wait_seconds_count", provider="gemini") == 1
    assert (value("aiworker_llm_cost_today_usd", provider="gemini") or 0) > 0
    assert value("aiworker_llm_slots", provider="gemini", place="running") == 0


async def test_degrades_before_the_deadline_is_lost(ollama: FakeOllama) -> None:
    router = ModelRouter({"ollama": OllamaModel(ollama.url, "llama3.2:3b", None, 4096)}, {})
    ollama.script(Reply(before=asyncio.Event()))
    deadline = soon(1)
    with pytest.raises(ProviderTimeout):
        await router.complete(ask("ollama"), deadline)
    assert deadline.remaining() > 0
    await router.close()
