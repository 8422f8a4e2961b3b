"""`aiworker models`: YOLO weights and Ollama's models, what there is and getting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import ollama
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.table import Table

from aiworker.domain.errors import ConfigurationError, ModelNotFound, ProviderUnavailable, WeightsUnavailable
from aiworker.inference.weights import KNOWN_WEIGHTS, KnownWeights, pull_weights, resolve_weights
from aiworker.llm.pictures import pixels_read
from aiworker.settings import Settings

_TIMEOUT_S = 10.0


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
    for heading in ("Ollama model", "size", "used as", "in memory"):
        table.add_column(heading)
    with _ollama(settings) as client:
        listed, loaded = client.list().models, _loaded(client)
    roles = _roles(settings)
    for model in listed:
        name = model.model or ""
        table.add_row(name, _gigabytes(model.size), roles.pop(name, ""), loaded.get(name, ""))
    for missing, role in roles.items():
        table.add_row(missing, "", role, f"not pulled: aiworker models pull {missing}")
    return table


def details(settings: Settings, name: str) -> Table:
    """What is known of weights or of one of Ollama's models.

    Raises ConfigurationError for a name of neither, ModelNotFound, WeightsUnavailable, ProviderUnavailable.
    """
    table = Table(box=None, show_header=False)
    known = KNOWN_WEIGHTS.get(name.removesuffix(".pt"))
    for what, value in _of_weights(settings, name, known) if known else _of_ollama(settings, name):
        table.add_row(f"[bold]{what}[/bold]", value)
    return table


def _of_weights(settings: Settings, name: str, known: KnownWeights) -> list[tuple[str, str]]:
    return [
        ("file", str(resolve_weights(name, settings.models_dir))),
        ("size", f"{known.size / 1e6:.1f} MB"),
        ("sha256", known.sha256),
        ("source", known.url),
        ("licence", "AGPL-3.0-or-later (Ultralytics), trained on COCO's 80 classes"),
        ("used", "yes, as YOLO_MODEL" if name.removesuffix(".pt") == settings.yolo_model else "no"),
    ]


def _of_ollama(settings: Settings, name: str) -> list[tuple[str, str]]:
    with _ollama(settings, name) as client:
        shown, loaded = client.show(name), _loaded(client)
    info = {key.partition(".")[2]: value for key, value in (shown.modelinfo or {}).items()}
    capabilities = shown.capabilities or []
    pixels = f"{pixels_read(shown.modelinfo or {}) / 1e6:.2f} million pixels" if "vision" in capabilities else "no"
    kind = shown.details
    return [
        ("model", name),
        ("family", (kind and kind.family) or "unknown"),
        ("parameters", (kind and kind.parameter_size) or "unknown"),
        ("quantisation", (kind and kind.quantization_level) or "unknown"),
        (
            "context",
            f"{info.get('context_length', 'unknown')} tokens, of which OLLAMA_NUM_CTX={settings.ollama_num_ctx}",
        ),
        ("can", ", ".join(capabilities) or "unknown"),
        ("reads pictures of", pixels),
        ("licence", str(info.get("license") or (shown.license or "unknown").splitlines()[0])),
        ("used as", _roles(settings).get(_tagged(name), "nothing")),
        ("in memory", loaded.get(_tagged(name), "no")),
    ]


def _loaded(client: ollama.Client) -> dict[str, str]:
    return {
        model.name or "": f"{_gigabytes(model.size)}, {_gigabytes(model.size_vram)} of it on the GPU"
        for model in client.ps().models
    }


def _roles(settings: Settings) -> dict[str, str]:
    roles = {_tagged(settings.ollama_model): "text"}
    if settings.ollama_vision_model:
        both = settings.ollama_vision_model == settings.ollama_model
        roles[_tagged(settings.ollama_vision_model)] = "text and vision" if both else "vision"
    return roles


def _tagged(name: str) -> str:
    """As Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _gigabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e9:.1f} GB"


def pull(settings: Settings, name: str, console: Console) -> None:
    """Gets YOLO weights, or any other name from Ollama, with a progress bar."""
    if name.removesuffix(".pt") in KNOWN_WEIGHTS:
        _pull_weights(settings, name, console)
    else:
        _pull_from_ollama(settings, name, console)


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


def _pull_from_ollama(settings: Settings, name: str, console: Console) -> None:
    with _ollama(settings, name, timeout_s=None) as client, _bars(console) as bars:
        tasks: dict[str, TaskID] = {}
        what = ""
        try:
            for part in client.pull(name, stream=True):
                what = part.status or name
                if not part.total:
                    console.print(what, markup=False)
                    continue
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=part.total)
                bars.update(tasks[what], completed=part.completed or 0, total=part.total)
        except httpx.HTTPError:
            if not what:
                raise
        if what != "success":
            note = f"broke off at {what or 'the start'!r}: run it again, and it goes on from there"
            raise ProviderUnavailable(note, provider="ollama")
    console.print(f"[bold]{name}[/bold] is in Ollama")


@contextmanager
def _ollama(settings: Settings, name: str = "", timeout_s: float | None = _TIMEOUT_S) -> Iterator[ollama.Client]:
    """A client whose failures say what to do. Raises ConfigurationError, ModelNotFound, ProviderUnavailable."""
    if not settings.ollama_url:
        known = ", ".join(KNOWN_WEIGHTS)
        raise ConfigurationError(f"{name!r} is none of the known weights ({known}); for an Ollama model set OLLAMA_URL")
    # What stands before the @ is a password.
    where = settings.ollama_url.rpartition("@")[2]
    try:
        # The worker's own way to Ollama goes past the environment's proxies as well.
        with ollama.Client(host=settings.ollama_url, timeout=timeout_s, trust_env=False) as client:
            yield client
    except ollama.ResponseError as error:
        if error.status_code == 404 and "model" not in error.error:
            note = f"no Ollama at {where} (404): correct OLLAMA_URL, which ends before /api or /v1"
            raise ProviderUnavailable(note, provider="ollama") from None
        if error.status_code == 404:
            raise ModelNotFound(f"Ollama has no {name!r}: aiworker models pull {name}", provider="ollama") from None
        if "file does not exist" in error.error:
            raise ModelNotFound(f"there is no {name!r} in Ollama's library: see ollama.com/library") from None
        raise ProviderUnavailable(f"Ollama refused ({error.status_code}): {error.error}", provider="ollama") from None
    except (ConnectionError, httpx.HTTPError, ValueError, TypeError, AttributeError) as error:
        # The last three: something else than Ollama answers there.
        note = f"no Ollama at {where} ({type(error).__name__}): start it, or correct OLLAMA_URL"
        raise ProviderUnavailable(note, provider="ollama") from None
