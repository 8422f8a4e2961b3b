"""The one TextModel that analyses see: asks providers in order until one answers in time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import NoProvider, ProviderError
from aiworker.llm.choice import NOT_CONFIGURED, Choice, Standing, choose, outages_after, rest_after
from aiworker.llm.slots import Slots
from aiworker.telemetry.metrics import Metrics


class Provider(Protocol):
    """A TextModel with a name and a session to close."""

    @property
    def name(self) -> str: ...

    @property
    def sees_images(self) -> bool: ...

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Lane:
    """One provider with its slots and what its last calls said."""

    provider: Provider
    slots: Slots
    rest_until: float = 0.0
    rest_code: str = ""
    outages_in_row: int = 0
    answered: int = 0
    failed: int = 0

    def standing(self) -> Standing:
        resting_s = max(0.0, self.rest_until - time.monotonic())
        return Standing(self.provider.sees_images, resting_s, self.rest_code)


class ModelRouter:
    """`slots` is calls at the same time per provider name; a provider that it does not name gets one."""

    def __init__(
        self, providers: Mapping[str, Provider], slots: Mapping[str, int], metrics: Metrics | None = None
    ) -> None:
        self._lanes = {name: _Lane(provider, Slots(name, slots.get(name, 1))) for name, provider in providers.items()}
        self._metrics = metrics or Metrics()

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """The first good answer, with `skipped` saying why those before it gave none.

        Raises InputRejected as it comes; the provider's own error where only one is configured and it failed;
        NoProvider with all reasons otherwise.
        """
        errors: dict[str, ProviderError] = {}
        while True:
            choice = choose(
                request.order,
                {name: lane.standing() for name, lane in self._lanes.items()},
                failed={name: error.code for name, error in errors.items()},
                needs_images=bool(request.images),
                remaining_s=deadline.remaining(),
            )
            if choice.name is None:
                raise _nobody(choice, errors)
            try:
                completion = await self._call(choice.name, request, deadline.within(choice.budget_s))
            except ProviderError as error:
                errors[choice.name] = error
                continue
            skipped = choice.skipped | {name: error.code for name, error in errors.items()}
            return dataclasses.replace(completion, skipped=_before(choice.name, request.order, skipped))

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Per provider: state (up or resting), resting_s, reason, slots, in_use, waiting, answered, failed."""
        return {name: _described(lane) for name, lane in self._lanes.items()}

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.provider.close()

    async def _call(self, name: str, request: PromptRequest, deadline: Deadline) -> Completion:
        lane = self._lanes[name]
        started = time.perf_counter()
        try:
            completion = await self._in_slot(lane, request, deadline)
        except ProviderError as error:
            self._note_failure(lane, error)
            raise
        self._note_answer(lane, completion, time.perf_counter() - started)
        return completion

    async def _in_slot(self, lane: _Lane, request: PromptRequest, deadline: Deadline) -> Completion:
        started = time.perf_counter()
        async with lane.slots.hold(deadline):
            waited_ms = 1000 * (time.perf_counter() - started)
            completion = await lane.provider.complete(request, deadline)
        return dataclasses.replace(completion, wait_ms=completion.wait_ms + waited_ms)

    def _note_failure(self, lane: _Lane, error: ProviderError) -> None:
        lane.failed += 1
        lane.outages_in_row = outages_after(error, lane.outages_in_row)
        self._metrics.llm_calls.labels(lane.provider.name, error.code).inc()
        rest_s = rest_after(error, lane.outages_in_row)
        if rest_s > 0:
            lane.rest_until = max(lane.rest_until, time.monotonic() + rest_s)
            lane.rest_code = error.code

    def _note_answer(self, lane: _Lane, completion: Completion, seconds: float) -> None:
        lane.answered += 1
        lane.outages_in_row = 0
        name = lane.provider.name
        self._metrics.llm_calls.labels(name, "answered").inc()
        self._metrics.llm_seconds.labels(name).observe(seconds)
        self._metrics.llm_tokens.labels(name, "prompt").inc(completion.prompt_tokens)
        self._metrics.llm_tokens.labels(name, "answer").inc(completion.answer_tokens)
        self._metrics.llm_cost.labels(name).inc(completion.cost_usd)


def _nobody(choice: Choice, errors: Mapping[str, ProviderError]) -> ProviderError:
    others = set(choice.skipped.values()) - {NOT_CONFIGURED}
    if len(errors) == 1 and not others:
        return next(iter(errors.values()))
    waits = [error.retry_after or 0.0 for error in errors.values() if error.retryable]
    if choice.back_in_s is not None:
        waits.append(choice.back_in_s)
    reasons = choice.skipped | {name: error.code for name, error in errors.items()}
    return NoProvider("nobody could answer", reasons=reasons, retry_after=min(waits, default=None))


def _before(name: str, order: Sequence[str], skipped: Mapping[str, str]) -> dict[str, str]:
    return {earlier: skipped[earlier] for earlier in order[: order.index(name)] if earlier in skipped}


def _described(lane: _Lane) -> dict[str, Any]:
    resting_s = lane.standing().resting_s
    return {
        "state": "resting" if resting_s else "up",
        "resting_s": round(resting_s, 1),
        "reason": lane.rest_code if resting_s else None,
        "sees_images": lane.provider.sees_images,
        "slots": lane.slots.size,
        "in_use": lane.slots.in_use,
        "waiting": lane.slots.waiting,
        "answered": lane.answered,
        "failed": lane.failed,
    }
