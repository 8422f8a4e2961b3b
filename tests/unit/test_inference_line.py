from __future__ import annotations

import asyncio

import pytest

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import DeadlineExceeded, ImageKillsChild, InferenceUnavailable, MediaTooLarge
from aiworker.inference.line import RequestLine
from aiworker.inference.messages import MAX_IMAGE_BYTES, ItemDetected, ItemFailed, Ready

_READY = Ready("fake", (7,), ("thing",), load_s=0.0, rss_mb=0.0)


def _line(max_batch: int = 8) -> RequestLine:
    return RequestLine("model", max_batch, on_work=lambda: None)


def _found(item: int) -> ItemDetected:
    return ItemDetected(item, 4, 3, ((7, 0.5, 0.0, 0.0, 1.0, 1.0), (9, 0.4, 0.0, 0.0, 1.0, 1.0)), 2.5, 1)


async def _asked(line: RequestLine, seconds: float = 30.0) -> asyncio.Task[object]:
    waiting = len(line)
    task: asyncio.Task[object] = asyncio.create_task(line.ask(b"picture", Deadline.after(seconds)))
    while len(line) == waiting:
        await asyncio.sleep(0)
    return task


async def test_an_answer_carries_names_and_figures() -> None:
    line = _line()
    asking = asyncio.create_task(line.ask(b"picture", Deadline.after(30)))
    await asyncio.sleep(0)
    (request,) = line.take(idle_lanes=1)
    line.detected(request, _found(request.id), _READY)
    found = await asking
    assert [item.class_name for item in found.items] == ["thing", "9"]
    assert (found.width, found.height, found.model, found.engine, found.inference_ms) == (4, 3, "model", "fake", 2.5)


async def test_a_request_given_back_is_served_next_and_its_third_death_alone_condemns_it() -> None:
    line = _line()
    asking = await _asked(line)
    for _ in range(2):
        line.give_back(line.take(1), was_alone=True)
    assert not asking.done()
    line.give_back(line.take(1), was_alone=True)
    with pytest.raises(ImageKillsChild):
        await asking


async def test_after_two_deaths_a_request_shares_no_batch() -> None:
    line = _line()
    tasks = [await _asked(line) for _ in range(3)]
    for _ in range(2):
        line.give_back(line.take(1), was_alone=False)
    for _ in range(3):
        (request,) = line.take(1)
        line.detected(request, _found(request.id), _READY)
    await asyncio.gather(*tasks)


async def test_nobody_waits_for_a_request_that_its_caller_gave_up() -> None:
    line = _line()
    asking = await _asked(line)
    held = line.take(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    line.give_back(held, was_alone=True)
    assert len(line) == 0
    line.detected(held[0], _found(held[0].id), _READY)
    line.failed(held[0], ItemFailed(held[0].id, "image_unreadable", ""))


async def test_a_late_request_leaves_the_line() -> None:
    line = _line()
    with pytest.raises(DeadlineExceeded):
        await line.ask(b"picture", Deadline.after(0.0))
    assert len(line) == 0


async def test_an_unknown_failure_may_be_tried_again() -> None:
    line = _line()
    asking = await _asked(line)
    (request,) = line.take(1)
    line.failed(request, ItemFailed(request.id, "no_such_code", "RuntimeError"))
    with pytest.raises(InferenceUnavailable, match="RuntimeError"):
        await asking


async def test_a_picture_that_no_frame_holds_is_refused() -> None:
    with pytest.raises(MediaTooLarge):
        await _line().ask(bytes(MAX_IMAGE_BYTES + 1), Deadline.after(30))
