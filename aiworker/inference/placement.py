"""From what is there and what may be used to children: on which device, with how many threads, how many. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiworker.domain.errors import ConfigurationError
from aiworker.inference.devices import Gpu, Machine

_DEFAULT_BUDGET_MB = 24_000.0
_PARENT_MB = 150.0
_MOST_CPU_CHILDREN = 4
_SYSTEM_SHARE = 0.1
_LEAST_SYSTEM_MB = 512.0


@dataclass(frozen=True, slots=True)
class Needs:
    """Of one child, in MiB: memory on a CPU; memory and video memory on a GPU, the latter with and per picture of a
    batch."""

    cpu_mb: float = 450.0
    gpu_ram_mb: float = 1500.0
    vram_mb: float = 900.0
    vram_per_image_mb: float = 60.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator has set; 0 leaves it to us. `device` is auto, cpu, cuda or cuda:N. `further_mb` is kept for
    further models and is no part of the budget that comes out."""

    budget_mb: float = 0.0
    device: str = "auto"
    processes: int = 0
    threads: int = 0
    max_batch: int = 8
    shares_with_ollama: bool = False
    further_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """One child: `device` is cpu or cuda:N."""

    device: str
    threads: int
    max_batch: int
    why: str


@dataclass(frozen=True, slots=True)
class Placement:
    """`budget_mb` is for the parent and all children; `notes` say what was decided and why, for a person. `room` is how
    many children fit on each of the devices, were they wished for."""

    children: tuple[ChildPlan, ...]
    budget_mb: float
    notes: tuple[str, ...]
    room: int

    @property
    def devices(self) -> int:
        """On how many the children are: several cards, or one, or the processor."""
        return len({child.device for child in self.children})


def place(machine: Machine, wishes: Wishes, needs: Needs | None = None) -> Placement:
    """Raises ConfigurationError, saying what to change, when not even one child fits."""
    needs = needs or Needs()
    budget_mb, notes = _budget(machine, wishes)
    if wishes.further_mb:
        budget_mb = max(0.0, budget_mb - wishes.further_mb)
        notes[0] += f"; {wishes.further_mb:.0f} of it for further models"
    children = _on_gpus(machine, wishes, needs, budget_mb, notes) if wishes.device != "cpu" else []
    if not children:
        if wishes.device.startswith("cuda"):
            raise ConfigurationError(f"INFERENCE_DEVICE is {wishes.device}, but {notes[-1]}")
        children = _on_cpu(machine, wishes, needs, budget_mb, notes)
    elif 0 < wishes.further_mb < needs.gpu_ram_mb:
        raise ConfigurationError(
            f"YOLO_MORE_MODELS_MB is {wishes.further_mb:.0f}, and on a GPU a model takes {needs.gpu_ram_mb:.0f} of it"
        )
    room = _room(children, machine, wishes, needs, budget_mb)
    return Placement(tuple(children), budget_mb, tuple(notes), room)


def _budget(machine: Machine, wishes: Wishes) -> tuple[float, list[str]]:
    there = f"{machine.memory_mb:.0f} MB ({machine.limited_by})"
    if wishes.budget_mb > machine.memory_mb:
        # Never reached, it would never make anybody wait, and the kernel would kill somebody instead.
        return machine.memory_mb, [f"budget {there}: MEMORY_BUDGET_MB is {wishes.budget_mb:.0f}, more than there is"]
    if wishes.budget_mb:
        return wishes.budget_mb, [f"budget {wishes.budget_mb:.0f} MB: MEMORY_BUDGET_MB, of {there}"]
    system_mb = max(_LEAST_SYSTEM_MB, _SYSTEM_SHARE * machine.memory_mb)
    ollama_mb = machine.ollama.ram_mb if machine.ollama else 0.0
    left_mb = max(0.0, machine.memory_mb - system_mb - ollama_mb)
    budget_mb = min(_DEFAULT_BUDGET_MB, left_mb)
    less = f", less {system_mb:.0f} for the system" + (f" and {ollama_mb:.0f} that Ollama holds" if ollama_mb else "")
    most = f", {budget_mb:.0f} at most" if budget_mb < left_mb else ""
    return budget_mb, [f"budget {budget_mb:.0f} MB: {there}{less}{most}"]


