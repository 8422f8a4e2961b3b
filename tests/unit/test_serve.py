"""How a process ends when a service of it does."""

from __future__ import annotations

import asyncio

import pytest

from aiworker.cli.serve import run
from aiworker.domain.errors import ConfigurationError


async def _services(error: Exception) -> None:
    async def fails() -> None:
        raise error

    async with asyncio.TaskGroup() as outer:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fails())
        outer.create_task(asyncio.sleep(0))


def test_an_error_of_ours_is_raised_by_itself_for_its_sentence() -> None:
    with pytest.raises(ConfigurationError, match="aiworker migrate"):
        run(_services(ConfigurationError("run `aiworker migrate`")))


def test_a_bug_keeps_its_whole_trace() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(_services(ZeroDivisionError()))
    assert caught.group_contains(ZeroDivisionError)
