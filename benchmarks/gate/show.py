"""What the terminal shows: one live table while it runs, then targets and changes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from gate.drive import Log
from gate.plan import Phase
from gate.verdict import Target, percentile
from gate.watch import Watch

_RECENT = 200


@dataclass
class Display:
    """`rich` asks for it a few times a second."""

    log: Log
    watch: Watch
    phases: Sequence[Phase]
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn()
        )
        self._tasks: dict[str, TaskID] = {
            phase.name: self._bars.add_task(phase.title, total=phase.seconds, start=False, note="")
            for phase in self.phases
        }

    def begin(self, phase: Phase) -> None:
        self.watch.phase = phase.name
        self.started = time.time()
        self._bars.start_task(self._tasks[phase.name])

    def end(self, phase: Phase, note: str) -> None:
        task = self._tasks[phase.name]
        self._bars.update(task, completed=phase.seconds, note=note)
        self._bars.stop_task(task)

    def __rich__(self) -> RenderableType:
        if task := self._tasks.get(self.watch.phase):
            self._bars.update(task, completed=time.time() - self.started)
        return Group(self._bars, self._figures())

    def _figures(self) -> Table:
        recent = [call.ms for call in self.log.calls[-_RECENT:]]
        table = Table(box=None)
        for heading in ("jobs sent", "waiting", "running", "requests", "gateway p95", "memory", "mean batch"):
            table.add_column(heading, justify="right")
        if self.watch.samples:
            last = self.watch.samples[-1]
            batch = f"{last.images / last.batches:.2f}" if last.batches else "-"
            http = f"{percentile(recent, 0.95):.0f} ms" if recent else "-"
            counts = (str(len(self.log.sent)), str(last.pending), str(last.processing), str(len(self.log.calls)))
            table.add_row(*counts, http, f"{last.total_mb:.0f} MB", batch)
        return table


def show_targets(console: Console, targets: Sequence[Target]) -> None:
    """One line each, the missed ones in red."""
    table = Table(title="targets", title_justify="left")
    for heading in ("target", "figure", "limit", ""):
        table.add_column(heading, justify="right" if heading in ("figure", "limit") else "left")
    for target in targets:
        sign = "≥" if target.at_least else "<"
        word = "[green]met[/green]" if target.met else "[bold red]missed[/bold red]"
        table.add_row(target.name, f"{target.value:.4g} {target.unit}", f"{sign} {target.limit:g} {target.unit}", word)
    console.print(table)


def show_phases(console: Console, phases: Mapping[str, Mapping[str, Any]]) -> None:
    """Times in seconds, but for the gateway's."""
    table = Table(title="phases", title_justify="left")
    for heading in ("phase", "jobs", "failed", "degraded", "end to end p50", "p95", "pick-up", "http p95", "why"):
        table.add_column(heading, justify="left" if heading in ("phase", "why") else "right")
    for name, each in phases.items():
        whole, pickup, http = each["end_to_end_s"], each["pickup_s"], each["gateway_ms"]
        table.add_row(
            *(name, str(each["jobs"]), str(each["failed"]), str(each["degraded"])),
            *(f"{whole[key]:.2f} s" if whole["n"] else "-" for key in ("p50", "p95")),
            f"{1000 * pickup['p50']:.0f} ms" if pickup["n"] else "-",
            f"{http['p95']:.0f} ms" if http["n"] else "-",
            ", ".join(f"{code} {count}" for code, count in each["why"].items()),
        )
    console.print(table)


def show_old(console: Console, old: Mapping[str, Mapping[str, Any]]) -> None:
    """What the design before this one reached on the same load."""
    table = Table(title="the old design on the same load", title_justify="left")
    for heading in ("load", "jobs done", "pick-up p50", "p95", "end to end p50", "p95"):
        table.add_column(heading, justify="left" if heading == "load" else "right")
    for name, run in old.items():
        times = (run[what].get(key) for what in ("pickup_s", "end_to_end_s") for key in ("p50", "p95"))
        table.add_row(name, f"{run['rate']:.2f}/s", *("-" if each is None else f"{each:.2f} s" for each in times))
    console.print(table)


def show_changes(console: Console, changes: Sequence[tuple[str, float, float, str]]) -> None:
    """Only what is more than noise."""
    told = [each for each in changes if each[3] not in ("noise", "same")]
    if not told:
        console.print("against the last kept run: nothing beyond noise")
        return
    table = Table(title="against the last kept run", title_justify="left")
    for heading in ("figure", "before", "now", ""):
        table.add_column(heading)
    for name, before, now, verdict in told:
        table.add_row(name, f"{before:.4g}", f"{now:.4g}", verdict)
    console.print(table)
