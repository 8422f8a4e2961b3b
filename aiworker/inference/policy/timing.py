"""How long a batch of n pictures takes: t(n) = a + b*n, learned while serving, for each engine and shape. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiworker.inference.policy.shape import Shape

_FORGETTING = 0.97
_OUTLIER_FACTOR = 5.0
_RESTORED_WEIGHT = 5.0
_DEVIATIONS = 2.0
_SPREAD = 0.2
"""Variance of the batch sizes seen, below which they cannot tell `a` from `b`."""


class ServiceTime:
    """Least squares over (pictures, seconds), in which a sample counts less with every one after it.

    With one size seen, all is put on `b`: larger batches are then believed slower than they are, and tried one by one
    as deadlines allow. A sample far above the expectation counts as a few times it: one hiccup proves no drift, while a
    real change is believed within a few batches.
    """

    def __init__(self, sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0), deviation: float = 0.0) -> None:
        self._weight, self._n, self._nn, self._t, self._nt = sums
        self._deviation = deviation
        self.a = self.b = 0.0
        self._solve()

    @property
    def known(self) -> bool:
        return self._weight > 0

    def mean(self, n: int) -> float:
        """Expected seconds; 0 where nothing is known."""
        return self.a + self.b * n

    def bound(self, n: int) -> float:
        """Seconds that are seldom exceeded."""
        return self.mean(n) + _DEVIATIONS * self._deviation

    def observe(self, n: int, seconds: float) -> None:
        if self.known:
            expected = self.mean(n)
            seconds = min(seconds, _OUTLIER_FACTOR * expected) if expected > 0 else seconds
            self._deviation += 0.1 * (abs(seconds - expected) - self._deviation)
        keep = _FORGETTING
        self._weight = self._weight * keep + 1
        self._n = self._n * keep + n
        self._nn = self._nn * keep + n * n
        self._t = self._t * keep + seconds
        self._nt = self._nt * keep + n * seconds
        self._solve()

    def dump(self) -> dict[str, Any]:
        """For a file; `load` makes the same again."""
        sums = (self._weight, self._n, self._nn, self._t, self._nt)
        return {"sums": list(sums), "deviation": self._deviation}

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> ServiceTime:
        """Remembers the line but little of its weight: the machine may have changed. Raises ValueError, KeyError."""
        weight, *rest = (float(value) for value in dumped["sums"])
        deviation = float(dumped["deviation"])
        if len(rest) != 4 or not 0 < weight < 1e6 or not all(0 <= value < 1e12 for value in (*rest, deviation)):
            raise ValueError("no service time")
        if rest[0] < 0.99 * weight:
            raise ValueError("a batch has at least one picture")
        scale = min(1.0, _RESTORED_WEIGHT / weight)
        return cls((weight * scale, *(value * scale for value in rest)), deviation)

    def _solve(self) -> None:
        if not self.known:
            return
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - mean_n * mean_n
        slope = (self._nt / self._weight - mean_n * mean_t) / variance if variance > _SPREAD else mean_t / mean_n
        # Neither part of the time can be negative, nor can a picture cost more than the mean one did.
        self.b = min(max(slope, 0.0), mean_t / mean_n)
        self.a = mean_t - self.b * mean_n


class TimingBook:
    """The service times of every engine and shape; shape None stands for pictures of unknown shape."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, Shape | None], ServiceTime] = {}

    def of(self, engine: str, shape: Shape | None) -> ServiceTime:
        """For a shape not seen yet: of the engine's slowest shape, so that no deadline is lost to optimism."""
        exact = self._times.get((engine, shape))
        if exact is not None:
            return exact
        others = [time for (name, _), time in self._times.items() if name == engine]
        return max(others, key=lambda time: time.mean(1), default=_UNKNOWN)

    def observe(self, engine: str, shape: Shape | None, n: int, seconds: float) -> None:
        self._times.setdefault((engine, shape), ServiceTime()).observe(n, seconds)

    def dump(self) -> list[dict[str, Any]]:
        return [{"engine": name, "shape": shape, **time.dump()} for (name, shape), time in self._times.items()]

    def load(self, dumped: object) -> None:
        """Takes what it understands; what is damaged is learned again."""
        for entry in dumped if isinstance(dumped, list) else []:
            try:
                shape = tuple(int(side) for side in entry["shape"]) if entry["shape"] else None
                if shape is None or len(shape) == 2:
                    self._times[str(entry["engine"]), shape] = ServiceTime.load(entry)
            except (KeyError, TypeError, ValueError):
                continue


_UNKNOWN = ServiceTime()
