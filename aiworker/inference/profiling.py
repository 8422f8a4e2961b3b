"""Measures the candidates with real children, and keeps what came of it by machine, weights and package versions."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import cast

import orjson

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import WorkerError
from aiworker.inference.engines.exports import ExportFailed, checksum, version
from aiworker.inference.interface import Box
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.inference.profile import ENGINES, EXPORTS, Candidate, Measured, Profile, agrees, has_drifted
from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)
_PACKAGES = ("aiworker", "nvidia-nvimgcodec-cu13", "onnxruntime", "openvino", "torch", "ultralytics")
_START_S = 180.0
_LEAST_ANSWERS = 8
_CHECK_AGE_S = 7 * 24 * 3600.0
Said = Callable[[Measured], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """What is run through a candidate: an encoded picture on which the weights find something, for how long at least,
    and how many of it are given to a child together at most."""

    picture: bytes
    seconds: float = 1.5
    max_batch: int = 8


async def measure(spec: ChildSpec, candidate: Candidate, sample: Sample, reference: Detections | None) -> Measured:
    """Starts the candidate's children, keeps them busy, and stops them. Never raises for what a candidate does."""
    pool = InferencePool([serving(spec, candidate)] * candidate.processes, PoolRules(sample.max_batch))
    await pool.start()
    try:
        async with asyncio.timeout(_START_S):
            await pool.wait_ready()
        first = await pool.detect(sample.picture, Deadline.after(_START_S))
        if reference is not None and not agrees(first, reference, candidate.precision, spec.confidence):
            return Measured(candidate, fault=f"detects other things than {reference.engine}")
        askers = 3 * candidate.processes
        if spec.device != "cpu":
            askers *= sample.max_batch
            # Graphs are recorded, and memory is taken, when a size of batch comes for the first times.
            await _kept_busy(pool, sample, askers)
        found, seconds = await _kept_busy(pool, sample, askers)
        return Measured(
            candidate,
            images_per_s=len(found) / seconds,
            forward_ms=median(each.inference_ms / each.batch_size for each in found),
            rss_mb=pool.memory_mb,
        )
    except* (WorkerError, TimeoutError) as errors:
        fault = str(errors.exceptions[0])[:200] or type(errors.exceptions[0]).__name__
    finally:
        await pool.stop()
    return Measured(candidate, fault=fault)


async def measure_all(
    spec: ChildSpec, choices: Sequence[Candidate], sample: Sample, say: Said = lambda measured: None
) -> Profile:
    """One candidate after the other. The first whose engine works is the reference that the others must agree with.

    An export that could not be made for one of them is not tried again for the others.
    """
    measured: list[Measured] = []
    reference = await _reference(spec, sample)
    if reference is None and spec.device == "cpu":
        # The others are exported from torch: when it cannot load the weights, once is enough to say why.
        choices = choices[:1]
    unexported: dict[str, str] = {}
    for candidate in choices:
        kind = EXPORTS.get(candidate.engine, "")
        if kind in unexported:
            measured.append(Measured(candidate, fault=unexported[kind]))
        else:
            measured.append(await measure(spec, candidate, sample, reference))
        if _is_unexported(measured[-1]):
            unexported[kind] = measured[-1].fault
        say(measured[-1])
    found = reference.items if reference else ()
    return Profile(tuple(measured), time.time(), tuple((each.class_id, each.confidence, *each.box) for each in found))


async def known_or_measured(
    file: Path, spec: ChildSpec, choices: Sequence[Candidate], sample: Sample, say: Said = lambda measured: None
) -> Profile:
    """The profile in `file`; measured, and kept there, when there is none or the old one holds no more.

    One that is older than a week is held against a short run of its own choice, and one in which an export was missing
    against another try to make it.
    """
    kept = read(file)
    if kept is not None and not await _has_aged(kept, spec, sample):
        return kept
    profile = await measure_all(spec, choices, sample, say)
    try:
        await asyncio.to_thread(write, file, profile)
    except OSError as error:
        _log.warning("profile not kept, the next start measures again", file=str(file), reason=error.strerror)
    return profile


