from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest
from fakes.nvml import FakeNvml
from hypothesis import given
from hypothesis import strategies as st

from aiworker.cli.placement import described, ollama_is_here
from aiworker.domain.errors import ConfigurationError
from aiworker.inference.devices import Gpu, Machine, OllamaShare, memory_limit_mb, read_gpus, read_machine, visible
from aiworker.inference.placement import Needs, Wishes, place

_T4, _L4 = ("Tesla T4", 15_000, 14_500), ("L4", 23_000, 22_000)
_VPS = Machine(cores=2, memory_mb=24_000, free_mb=20_000)


def _machine(*cards: tuple[str, int, int], ollama: OllamaShare | None = None, cores: int = 8) -> Machine:
    return Machine(cores, 64_000, 60_000, read_gpus(FakeNvml(list(cards))), ollama)


def _devices(machine: Machine, **wishes: object) -> list[tuple[str, int, int]]:
    placement = place(machine, Wishes(**wishes))  # type: ignore[arg-type]
    return [(plan.device, plan.threads, plan.max_batch) for plan in placement.children]


@pytest.mark.parametrize(
    ("machine", "wishes", "expected"),
    [
        (_VPS, {}, [("cpu", 1, 8)] * 2),
        (_VPS, {"processes": 1}, [("cpu", 2, 8)]),
        (_VPS, {"processes": 3}, [("cpu", 1, 8)] * 3),
        (_VPS, {"processes": 1, "threads": 1, "max_batch": 4}, [("cpu", 1, 4)]),
        (_VPS, {"budget_mb": 700.0}, [("cpu", 2, 8)]),
        (Machine(16, 64_000, 60_000), {}, [("cpu", 4, 8)] * 4),
        (Machine(2, 1_600, 1_200, limited_by="cgroup"), {}, [("cpu", 1, 8)] * 2),
        (Machine(2, 1_200, 1_200, limited_by="cgroup"), {}, [("cpu", 2, 8)]),
        (Machine(2, 24_000, 20_000, ollama=OllamaShare(ram_mb=20_900.0)), {}, [("cpu", 2, 8)]),
        (Machine(4, 256_000, 200_000, ollama=OllamaShare(ram_mb=40_000.0)), {}, [("cpu", 1, 8)] * 4),
        (_machine(_T4), {}, [("cuda:0", 8, 8)]),
        (_machine(_T4), {"device": "cpu", "processes": 2}, [("cpu", 4, 8)] * 2),
        (_machine(_T4, _L4), {"max_batch": 32}, [("cuda:0", 4, 32), ("cuda:1", 4, 32)]),
        (_machine(_T4, _L4), {"device": "cuda:1"}, [("cuda:1", 4, 8)]),
        (_machine(_T4, _L4), {"processes": 1}, [("cuda:0", 4, 8)]),
        (_machine(("T4", 15_000, 1_200), _L4), {"max_batch": 64}, [("cuda:0", 4, 3), ("cuda:1", 4, 64)]),
        (_machine(("T4", 15_000, 400)), {}, [("cpu", 2, 8)] * 4),
        (_machine(_T4), {"shares_with_ollama": True, "max_batch": 64}, [("cuda:0", 8, 64)]),
        (_machine(("GTX 1050", 4_000, 3_900)), {"shares_with_ollama": True}, [("cuda:0", 8, 8)]),
        (_machine(("GTX 1050", 4_000, 2_900)), {"shares_with_ollama": True}, [("cpu", 2, 8)] * 4),
        (
            _machine(("GTX 1050", 4_000, 1_400), ollama=OllamaShare(0.0, 2_400.0)),
            {"shares_with_ollama": True},
            [("cuda:0", 8, 6)],
        ),
        (_machine(_T4, _L4), {"budget_mb": 2_000.0}, [("cuda:0", 4, 8)]),
        (_machine(_T4), {"processes": 4}, [("cuda:0", 2, 8)] * 4),
        (_machine(_T4, _L4), {"processes": 3}, [("cuda:0", 2, 8)] * 2 + [("cuda:1", 2, 8)]),
        (_machine(_T4), {"processes": 4, "budget_mb": 3_500.0}, [("cuda:0", 4, 8)] * 2),
        (_machine(("GTX 1050", 4_000, 3_900)), {"processes": 4, "max_batch": 32}, [("cuda:0", 2, 4)] * 3),
    ],
)
def test_children_fit_the_machine(
    machine: Machine, wishes: dict[str, object], expected: list[tuple[str, int, int]]
) -> None:
    assert _devices(machine, **wishes) == expected


