"""`aiworker models`: what weights there are and getting them."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from aiworker.domain.errors import WeightsUnavailable
from aiworker.inference.weights import KNOWN_WEIGHTS, pull_weights, resolve_weights
from aiworker.settings import Settings


def weights_table(settings: Settings) -> Table:
    """One row for each known file."""
    table = Table(box=None)
    for heading in ("name", "here", "sha256"):
        table.add_column(heading, overflow="fold")
    for name, known in KNOWN_WEIGHTS.items():
        try:
            here = str(resolve_weights(name, settings.models_dir))
        except WeightsUnavailable:
            here = f"no: aiworker models pull {name}"
        table.add_row(f"{name}{' (YOLO_MODEL)' if name == settings.yolo_model else ''}", here, known.sha256)
    return table


def pull(settings: Settings, name: str, console: Console) -> None:
    """Gets `name` with a progress bar and prints where it is."""
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(source: str, done: int, total: int) -> None:
            if source not in tasks:
                tasks[source] = bar.add_task(source, total=total)
            bar.update(tasks[source], completed=done, total=total)

        path = pull_weights(name, settings.models_dir, on_progress)
    console.print(f"[bold]{path}[/bold]")
