"""The one TextModel that analyses see: asks the providers so that one answers in time, and wastes little."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.llm.allowance import Spend
from aiworker.llm.flight import Provider, Surroundings
from aiworker.llm.lane import Lane, LaneRules, Moment
from aiworker.llm.measures import Measures, described
from aiworker.llm.pursuit import Pursuit
from aiworker.llm.tuning import Tuning
from aiworker.telemetry.metrics import Metrics


class ModelRouter:
    """`rules` by provider name; a provider that they do not name gets one slot. `clock` must be the event loop's."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        rules: Mapping[str, LaneRules],
        metrics: Metrics | None = None,
        *,
        tuning: Tuning | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
    ) -> None:
        tuning = tuning or Tuning()
        self._providers = dict(providers)
        self._lanes = {name: Lane(name, rules.get(name, LaneRules()), tuning) for name in providers}
        self._clock, self._wall = clock, wall
        self._measures = Measures(metrics or Metrics())
        # In the order in which they came, which is the order in which they are woken.
        self._under_way: dict[Pursuit, None] = {}
        self._around = Surroundings(
            self._providers, self._lanes, tuning, self._now, self._measures, changed=self._wake_all, dice=dice
        )

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """The first good answer, with `skipped` saying why those before it gave none.

        Raises InputRejected as it comes; the provider's own error where only one is configured and it failed;
        NoProvider with all reasons otherwise.
        """
        pursuit = Pursuit(self._around, request, deadline)
        self._under_way[pursuit] = None
        try:
            return await pursuit.run()
        finally:
            del self._under_way[pursuit]

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Per provider, for a person who looks: breaker, slots, speeds and money. Times in seconds."""
        moment = self._now()
        return {
            name: {"sees_images": self._providers[name].sees_images, **described(lane, moment)}
            for name, lane in self._lanes.items()
        }

    def refresh_gauges(self) -> None:
        """For a scrape."""
        moment = self._now()
        for lane in self._lanes.values():
            self._measures.refresh(lane, moment)

    def unsaved_spend(self) -> list[Spend]:
        """Of each provider elsewhere: what it has cost today that `spend_saved` was not told of."""
        moment = self._now()
        return [lane.unsaved_spend(moment) for lane in self._lanes.values() if not lane.rules.local]

    def spend_saved(self, spend: Spend, total_usd: float) -> None:
        """`spend` is part of `total_usd` now, which is that day's of all workers, before a restart too."""
        self._lanes[spend.provider].spend_saved(self._now(), spend, total_usd)
        self._wake_all()

    def model_gone(self, name: str) -> None:
        """The models of this provider are out of memory: the next call has to load one."""
        if name in self._lanes:
            self._lanes[name].residence.gone()

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()

    def _now(self) -> Moment:
        return Moment(self._clock(), self._wall())

    def _wake_all(self) -> None:
        for pursuit in list(self._under_way):
            pursuit.nudge()
