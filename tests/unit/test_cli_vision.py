from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import cast

import pytest
from fakes.ollama_server import FakeOllama

from aiworker.cli.relief import unload_ollama
from aiworker.cli.vision import reloading_on_hangup
from aiworker.domain.errors import InferenceUnavailable
from aiworker.inference.shelf import ModelShelf
from aiworker.settings import load_settings


class _Pool:
    def __init__(self, error: Exception | None = None) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.go_on = asyncio.Event()
        self._error = error

    async def reload(self, model: str, weights: str) -> None:
        self.asked.put_nowait(weights)
        await self.go_on.wait()
        if self._error is not None:
            raise self._error


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    file = tmp_path / "mine.pt"
    file.write_bytes(b"numbers")
    return file


async def test_a_hangup_takes_up_the_weights_that_are_there_now(weights: Path) -> None:
    pool = _Pool()
    pool.go_on.set()
    with reloading_on_hangup(load_settings(yolo_model=str(weights)), cast(ModelShelf, pool)):
        for turn in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            taken = Path(await pool.asked.get())
            assert taken.read_bytes() == weights.read_bytes()
            assert taken.name == weights.name
            weights.write_bytes(b"other numbers, %d" % turn)
            assert taken.read_bytes() != weights.read_bytes(), "a child that starts again finds it unchanged"
            await _ended()


async def test_without_a_place_for_a_copy_the_weights_are_taken_where_they_lie(weights: Path, tmp_path: Path) -> None:
    pool, file = _Pool(), tmp_path / "file"
    pool.go_on.set()
    file.write_bytes(b"no folder")
    with reloading_on_hangup(load_settings(yolo_model=str(weights), models_dir=file), cast(ModelShelf, pool)):
        os.kill(os.getpid(), signal.SIGHUP)
        assert await pool.asked.get() == str(weights)
        await _ended()


async def test_hangups_while_weights_are_taken_up_have_them_taken_up_once_more_afterwards(weights: Path) -> None:
    pool = _Pool()
    with reloading_on_hangup(load_settings(yolo_model=str(weights)), cast(ModelShelf, pool)):
        os.kill(os.getpid(), signal.SIGHUP)
        await pool.asked.get()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
        assert pool.asked.empty()
        pool.go_on.set()
        await _ended()
        assert pool.asked.qsize() == 1


async def _ended() -> None:
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [None, InferenceUnavailable("ValueError: no weights")])
async def test_weights_that_cannot_be_taken_up_stop_nothing(weights: Path, error: Exception | None) -> None:
    pool = _Pool(error)
    pool.go_on.set()
    if error is None:
        weights.unlink()
    with reloading_on_hangup(load_settings(yolo_model=str(weights)), cast(ModelShelf, pool)):
        os.kill(os.getpid(), signal.SIGHUP)
        while not (tasks := asyncio.all_tasks() - {asyncio.current_task()}):
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)


async def test_afterwards_the_signal_is_not_ours(weights: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with reloading_on_hangup(load_settings(yolo_model=str(weights)), cast(ModelShelf, _Pool())):
        pass
    assert signal.getsignal(signal.SIGHUP) == before


async def test_ollama_puts_its_models_away_when_it_is_asked_to() -> None:
    async with FakeOllama({"llama3.2:3b": ("completion",)}) as ollama:
        ollama.loaded["llama3.2:3b"] = 4096
        told: list[None] = []
        await unload_ollama(ollama.url, lambda: told.append(None))
        assert told == [None]
        assert ollama.loaded == {}
        url = ollama.url
    await unload_ollama(url, lambda: told.append(None))
    assert told == [None]
