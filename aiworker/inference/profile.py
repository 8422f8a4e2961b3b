"""Which engine serves, with how many processes and threads: chosen from what was measured here. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aiworker.domain.detection import Detection, Detections
from aiworker.inference.interface import Box

ENGINES = {
    "torch": "aiworker.inference.engines.torch_engine:TorchEngine",
    "torch-graph": "aiworker.inference.engines.torch_engine:GraphedTorchEngine",
    "openvino": "aiworker.inference.engines.openvino_engine:OpenVinoEngine",
    "onnx": "aiworker.inference.engines.onnx_engine:OnnxEngine",
    "tensorrt": "aiworker.inference.engines.torch_engine:TensorRtEngine",
}
PACKAGES = {"openvino": ("onnx", "openvino"), "onnx": ("onnx", "onnxruntime"), "tensorrt": ("onnx", "tensorrt")}
"""What an engine takes beside torch, which is always there: to run, and to make what it runs."""
EXPORTS = {"openvino": "onnx", "onnx": "onnx", "tensorrt": "tensorrt"}
"""The format that an engine reads, where that is not the checkpoint."""
ON_CPUS, ON_CARDS = ("openvino", "onnx"), ("torch-graph", "tensorrt")
"""Engines that are for one kind of device only."""
_NEAR = 0.95
_MOST_PROCESSES = 4
_MOST_ON_A_CARD = 8
_DRIFT = 1.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve."""

    engine: str
    precision: str
    processes: int
    threads: int
    pinned: bool = False


FALLBACK = "torch"
"""The engine that is always there."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`images_per_s` is JPEG bytes to detections through the pool, `forward_ms` the model's part of one picture.

    `fault` says why the candidate cannot be chosen; empty when it can.
    """

    candidate: Candidate
    images_per_s: float = 0.0
    forward_ms: float = 0.0
    rss_mb: float = 0.0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was measured on this machine with these weights and packages, and when (seconds since 1970).

    `on_sample` is what the engine that the others were held against found on the picture; empty where it did not work.
    """

    measured: tuple[Measured, ...] = field(default=())
    measured_at: float = 0.0
    on_sample: tuple[Box, ...] = ()

    @property
    def chosen(self) -> Measured | None:
        """The fastest; of those nearly as fast the one with most processes, so that one serves while another restarts.

        None where no candidate works.
        """
        sound = [each for each in self.measured if not each.fault]
        if not sound:
            return None
        best = max(each.images_per_s for each in sound)
        near = [each for each in sound if each.images_per_s >= _NEAR * best]
        return max(near, key=lambda each: (each.candidate.processes, each.images_per_s))

    @property
    def why(self) -> str:
        """One sentence for a person."""
        if (chosen := self.chosen) is None:
            return f"no candidate works here, so {FALLBACK} serves as it is placed"
        best = max(self.measured, key=lambda each: each.images_per_s if not each.fault else 0.0)
        if best is chosen:
            return f"the fastest: {chosen.images_per_s:.1f} images/s"
        share = chosen.images_per_s / best.images_per_s
        return f"{share:.0%} of the fastest, in {chosen.candidate.processes} processes, so that one may fail"


def candidates(cores: int, *, precision: str = "fp32", processes: int = 0, threads: int = 0) -> list[Candidate]:
    """What is worth measuring; `processes` and `threads` are the operator's own choice, 0 leaves them open.

    torch comes first, since the others are held against what it detects. Threads are pinned only where one process has
    them all: several would pin theirs to the same cores.
    """
    counts = [processes] if processes else [count for count in (1, 2, _MOST_PROCESSES) if count <= max(1, cores)]
    splits = [(count, threads or max(1, cores // count)) for count in counts]
    found = [Candidate("torch", "fp32", *split) for split in splits]
    found += [Candidate("onnx", "fp32", *split) for split in splits]
    for precise in dict.fromkeys(("fp32", precision)):
        found += [Candidate("openvino", precise, *split) for split in splits]
        found += [Candidate("openvino", precise, *split, pinned=True) for split in splits if split[0] == 1]
    return found


def card_candidates(cores: int, *, processes: int = 0, threads: int = 0) -> list[Candidate]:
    """What is worth measuring on a GPU: one process whose threads decode, and several that take turns on the card, so
    that one's Python runs beside another's model. The last two are as in `candidates`.
    """
    counts = [processes] if processes else [count for count in (1, 2, 4, _MOST_ON_A_CARD) if 2 * count <= max(2, cores)]
    splits = [(count, threads or max(1, cores // count)) for count in counts]
    return [Candidate(engine, "fp16", *split) for engine in ("torch", "torch-graph", "tensorrt") for split in splits]


def agrees(found: Detections, reference: Detections, precision: str, least: float) -> bool:
    """Whether an engine detects what the reference does, within what its precision may change.

    `least` is the confidence below which nothing is said: a box that close to it may be there or not. With fewer bits,
    which of two nearly equal boxes survives is chance, so that only a broken engine is told apart.
    """
    tolerance, overlap = (0.01, 0.99) if precision == "fp32" else (0.1, 0.7)
    left = list(reference.items)
    for each in found.items:
        alike = [other for other in left if other.class_id == each.class_id and _iou(each, other) >= overlap]
        match = min(alike, key=lambda other: abs(other.confidence - each.confidence), default=None)
        if match is not None and abs(match.confidence - each.confidence) <= tolerance:
            left.remove(match)
        elif each.confidence > least + tolerance:
            return False
    return all(missed.confidence <= least + tolerance for missed in left)


def has_drifted(measured_ms: float, recent_ms: Sequence[float]) -> bool:
    """Whether the model now takes so much more or less time than when it was measured that the choice may be wrong.

    `recent_ms` are times per picture of single passes; the middle one counts, so that a few hiccups do not.
    """
    if not recent_ms or measured_ms <= 0:
        return False
    ratio = sorted(recent_ms)[len(recent_ms) // 2] / measured_ms
    return ratio > _DRIFT or ratio < 1 / _DRIFT


def _iou(a: Detection, b: Detection) -> float:
    width = max(0.0, min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]))
    height = max(0.0, min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]))
    areas = sum((each.box[2] - each.box[0]) * (each.box[3] - each.box[1]) for each in (a, b))
    return width * height / (areas - width * height) if areas > width * height else 0.0
