"""`aiworker models`: YOLO weights and Ollama's models, what there is and getting it."""

from __future__ import annotations

import asyncio

import httpx
import ollama
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from aiworker.domain.errors import ConfigurationError, ProviderUnavailable, WeightsUnavailable
from aiworker.inference.weights import KNOWN_WEIGHTS, pull_weights, resolve_weights
from aiworker.settings import Settings

_LIST_TIMEOUT_S = 10.0
_OLLAMA_FAILURES = (ollama.ResponseError, ConnectionError, httpx.HTTPError)


def weights_table(settings: Settings) -> Table:
    """One row for each known file of weights."""
    table = Table(box=None)
    for heading in ("YOLO weights", "here", "sha256"):
        table.add_column(heading, overflow="fold")
    for name, known in KNOWN_WEIGHTS.items():
        try:
            here = str(resolve_weights(name, settings.models_dir))
        except WeightsUnavailable:
            here = f"no: aiworker models pull {name}"
        table.add_row(f"{name}{' (YOLO_MODEL)' if name == settings.yolo_model else ''}", here, known.sha256)
    return table


def ollama_table(settings: Settings) -> Table | None:
    """One row for each model that Ollama has; None where OLLAMA_URL is not set. Raises ProviderUnavailable."""
    if not settings.ollama_url:
        return None
    table = Table(box=None)
    for heading in ("Ollama model", "size", "used as"):
        table.add_column(heading)
    try:
        listed = ollama.Client(host=settings.ollama_url, timeout=_LIST_TIMEOUT_S).list()
    except _OLLAMA_FAILURES as error:
        raise _unreachable(settings, error) from None
    roles = {settings.ollama_model: "text", settings.ollama_vision_model: "vision"}
    for model in listed.models:
        table.add_row(model.model or "", f"{(model.size or 0) / 1e9:.1f} GB", roles.get(model.model, ""))
    return table


def pull(settings: Settings, name: str, console: Console) -> None:
    """Gets YOLO weights, or any other name from Ollama, with a progress bar."""
    if name.removesuffix(".pt") in KNOWN_WEIGHTS:
        _pull_weights(settings, name, console)
    elif settings.ollama_url:
        asyncio.run(_pull_from_ollama(settings, name, console))
    else:
        known = ", ".join(KNOWN_WEIGHTS)
        raise ConfigurationError(f"{name!r} is none of the known weights ({known}); for an Ollama model set OLLAMA_URL")


def _bars(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console)


def _pull_weights(settings: Settings, name: str, console: Console) -> None:
    with _bars(console) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(source: str, done: int, total: int) -> None:
            if source not in tasks:
                tasks[source] = bars.add_task(source, total=total)
            bars.update(tasks[source], completed=done, total=total)

        path = pull_weights(name, settings.models_dir, on_progress)
    console.print(f"[bold]{path}[/bold]")


async def _pull_from_ollama(settings: Settings, name: str, console: Console) -> None:
    try:
        with _bars(console) as bars:
            tasks: dict[str, TaskID] = {}
            async for part in await ollama.AsyncClient(host=settings.ollama_url).pull(name, stream=True):
                what = part.status or name
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=part.total)
                bars.update(tasks[what], completed=part.completed or 0, total=part.total)
    except _OLLAMA_FAILURES as error:
        raise _unreachable(settings, error) from None
    console.print(f"[bold]{name}[/bold] is in Ollama")


def _unreachable(settings: Settings, error: Exception) -> ProviderUnavailable:
    if isinstance(error, ollama.ResponseError):
        return ProviderUnavailable(f"Ollama refused ({error.status_code}): {error.error}", provider="ollama")
    note = f"no Ollama at {settings.ollama_url} ({type(error).__name__}): start it, or correct OLLAMA_URL"
    return ProviderUnavailable(note, provider="ollama")