def _on_gpus(machine: Machine, wishes: Wishes, needs: Needs, budget_mb: float, notes: list[str]) -> list[ChildPlan]:
    """One child for each GPU with room, or as many as are wished, dealt out to them."""
    if not machine.gpus:
        notes.append("no GPU: NVML finds none that this process may use")
        return []
    cards = _with_room(machine, wishes, needs, notes)
    if not cards and len(notes) == 1:
        notes.append(f"there are GPUs 0 to {len(machine.gpus) - 1} only")
    affordable = int((budget_mb - _PARENT_MB) // needs.gpu_ram_mb)
    total = min(wishes.processes or len(cards), max(0, affordable))
    threads = wishes.threads or max(1, machine.cores // max(1, total, len(machine.gpus)))
    children: list[ChildPlan] = []
    for number, (gpu, share_mb, why) in enumerate(cards):
        wished = total // len(cards) + (number < total % len(cards))
        count = min(wished, int(share_mb // (needs.vram_mb + needs.vram_per_image_mb)))
        if not wished and wishes.processes and affordable >= wishes.processes:
            notes.append(f"cuda:{gpu.index} ({gpu.name}) is left: INFERENCE_PROCESSES is {wishes.processes}")
        elif not wished:
            notes.append(f"cuda:{gpu.index} ({gpu.name}) is left: its child needs {needs.gpu_ram_mb:.0f} MB of memory")
        elif count < wished:
            notes.append(f"cuda:{gpu.index} ({gpu.name}) has room for {count} children: {why}")
        if count:
            batch = min(wishes.max_batch, int((share_mb / count - needs.vram_mb) // needs.vram_per_image_mb))
            children += [ChildPlan(f"cuda:{gpu.index}", threads, batch, f"{gpu.name}: {why}")] * count
    return children


def _with_room(machine: Machine, wishes: Wishes, needs: Needs, notes: list[str]) -> list[tuple[Gpu, float, str]]:
    """Those wanted on which a child fits, with the video memory that we may take, and why so much."""
    wanted = wishes.device.removeprefix("cuda").removeprefix(":")
    found = []
    for gpu in machine.gpus:
        if wishes.device not in ("auto", "cuda") and wanted != str(gpu.index):
            continue
        share_mb, why = _share(gpu, machine, wishes)
        least_mb = needs.vram_mb + needs.vram_per_image_mb
        if share_mb < least_mb:
            notes.append(f"cuda:{gpu.index} ({gpu.name}) has no room: {why}, {least_mb:.0f} MB are needed")
        else:
            found.append((gpu, share_mb, why))
    return found


def _share(gpu: Gpu, machine: Machine, wishes: Wishes) -> tuple[float, str]:
    """Video memory that we may take. Ollama keeps what it holds; where it holds nothing yet, half of the card is left
    to the model that it will load."""
    if not wishes.shares_with_ollama:
        return 0.9 * gpu.free_mb, f"{gpu.free_mb:.0f} of {gpu.total_mb:.0f} MB free"
    if machine.ollama and machine.ollama.vram_mb > 0:
        text = f"{gpu.free_mb:.0f} of {gpu.total_mb:.0f} MB free beside Ollama's {machine.ollama.vram_mb:.0f}"
        return 0.9 * gpu.free_mb, text
    half_mb = gpu.free_mb - 0.5 * gpu.total_mb
    return half_mb, f"{max(0.0, half_mb):.0f} MB free beyond the half that is left to Ollama"


def _room(children: Sequence[ChildPlan], machine: Machine, wishes: Wishes, needs: Needs, budget_mb: float) -> int:
    used = {child.device for child in children}
    if used == {"cpu"}:
        return int((budget_mb - _PARENT_MB) // needs.cpu_mb)
    shares_mb = [_share(gpu, machine, wishes)[0] for gpu in machine.gpus if f"cuda:{gpu.index}" in used]
    on_cards = int(min(shares_mb) // (needs.vram_mb + needs.vram_per_image_mb))
    return max(1, min(on_cards, int((budget_mb - _PARENT_MB) // needs.gpu_ram_mb) // len(used)))


def _on_cpu(machine: Machine, wishes: Wishes, needs: Needs, budget_mb: float, notes: list[str]) -> list[ChildPlan]:
    fits = int((budget_mb - _PARENT_MB) // needs.cpu_mb)
    if fits < 1:
        cure = ", free memory or lower YOLO_MORE_MODELS_MB" if wishes.further_mb else " or free memory"
        raise ConfigurationError(
            f"one child needs {_PARENT_MB + needs.cpu_mb:.0f} MB and {budget_mb:.0f} may be used: "
            f"raise MEMORY_BUDGET_MB{cure}"
        )
    wanted = wishes.processes or min(machine.cores, _MOST_CPU_CHILDREN)
    count = min(wanted, fits)
    if count < wanted:
        notes.append(f"{wanted} children wanted, {fits} fit into the budget at {needs.cpu_mb:.0f} MB each")
    threads = wishes.threads or max(1, machine.cores // count)
    why = f"{count} of them, so that one serves while another restarts" if count > 1 else "the only one"
    plan = ChildPlan("cpu", threads, wishes.max_batch, f"{machine.cores} cores, {why}")
    return [plan] * count
