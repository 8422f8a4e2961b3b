"""`aiworker models` against a fake Ollama on a real socket, by the official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
from fakes.ollama_server import FakeOllama
from rich.console import Console, RenderableType

from aiworker.cli.doctor import Verdict, check_ollama, check_personal_data
from aiworker.cli.models import details, ollama_table, pull
from aiworker.cli.placement import placement_for
from aiworker.cli.relief import unload_ollama
from aiworker.domain.errors import ConfigurationError, ModelNotFound, ProviderUnavailable, WeightsUnavailable
from aiworker.inference.devices import OllamaShare
from aiworker.settings import Settings, load_settings


@pytest.fixture
async def server() -> AsyncIterator[FakeOllama]:
    async with FakeOllama() as running:
        yield running


def settings_for(url: str | None, **more: object) -> Settings:
    return load_settings(ollama_url=url, ollama_vision_model="qwen2.5vl:3b", **more)


def text_of(shown: RenderableType | None) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


async def test_the_list_says_what_is_used_loaded_and_missing(server: FakeOllama) -> None:
    server.loaded["llama3.2:3b"] = 4096
    del server.models["qwen2.5vl:3b"]
    shown = text_of(await asyncio.to_thread(ollama_table, settings_for(server.url)))
    text, vision = (line for line in shown.splitlines() if line.strip().startswith(("llama", "qwen")))
    assert "text" in text
    assert "0.1 GB, 0.0 GB of it on the GPU" in text
    assert "vision" in vision
    assert "aiworker models pull qwen2.5vl:3b" in vision
    assert ollama_table(settings_for(None)) is None


async def test_placement_sees_what_ollama_holds(server: FakeOllama) -> None:
    server.loaded["llama3.2:3b"] = 4096
    machine, placement = await asyncio.to_thread(placement_for, settings_for(server.url))
    # 143,762,688 bytes, as recorded.
    assert machine.ollama == OllamaShare(ram_mb=pytest.approx(137.1, abs=0.01), vram_mb=0)
    assert any("137 that Ollama holds" in note for note in placement.notes)
    await server.stop()
    machine, _ = await asyncio.to_thread(placement_for, settings_for(server.url))
    assert machine.ollama is None


async def test_proxies_are_not_for_ollama(server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.loaded["llama3.2:3b"] = 4096
    settings = settings_for(server.url)
    assert "llama3.2:3b" in text_of(await asyncio.to_thread(ollama_table, settings))
    machine, _ = await asyncio.to_thread(placement_for, settings)
    assert machine.ollama is not None
    told: list[None] = []
    await unload_ollama(server.url, lambda: told.append(None))
    assert server.loaded == {}


async def test_show_says_what_a_model_can(server: FakeOllama) -> None:
    settings = settings_for(server.url)
    shown = text_of(await asyncio.to_thread(details, settings, "qwen2.5vl:3b"))
    for fact in ("134.52M", "Q4_1", "8192 tokens", "completion, vision", "1.00 million pixels", "apache-2.0", "vision"):
        assert fact in shown
    assert "reads pictures of  no" in text_of(await asyncio.to_thread(details, settings, "llama3.2:3b"))
    with pytest.raises(ModelNotFound, match="aiworker models pull nope"):
        await asyncio.to_thread(details, settings, "nope")


async def test_pull_shows_a_bar_and_then_the_model_is_there(server: FakeOllama) -> None:
    server.library["gemma3:4b"] = ("completion", "vision")
    console = Console(file=StringIO(), width=160, force_terminal=True)
    await asyncio.to_thread(pull, settings_for(server.url), "gemma3:4b", console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "━" in shown
    assert "143.8/143.8 MB" in shown
    assert "is in Ollama" in shown
    assert "gemma3:4b" in server.models
    with pytest.raises(ModelNotFound, match="library"):
        await asyncio.to_thread(pull, settings_for(server.url), "no-such-model", console)


@pytest.mark.parametrize("how", ["end", "abort"])
async def test_a_pull_that_breaks_off_says_to_go_on(server: FakeOllama, how: Literal["end", "abort"]) -> None:
    server.library["gemma3:4b"] = ("completion",)
    server.pull_breaks = how
    with pytest.raises(ProviderUnavailable, match=r"broke off at 'pulling .*run it again"):
        await asyncio.to_thread(pull, settings_for(server.url), "gemma3:4b", Console(file=StringIO()))


async def test_no_ollama_is_said_with_what_to_do(server: FakeOllama) -> None:
    settings = settings_for(server.url)
    await server.stop()
    for call in (
        lambda: ollama_table(settings),
        lambda: details(settings, "x"),
        lambda: pull(settings, "x", Console()),
    ):
        with pytest.raises(ProviderUnavailable, match="correct OLLAMA_URL"):
            await asyncio.to_thread(call)
    with pytest.raises(ConfigurationError, match="yolov8n"):
        details(settings_for(None), "x")


async def test_an_address_with_a_path_too_much_is_no_missing_model(server: FakeOllama) -> None:
    settings = settings_for(f"{server.url}/v1")
    for call in (
        lambda: ollama_table(settings),
        lambda: details(settings, "llama3.2:3b"),
        lambda: pull(settings, "x", Console()),
    ):
        with pytest.raises(ProviderUnavailable, match=r"no Ollama at .*/v1 \(404\).* correct OLLAMA_URL"):
            await asyncio.to_thread(call)


def test_an_address_is_shown_without_its_password() -> None:
    with pytest.raises(ProviderUnavailable, match=r"no Ollama at 127\.0\.0\.1:1 ") as caught:
        ollama_table(settings_for("http://user:secret@127.0.0.1:1"))
    assert "secret" not in str(caught.value)


def test_show_of_weights(tmp_path: Path, yolo_weights: Path) -> None:
    shown = text_of(details(load_settings(models_dir=yolo_weights.parent), "yolov8n.pt"))
    assert "as YOLO_MODEL" in shown
    assert "6.5 MB" in shown
    with pytest.raises(WeightsUnavailable):
        details(load_settings(models_dir=tmp_path), "yolov8s")


async def test_doctor_says_which_models_do_not_fit(server: FakeOllama) -> None:
    server.models["qwen2.5vl:3b"] = ("completion",)
    server.remote.add("llama3.2:3b")
    _, text, vision = await check_ollama(settings_for(server.url, local_only="sofia_text"))
    assert (text.verdict, vision.verdict) == (Verdict.WARN, Verdict.WARN)
    assert "cloud" in text.found
    assert "text only" in vision.found
    _, text, _ = await check_ollama(settings_for(server.url))
    assert text.verdict is Verdict.OK
    assert "cloud" in text.found


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"gemini_api_key": None}, Verdict.OK, "nothing is sent"),
        ({}, Verdict.OK, "sent to Gemini: sofia_image, sofia_text, unified_assistant; kept here: nothing"),
        ({"local_only": "sofia_text", "ollama_url": "http://o"}, Verdict.OK, "kept here: sofia_text"),
        ({"local_only": "all"}, Verdict.WARN, "sent to Gemini: nothing"),
        ({"local_only": "sofia"}, Verdict.FAIL, "LOCAL_ONLY is wrong"),
    ],
)
async def test_doctor_on_personal_data(changes: dict[str, object], verdict: Verdict, words: str) -> None:
    settings = load_settings(**{"gemini_api_key": "k", "ollama_url": None, **changes})
    (finding,) = await check_personal_data(settings)
    assert finding.verdict is verdict
    assert words in finding.found
