"""One line of a table of results, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Bar:
    """`limit` None is shown but not checked; `least` tells a floor from a ceiling."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    least: bool = False

    @property
    def met(self) -> bool:
        return self.limit is None or (self.value >= self.limit if self.least else self.value <= self.limit)


def table(bars: Sequence[Bar]) -> Table:
    shown = Table(box=None)
    for heading in ("measure", "value", "bar", ""):
        shown.add_column(heading, overflow="fold")
    for bar in bars:
        limit = "" if bar.limit is None else f"{'>=' if bar.least else '<='} {bar.limit:g}"
        verdict = "" if bar.limit is None else "[green]met[/]" if bar.met else "[red]missed[/]"
        shown.add_row(bar.name, f"{bar.value:.4g} {bar.unit}".strip(), limit, verdict)
    return shown
