"""What this process may use: cores, memory, GPUs. Reads /proc, /sys and NVML; decides nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

_MB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory in MiB; `free_mb` is what no process uses now. `index` is what children call it, cuda:index."""

    index: int
    name: str
    total_mb: float
    free_mb: float
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class OllamaShare:
    """What models that are loaded in Ollama use now, in MiB."""

    ram_mb: float = 0.0
    vram_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory_mb` is the smaller of the machine's and the cgroup's, `free_mb` what of it is free now, both in MiB.

    `ollama` is None when Ollama is not used, is elsewhere, or does not answer.
    """

    cores: int
    memory_mb: float
    free_mb: float
    gpus: tuple[Gpu, ...] = ()
    ollama: OllamaShare | None = None
    limited_by: str = "machine"


def read_machine(ollama: OllamaShare | None = None, *, nvml: Any = None, root: Path = Path("/")) -> Machine:
    """`nvml` is the module `pynvml`, or one like it; None takes the real one. `root` is where /proc and /sys are.

    Only GPUs that CUDA_VISIBLE_DEVICES leaves to this process count, under the numbers that it gives them.
    """
    memory = psutil.virtual_memory()
    total_mb, free_mb, limited_by = memory.total / _MB, memory.available / _MB, "machine"
    limit_mb, used_mb, quota = _cgroup(root)
    if limit_mb < total_mb:
        total_mb, free_mb, limited_by = limit_mb, min(free_mb, limit_mb - used_mb), "cgroup"
    cores = min(len(os.sched_getaffinity(0)), max(1, math.ceil(quota - 0.01)) if quota < math.inf else math.inf)
    gpus = visible(read_gpus(nvml), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Machine(int(cores), total_mb, max(0.0, free_mb), gpus, ollama, limited_by)


def memory_limit_mb(root: Path = Path("/")) -> float:
    """The smaller of the machine's memory and what its control groups leave this process, in MiB."""
    return min(psutil.virtual_memory().total / _MB, _cgroup(root)[0])


def visible(gpus: Sequence[Gpu], names: str | None) -> tuple[Gpu, ...]:
    """As CUDA reads CUDA_VISIBLE_DEVICES: numbers or beginnings of UUIDs, up to the first that names no GPU."""
    if names is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for name in (part.strip() for part in names.split(",")):
        by_uuid = name.startswith("GPU-")
        match = [gpu for gpu in gpus if (gpu.uuid.startswith(name) if by_uuid else name == str(gpu.index))]
        if len(match) != 1:
            break
        found.append(replace(match[0], index=len(found)))
    return tuple(found)


def read_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """Empty where there is no driver, or none that answers."""
    if nvml is None:
        import pynvml  # noqa: PLC0415 - loads the driver's library

        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = nvml.nvmlDeviceGetName(handle)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return Gpu(index, name, memory.total / _MB, memory.free / _MB, uuid)


def _cgroup(root: Path) -> tuple[float, float, float]:
    """Memory limit and use in MiB, and cores by quota, the narrowest on the way up; infinite where nothing limits."""
    limit_mb, used_mb, quota = math.inf, 0.0, math.inf
    for group in _groups(root):
        limit = _number(group / "memory.max", group / "memory.limit_in_bytes") / _MB
        if limit < limit_mb:
            used = _number(group / "memory.current", group / "memory.usage_in_bytes") / _MB
            limit_mb, used_mb = limit, used if used < math.inf else 0.0
        quota = min(quota, _quota(group))
    return limit_mb, used_mb, quota


def _groups(root: Path) -> list[Path]:
    """This process's groups and those above them, of version 2 and of version 1's memory and cpu controllers."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in _folders(controllers):
            base = root / "sys/fs/cgroup" / controller
            at = base / path.lstrip("/")
            while at != base and base in at.parents:
                found.append(at)
                at = at.parent
            found.append(base)
    return found


def _folders(controllers: str) -> list[str]:
    """Where a hierarchy may be mounted, under /sys/fs/cgroup; systems differ in cpu's name and order."""
    named = controllers.split(",")
    if "cpu" in named:
        return ["cpu,cpuacct", "cpu"]
    return [controllers] if controllers in ("", "memory") else []


def _quota(group: Path) -> float:
    parts = _text(group / "cpu.max").split()
    if len(parts) != 2:
        parts = [_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = float(parts[0]), float(parts[1])
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _number(*paths: Path) -> float:
    for path in paths:
        try:
            return float(_text(path))
        except ValueError:
            continue
    return math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