def serving(spec: ChildSpec, candidate: Candidate) -> ChildSpec:
    """`spec` for one child of the candidate."""
    return replace(
        spec,
        engine=ENGINES[candidate.engine],
        precision=candidate.precision,
        threads=candidate.threads,
        pinned=candidate.pinned,
    )


def profile_file(cache_dir: Path, spec: ChildSpec, choices: Sequence[Candidate], card: str = "") -> Path:
    """Named by all that may change the outcome, the GPU's name too where there is one. Reads the weights once."""
    weights = Path(spec.weights)
    named = orjson.dumps(
        [
            [_processor(), len(os.sched_getaffinity(0)), card],
            [checksum(weights), spec.image_size],
            {package: version(package) for package in _PACKAGES},
            [asdict(candidate) for candidate in choices],
        ]
    )
    return cache_dir / "profiles" / f"{weights.stem}-{hashlib.sha256(named).hexdigest()[:16]}.json"


def read(file: Path) -> Profile | None:
    """None where there is no profile, or none that this version wrote."""
    try:
        kept = orjson.loads(file.read_bytes())
        measured = tuple(Measured(**{**each, "candidate": Candidate(**each["candidate"])}) for each in kept["measured"])
        on_sample = tuple((int(kind), *map(float, rest)) for kind, *rest in kept["on_sample"])
        return Profile(measured, float(kept["measured_at"]), cast("tuple[Box, ...]", on_sample))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(file: Path, profile: Profile) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(orjson.dumps(asdict(profile), option=orjson.OPT_INDENT_2))
    fresh.replace(file)


async def _reference(spec: ChildSpec, sample: Sample) -> Detections | None:
    """What torch finds on the CPU, with whatever threads; None where it does not work."""
    pool = InferencePool([replace(spec, engine=ENGINES["torch"], device="cpu", threads=1)])
    await pool.start()
    try:
        async with asyncio.timeout(_START_S):
            await pool.wait_ready()
        return await pool.detect(sample.picture, Deadline.after(_START_S))
    except (WorkerError, TimeoutError):
        return None
    finally:
        await pool.stop()


async def _kept_busy(pool: InferencePool, sample: Sample, askers: int) -> tuple[list[Detections], float]:
    """What was answered within the sample's seconds, or longer where that is too little to tell candidates apart; and
    within how many seconds. As many askers as keep every child's hands full."""
    found: list[Detections] = []
    begun = ended = time.monotonic()

    def enough() -> bool:
        return len(found) >= _LEAST_ANSWERS and time.monotonic() - begun >= sample.seconds

    async def ask() -> None:
        nonlocal ended
        while not enough():
            detections = await pool.detect(sample.picture, Deadline.after(_START_S))
            if not enough():
                found.append(detections)
                ended = time.monotonic()

    async with asyncio.TaskGroup() as group:
        for _ in range(askers):
            group.create_task(ask())
    return found, ended - begun


async def _has_aged(profile: Profile, spec: ChildSpec, sample: Sample) -> bool:
    if (chosen := profile.chosen) is None:
        # What kept every candidate from working may have passed.
        return True
    without_export = next((each.candidate for each in profile.measured if _is_unexported(each)), None)
    # Not on a card: TensorRT takes minutes to fail.
    if without_export is not None and spec.device == "cpu":
        # A disk that was full chose among the rest.
        return not (await measure(spec, without_export, sample, None)).fault
    if time.time() - profile.measured_at < _CHECK_AGE_S:
        return False
    now = await measure(spec, chosen.candidate, sample, None)
    return bool(now.fault) or has_drifted(chosen.forward_ms, [now.forward_ms])


def _is_unexported(measured: Measured) -> bool:
    return ExportFailed.__name__ in measured.fault


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