@pytest.mark.parametrize(
    ("machine", "wishes", "says"),
    [
        (_VPS, {"budget_mb": 300.0}, "MEMORY_BUDGET_MB or"),
        (_VPS, {"budget_mb": 1_400.0, "further_mb": 1_000.0}, "YOLO_MORE_MODELS_MB"),
        (_machine(_T4), {"further_mb": 1_000.0}, "YOLO_MORE_MODELS_MB is 1000, and on a GPU a model takes 1500"),
        (Machine(2, 512, 400, limited_by="cgroup"), {"budget_mb": 24_000.0}, "512 may be used"),
        (_VPS, {"device": "cuda"}, "no GPU"),
        (_machine(_T4), {"device": "cuda:3"}, "GPUs 0 to 0 only"),
        (_machine(("T4", 15_000, 400)), {"device": "cuda:0"}, "no room"),
        (_machine(_T4), {"device": "cuda", "budget_mb": 1_000.0}, "1500 MB of memory"),
    ],
)
def test_what_cannot_be_had_is_said_with_what_to_do(machine: Machine, wishes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        _devices(machine, **wishes)


_CARDS = st.lists(st.builds(Gpu, st.just(0), st.just("x"), st.floats(0, 80_000), st.floats(0, 80_000)), max_size=4)


@given(
    st.integers(1, 64),
    st.floats(256, 256_000),
    _CARDS,
    st.builds(
        Wishes,
        budget_mb=st.sampled_from([0.0, 900.0, 8_000.0]),
        processes=st.integers(0, 8),
        threads=st.integers(0, 4),
        max_batch=st.integers(1, 64),
        shares_with_ollama=st.booleans(),
    ),
)
def test_whatever_is_there_the_plan_stays_within_it(
    cores: int, memory_mb: float, cards: list[Gpu], wishes: Wishes
) -> None:
    gpus = tuple(dataclasses.replace(card, index=index) for index, card in enumerate(cards))
    needs = Needs()
    try:
        placement = place(Machine(cores, memory_mb, memory_mb, gpus), wishes)
    except ConfigurationError:
        return
    cpu = [plan for plan in placement.children if plan.device == "cpu"]
    cuda = [plan for plan in placement.children if plan.device != "cpu"]
    assert placement.children
    assert not (cpu and cuda)
    assert wishes.processes or len({plan.device for plan in cuda}) == len(cuda)
    assert len(cpu) * needs.cpu_mb + len(cuda) * needs.gpu_ram_mb <= placement.budget_mb
    assert not wishes.processes or len(placement.children) <= wishes.processes
    for plan in placement.children:
        assert 1 <= plan.max_batch <= wishes.max_batch
        assert plan.threads >= 1
        assert plan.why
    for device, plans in itertools.groupby(cuda, lambda plan: plan.device):
        taken_mb = sum(needs.vram_mb + plan.max_batch * needs.vram_per_image_mb for plan in plans)
        assert taken_mb <= gpus[int(device[5:])].free_mb
    assert placement.notes


@pytest.mark.parametrize(
    ("machine", "wishes", "room"),
    [
        (Machine(2, 24_000, 20_000), {"budget_mb": 700.0}, 1),
        (Machine(2, 24_000, 20_000), {"budget_mb": 1_500.0, "processes": 8}, 3),
        (_machine(_T4), {"budget_mb": 5_000.0}, 3),
        (_machine(_T4, _L4), {"budget_mb": 10_000.0}, 3),
        (_machine(_T4, _L4), {"budget_mb": 1_700.0}, 1),
        (_machine(("GTX 1050", 4_000, 2_900), _L4), {}, 2),
    ],
)
def test_there_is_room_for_as_many_as_a_wish_would_bring(
    machine: Machine, wishes: dict[str, object], room: int
) -> None:
    placement = place(machine, Wishes(**wishes))  # type: ignore[arg-type]
    wishes |= {"processes": 64 * placement.devices}
    most = Counter(plan.device for plan in place(machine, Wishes(**wishes)).children)  # type: ignore[arg-type]
    assert placement.room == room
    assert min(most.values()) >= room


def test_a_budget_over_what_is_there_is_cut_to_it() -> None:
    placement = place(Machine(2, 2_000, 1_800, limited_by="cgroup"), Wishes(budget_mb=24_000.0, processes=16))
    assert (placement.budget_mb, len(placement.children)) == (2_000, 4)
    assert placement.notes[0] == "budget 2000 MB (cgroup): MEMORY_BUDGET_MB is 24000, more than there is"


def test_the_reasons_are_told() -> None:
    placement = place(_machine(("T4", 15_000, 400)), Wishes())
    assert any("cuda:0 (T4) has no room: 400 of 15000 MB free" in note for note in placement.notes)
    shown = described(_machine(_T4), placement)
    assert shown["gpus"] == [{"index": 0, "name": "Tesla T4", "totalMb": 15_000, "freeMb": 14_500}]


@pytest.mark.parametrize("cards", [None, [], [("lost", 100, -1)]])
def test_without_a_driver_or_with_a_lost_card_there_is_no_gpu(cards: list[tuple[str, int, int]] | None) -> None:
    nvml = FakeNvml(cards)
    assert read_gpus(nvml) == ()
    assert not nvml.open


def test_the_real_nvml_is_asked_without_harm() -> None:
    assert isinstance(read_gpus(), tuple)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [("a", 0), ("b", 1)]),
        ("1,0", [("b", 0), ("a", 1)]),
        ("1", [("b", 0)]),
        ("GPU-00000001", [("b", 0)]),
        ("0,7,1", [("a", 0)]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_visible_cards_count(names: str | None, expected: list[tuple[str, int]]) -> None:
    gpus = read_gpus(FakeNvml([("a", 10, 5), ("b", 10, 5)]))
    assert [(gpu.name, gpu.index) for gpu in visible(gpus, names)] == expected


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/memory.max": str(200 << 20),
            "sys/fs/cgroup/outer/memory.current": str(50 << 20),
            "sys/fs/cgroup/outer/cpu.max": "100000 100000\n",
        },
        {
            "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": str(200 << 20),
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": str(50 << 20),
            "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
        },
        {
            "proc/self/cgroup": "4:memory:/docker/x\n3:cpuacct,cpu:/docker/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(200 << 20),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(50 << 20),
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": str(200 << 20),
            "sys/fs/cgroup/cpu.max": "1000 1000",
            "sys/fs/cgroup/memory.current": str(50 << 20),
        },
    ],
    ids=["v2 nested", "v1", "v1 in a container", "container root"],
)
def test_the_narrowest_cgroup_counts(tmp_path: Path, files: dict[str, str]) -> None:
    root = _tree(tmp_path, files)
    machine = read_machine(nvml=FakeNvml(None), root=root)
    assert memory_limit_mb(root) == machine.memory_mb
    assert (machine.cores, machine.memory_mb, machine.free_mb, machine.limited_by) == (1, 200.0, 150.0, "cgroup")


def test_without_a_cgroup_the_machine_counts(tmp_path: Path) -> None:
    machine = read_machine(nvml=FakeNvml(None), root=tmp_path)
    assert machine.limited_by == "machine"
    assert machine.memory_mb > machine.free_mb > 0


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:11434", True),
        ("http://localhost:11434", True),
        ("http://[::1]:11434", True),
        ("http://ollama:11434", True),
        ("http://host.docker.internal:11434", True),
        ("http://gpu.example.org:11434", False),
        ("http://10.0.0.7:11434", False),
        (None, False),
    ],
)
def test_a_neighbour_is_told_from_a_stranger(url: str | None, here: bool) -> None:
    assert ollama_is_here(url) is here
