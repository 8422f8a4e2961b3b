"""Looks after the children at intervals: alive, seeing, within memory; and keeps what was learned of their speed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import orjson

from aiworker.inference.lanes.driver import Driver
from aiworker.inference.lanes.fleet import Fleet
from aiworker.inference.lanes.lane import Lane
from aiworker.inference.lanes.reports import Reports
from aiworker.inference.lanes.watch import look_at
from aiworker.inference.messages import Ping
from aiworker.inference.policy.care import Care, CareRules, Condition, Need
from aiworker.inference.policy.supervision import LaneState
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)
_TICK_S = 0.25
_SAVE_S = 60.0


class Caretaker:
    """`times` is the file for learned service times; None keeps them in memory only."""

    def __init__(
        self, driver: Driver, fleet: Fleet, rules: CareRules, reports: Reports, times: Path | None = None
    ) -> None:
        self._driver = driver
        self._fleet = fleet
        self._care = Care(rules)
        self._reports = reports
        self._times = times
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._pings = 0

    @property
    def paused(self) -> bool:
        """Memory is short: new requests wait outside."""
        return self._care.paused

    async def admitted(self) -> None:
        """Returns when new requests may come in."""
        await self._admitting.wait()

    def close(self) -> None:
        """Nobody waits outside any more; the pool says why it does not take them."""
        self._admitting.set()

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.to_thread(self._load_times)
        saved_at = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                self._look_after(now)
                if now - saved_at >= _SAVE_S:
                    saved_at = now
                    await asyncio.to_thread(self._save_times, self._driver.scheduler.times.dump())
                await asyncio.sleep(_TICK_S)
        finally:
            self._save_times(self._driver.scheduler.times.dump())

    def _look_after(self, now: float) -> None:
        for lane in self._fleet.everyone:
            if lane.check(now):
                self._pings += 1
                lane.send(Ping(self._pings))
        self._admit()
        lanes = {lane.index: lane for lane in self._fleet.staying}
        serving = [self._condition(lane, now) for lane in lanes.values() if self._driver.scheduler.load(lane.index)]
        coming = any(lane.state in (LaneState.STARTING, LaneState.DEAD) for lane in lanes.values())
        quiet = not (self._driver.scheduler.waiting or coming)
        for index, need in self._care.needs(serving, quiet=quiet, replacing=self._fleet.replacing):
            if need is Need.CANARY:
                self._driver.test_eyes(lanes[index])
            elif need is Need.RESTART:
                self._reports.recycled()
                lanes[index].condemn("recycled: memory is short")
            else:
                self._recycle(lanes[index])

    def _condition(self, lane: Lane, now: float) -> Condition:
        load = self._driver.scheduler.load(lane.index)
        busy = bool(load and load.flights)
        return Condition(lane.index, lane.rss_mb, lane.fresh_mb, busy, self._driver.seen_s(lane, now))

    def _recycle(self, lane: Lane) -> None:
        _log.info("inference child recycled", lane=lane.index, rss_mb=lane.rss_mb, fresh_mb=lane.fresh_mb)
        self._reports.recycled()
        self._fleet.replace(lane, lane.spec).add_done_callback(_noted)

    def _admit(self) -> None:
        own = look_at(os.getpid())
        used_mb = (own.rss_mb if own else 0.0) + sum(lane.rss_mb for lane in self._fleet.everyone)
        if not self._care.admit(used_mb):
            return
        if self._care.paused:
            self._admitting.clear()
            self._reports.admission_paused()
        else:
            self._admitting.set()
        _log.warning("admission", paused=self._care.paused, used_mb=round(used_mb))

    def _load_times(self) -> None:
        """A file that is missing or damaged is learned again."""
        if self._times is not None and self._times.is_file():
            try:
                self._driver.scheduler.times.load(orjson.loads(self._times.read_bytes()))
            except (OSError, orjson.JSONDecodeError) as error:
                _log.warning("service times not read", reason=type(error).__name__)

    def _save_times(self, times: object) -> None:
        """Whole or not at all. A disk that is full costs the learned times and nothing else."""
        if self._times is None or not times:
            return
        try:
            self._times.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._times.with_name(f"{self._times.name}.{os.getpid()}")
            fresh.write_bytes(orjson.dumps(times))
            fresh.replace(self._times)
        except OSError as error:
            _log.warning("service times not kept", reason=type(error).__name__)


def _noted(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("inference child not replaced", reason=str(error))
