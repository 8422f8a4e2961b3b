"""What benchmarks share: a line of a table with its bar, the table, and an environment for peers."""

from __future__ import annotations

import os
import platform
import subprocess
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Bar:
    """One line of the table. `limit` None is shown but not checked; `least` tells a floor from a ceiling."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    least: bool = False

    @property
    def met(self) -> bool:
        return self.limit is None or (self.value >= self.limit if self.least else self.value <= self.limit)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table_of(bars: Sequence[Bar], subject: str, note: str = "") -> Table:
    """The figures beside their bars."""
    title = f"{subject}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{note}"
    table = Table(title=title)
    for heading in ("measure", "figure", "bar", ""):
        table.add_column(heading, justify="right" if heading in ("figure", "bar") else "left")
    for bar in bars:
        limit = "" if bar.limit is None else f"{'>=' if bar.least else '<='} {bar.limit:g} {bar.unit}"
        verdict = "" if bar.limit is None else ("met" if bar.met else "MISSED")
        table.add_row(bar.name, f"{_shown(bar.value)} {bar.unit}", limit, verdict)
    return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"


def prepare_peers(environment: Path, requirements: Path, names: str, console: Console) -> None:
    """An environment of the peers' own, from the pinned list, unless it is there already."""
    stamp = environment / "installed"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    console.print(f"[dim]installing {names}[/dim]")
    venv.create(environment, with_pip=True, clear=True)
    command = [str(environment / "bin" / "pip"), "install", "--quiet", "--no-deps", "-r", str(requirements)]
    subprocess.run(command, check=True)
    stamp.write_text(requirements.read_text())
