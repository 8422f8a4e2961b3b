"""`aiworker placement`, and the same decision for the worker: which children to start, where, and why."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import ollama
from rich.table import Table

from aiworker.domain.errors import ConfigurationError
from aiworker.inference.devices import Machine, OllamaShare, read_machine
from aiworker.inference.placement import Placement, Wishes, place
from aiworker.inference.profile import ON_CARDS, ON_CPUS
from aiworker.settings import Settings

_OLLAMA_TIMEOUT_S = 2.0
_MIB = 2**20


def placement_for(settings: Settings, *, processes: int = 0, threads: int = 0) -> tuple[Machine, Placement]:
    """Asks the kernel, NVML and Ollama. Blocks for up to seconds. Raises ConfigurationError when no child fits.

    `processes` and `threads` were found best by measuring; the operator's own settings come first.
    """
    beside = ollama_is_here(settings.ollama_url)
    machine = read_machine(_ollama_share(settings.ollama_url) if beside and settings.ollama_url else None)
    wishes = Wishes(
        budget_mb=settings.memory_budget_mb,
        device=_device_for(settings),
        processes=settings.inference_processes or processes,
        threads=settings.inference_threads or threads,
        max_batch=settings.inference_max_batch,
        shares_with_ollama=beside,
        further_mb=settings.yolo_more_models_mb if settings.yolo_more_models else 0,
    )
    placement = place(machine, wishes)
    if settings.inference_engine in ON_CARDS and placement.children[0].device == "cpu":
        why = "INFERENCE_DEVICE is cpu" if wishes.device == "cpu" else placement.notes[-1]
        raise ConfigurationError(f"INFERENCE_ENGINE is {settings.inference_engine}, which needs a GPU, but {why}")
    return machine, placement


def _device_for(settings: Settings) -> str:
    """An engine that the operator has chosen may be for one kind of device only."""
    if settings.inference_engine not in ON_CPUS:
        return settings.inference_device
    if settings.inference_device.startswith("cuda"):
        raise ConfigurationError(
            f"INFERENCE_DEVICE is {settings.inference_device}, but INFERENCE_ENGINE is {settings.inference_engine}, "
            "which serves CPUs here"
        )
    return "cpu"


def ollama_is_here(url: str | None) -> bool:
    """Whether Ollama shares this machine: its host is loopback, or a bare name, as a neighbouring container's is."""
    host = (urlsplit(url).hostname or "") if url else ""
    return bool(host) and (host in ("::1", "host.docker.internal") or host.startswith("127.") or "." not in host)


def described(machine: Machine, placement: Placement) -> dict[str, object]:
    """The same as JSON values; sizes in MB."""
    return {
        "cores": machine.cores,
        "memoryMb": round(machine.memory_mb),
        "freeMb": round(machine.free_mb),
        "limitedBy": machine.limited_by,
        "gpus": [
            {"index": gpu.index, "name": gpu.name, "totalMb": round(gpu.total_mb), "freeMb": round(gpu.free_mb)}
            for gpu in machine.gpus
        ],
        "budgetMb": round(placement.budget_mb),
        "children": [
            {"device": plan.device, "threads": plan.threads, "maxBatch": plan.max_batch, "why": plan.why}
            for plan in placement.children
        ],
        "notes": list(placement.notes),
    }


def table_of(placement: Placement) -> Table:
    """One row for each child."""
    table = Table(box=None)
    for heading in ("child", "device", "threads", "pictures at a time", "why"):
        table.add_column(heading, overflow="fold")
    for number, plan in enumerate(placement.children):
        table.add_row(str(number), plan.device, str(plan.threads), str(plan.max_batch), plan.why)
    return table


def _ollama_share(url: str) -> OllamaShare | None:
    try:
        with ollama.Client(host=url, timeout=_OLLAMA_TIMEOUT_S, trust_env=False) as client:
            models = client.ps().models
    except (ollama.ResponseError, ConnectionError, httpx.HTTPError, ValueError, TypeError, AttributeError):
        # The last three: something else than Ollama answers there.
        return None
    vram = sum(model.size_vram or 0 for model in models)
    return OllamaShare((sum(model.size or 0 for model in models) - vram) / _MIB, vram / _MIB)
