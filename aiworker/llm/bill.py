"""What one question to one provider has cost so far, known also where it is taken back."""

from __future__ import annotations

from collections.abc import Callable


class Bill:
    """`calls` that were sent and `cost_usd` of what they used. `on_repair` is called as each call after the first goes
    out."""

    def __init__(self, on_repair: Callable[[], None] | None = None) -> None:
        self.calls = 0
        self.cost_usd = 0.0
        self._on_repair = on_repair

    def note_call(self) -> None:
        self.calls += 1
        if self.calls > 1 and self._on_repair is not None:
            self._on_repair()

    def charge(self, usd: float) -> None:
        self.cost_usd += usd
