"""What the worker's children are told: engine, processes and threads, chosen by measuring; and that as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aiworker.cli.placement import placement_for
from aiworker.domain.errors import ConfigurationError, WeightsUnavailable
from aiworker.inference.devices import Machine
from aiworker.inference.engines.exports import version
from aiworker.inference.interface import Box
from aiworker.inference.messages import ChildSpec
from aiworker.inference.placement import Placement
from aiworker.inference.profile import (
    ENGINES,
    FALLBACK,
    PACKAGES,
    Candidate,
    Measured,
    Profile,
    candidates,
    card_candidates,
)
from aiworker.inference.profiling import Sample, known_or_measured, measure_all, profile_file, read, serving, write
from aiworker.inference.weights import edition_of, resolve_weights
from aiworker.settings import Settings
from aiworker.telemetry.logs import configure_logging, get_logger

_log = get_logger(__name__)
_PIXELS = 1_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One spec for each child of the placement. `known` is what is on the sample picture, as in `PoolRules`."""

    specs: list[ChildSpec]
    placement: Placement
    why: str
    known: Mapping[str, Sequence[Box]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What is to be measured, and where the outcome is kept."""

    spec: ChildSpec
    choices: list[Candidate]
    sample: Sample
    file: Path


async def plan_for(settings: Settings, weights: Path) -> Plan:
    """Measures for half a minute the first time that these weights are served here. Raises ConfigurationError."""
    machine, placement = await asyncio.to_thread(placement_for, settings)
    spec = _spec(settings, weights, placement.children[0].device)
    if (engine := settings.inference_engine) != "auto":
        if missing := missing_packages(engine):
            raise ConfigurationError(f"INFERENCE_ENGINE is {engine}, but {missing} is not installed")
        precision = settings.inference_precision if engine == "openvino" else "fp32"
        return _placed(replace(spec, engine=ENGINES[engine], precision=precision), placement, "INFERENCE_ENGINE")
    # Before they are read: should they be replaced meanwhile, nobody knows what the new ones find.
    edition = edition_of(spec.weights)
    ground = await asyncio.to_thread(_ground, settings, spec, machine, placement)
    profile = await known_or_measured(ground.file, spec, ground.choices, ground.sample, _report)
    known = {edition: profile.on_sample}
    if (chosen := profile.chosen) is None:
        return _placed(replace(spec, engine=ENGINES[FALLBACK]), placement, profile.why, known)
    best = chosen.candidate
    _, placement = await asyncio.to_thread(_split_as, settings, best, placement)
    return _placed(serving(spec, best), placement, profile.why, known)


def missing_packages(engine: str) -> str:
    """What the engine takes and is not installed; empty when nothing is missing."""
    return " and ".join(package for package in PACKAGES.get(engine, ()) if not version(package))


def foreseen(settings: Settings) -> tuple[Machine, Placement]:
    """What the worker would start now, with the split that was measured best where that is known. Blocks for up to
    seconds. Raises ConfigurationError when no child fits."""
    machine, placement = placement_for(settings)
    if settings.inference_engine != "auto":
        return machine, placement
    kept = _kept(settings, machine, placement)
    if kept is None or (chosen := kept.chosen) is None:
        note = "the worker measures engines, children and threads when it first serves these weights here"
        return machine, replace(placement, notes=(*placement.notes, note))
    best = chosen.candidate
    machine, placement = _split_as(settings, best, placement)
    note = f"measured here: {best.engine}, {best.precision}, {_split(best)}; {kept.why}"
    return machine, replace(placement, notes=(*placement.notes, note))


def _split_as(settings: Settings, best: Candidate, before: Placement) -> tuple[Machine, Placement]:
    # What was measured on one card is done on each.
    return placement_for(settings, processes=best.processes * before.devices, threads=best.threads)


def _kept(settings: Settings, machine: Machine, placement: Placement) -> Profile | None:
    try:
        weights = resolve_weights(settings.yolo_model, settings.models_dir)
    except WeightsUnavailable:
        return None
    spec = _spec(settings, weights, placement.children[0].device)
    return read(_ground(settings, spec, machine, placement).file)


async def show_profile(settings: Settings, console: Console, *, again: bool) -> None:
    """Raises WeightsUnavailable, ConfigurationError."""
    configure_logging("ERROR", "profile")
    weights = await asyncio.to_thread(resolve_weights, settings.yolo_model, settings.models_dir)
    machine, placement = await asyncio.to_thread(placement_for, settings)
    spec = _spec(settings, weights, placement.children[0].device)
    ground = await asyncio.to_thread(_ground, settings, spec, machine, placement)
    with console.status("measuring"):
        if again:
            profile = await measure_all(spec, ground.choices, ground.sample)
            await asyncio.to_thread(write, ground.file, profile)
        else:
            profile = await known_or_measured(ground.file, spec, ground.choices, ground.sample)
    console.print(table_of(profile))
    console.print(f"chosen: {profile.why}")


def table_of(profile: Profile) -> Table:
    """One row for each candidate, the chosen one marked."""
    table = Table(box=None)
    for heading in ("engine", "precision", "processes x threads", "images/s", "model ms", "MB", ""):
        table.add_column(heading, justify="right" if heading in ("images/s", "model ms", "MB") else "left")
    for each in profile.measured:
        figures = [f"{value:.{digits}f}" for value, digits in ((each.images_per_s, 1), (each.forward_ms, 1))]
        numbers = ["", "", ""] if each.fault else [*figures, f"{each.rss_mb:.0f}"]
        note = each.fault or ("chosen" if each is profile.chosen else "")
        table.add_row(each.candidate.engine, each.candidate.precision, _split(each.candidate), *numbers, note)
    return table


def sample_picture() -> bytes:
    """A photo on which COCO's classes find something; our own."""
    return files("aiworker.cli").joinpath("data/fruits.jpg").read_bytes()


def _placed(spec: ChildSpec, placement: Placement, why: str, known: Mapping[str, Sequence[Box]] | None = None) -> Plan:
    specs = [replace(spec, device=child.device, threads=child.threads) for child in placement.children]
    return Plan(specs, placement, why, known or {})


def _spec(settings: Settings, weights: Path, device: str) -> ChildSpec:
    return ChildSpec(
        weights=str(weights),
        device=device,
        confidence=settings.yolo_confidence,
        max_pixels=int(settings.media_max_megapixels * _PIXELS),
        cache_dir=str(cache_dir(settings)),
    )


def _ground(settings: Settings, spec: ChildSpec, machine: Machine, placement: Placement) -> _Ground:
    # Two that do not fit together would be measured over the budget, and then one of them placed with half the threads.
    processes = min(settings.inference_processes, len(placement.children))
    most = -(-processes // placement.devices) or placement.room
    if spec.device == "cpu":
        card = ""
        every = candidates(
            machine.cores,
            precision=settings.inference_precision,
            processes=processes,
            threads=settings.inference_threads,
        )
    else:
        card = next(gpu.name for gpu in machine.gpus if spec.device == f"cuda:{gpu.index}")
        cards = placement.devices
        every = card_candidates(
            machine.cores // cards,
            processes=-(-processes // cards),
            threads=settings.inference_threads,
        )
    choices = [each for each in every if each.processes <= most and not missing_packages(each.engine)]
    sample = Sample(sample_picture(), max_batch=placement.children[0].max_batch)
    return _Ground(spec, choices, sample, profile_file(cache_dir(settings), spec, choices, card))


def cache_dir(settings: Settings) -> Path:
    """What is made from weights, and can be made again."""
    return (settings.models_dir / ".cache").absolute()


def _split(candidate: Candidate) -> str:
    return f"{candidate.processes} x {candidate.threads}{', pinned' if candidate.pinned else ''}"


def _report(measured: Measured) -> None:
    _log.info(
        "measured",
        engine=measured.candidate.engine,
        precision=measured.candidate.precision,
        split=_split(measured.candidate),
        images_per_s=round(measured.images_per_s, 1),
        fault=measured.fault or None,
    )
