from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import ProviderTimeout
from aiworker.llm.slots import Slots


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@given(st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=12))
@settings(deadline=None)
def test_slots_go_to_the_most_urgent(urgencies: list[int]) -> None:
    async def scenario() -> list[int]:
        slots, served, gate = Slots("ollama", 1), [], asyncio.Event()
        start = Deadline.after(1000).at

        async def first() -> None:
            async with slots.hold(Deadline.after(60)):
                await gate.wait()

        async def call(urgency: int) -> None:
            async with slots.hold(Deadline(start + urgency)):
                served.append(urgency)

        holder = asyncio.create_task(first())
        await settle()
        calls = [asyncio.create_task(call(urgency)) for urgency in urgencies]
        await settle()
        assert (slots.in_use, slots.waiting) == (1, len(urgencies))
        gate.set()
        await asyncio.gather(holder, *calls)
        assert (slots.in_use, slots.waiting) == (0, 0)
        return served

    assert asyncio.run(scenario()) == sorted(urgencies)


async def test_no_slot_in_time_is_a_timeout() -> None:
    slots = Slots("ollama", 1)
    async with slots.hold(Deadline.after(60)):
        with pytest.raises(ProviderTimeout) as caught:
            async with slots.hold(Deadline.after(0.01)):
                raise AssertionError("two in one slot")
        assert (caught.value.provider, caught.value.details["phase"]) == ("ollama", "slot")
    assert (slots.in_use, slots.waiting) == (0, 0)


async def test_a_slot_granted_to_a_cancelled_waiter_is_not_lost() -> None:
    slots = Slots("ollama", 1)

    async def hold() -> None:
        async with slots.hold(Deadline.after(60)):
            raise AssertionError("the cancellation comes first")

    async with slots.hold(Deadline.after(60)):
        waiter = asyncio.create_task(hold())
        await settle()
    # The slot is the waiter's now, but it has not run since.
    assert slots.in_use == 1
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert slots.in_use == 0
