"""What a child needs of an engine, and what goes in and out of one. Imports no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Box = tuple[int, float, float, float, float, float]
"""class id, confidence, x1, y1, x2, y2 in pixels of the upright image."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: `pixels` is RGB uint8 (h, w, 3) as stored, at full size or at a smaller scale.

    `width` and `height` are those at full size and upright; `orientation` is EXIF's, 1 to 8, and says how to turn
    `pixels` upright. It is cheaper once they are small.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    orientation: int = 1


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG of the plain kind, whole as far as its header and its end tell, and not yet decoded. `width`, `height` and
    `orientation` are as in `Picture`.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    orientation: int = 1


class Pixels(Protocol):
    """An array in memory, or a tensor on a card."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """One picture as the model takes it: `pixels` is letterboxed RGB uint8 (h, w, 3), in the memory that its engine
    reads; `width`, `height` the original's.

    Only pictures whose `pixels` have one shape may go through the model together.
    """

    pixels: Pixels
    width: int
    height: int


class Reader(Protocol):
    """A device's own decoder. One thread uses it, beside the one that uses the engine."""

    def read(self, jpegs: Sequence[Jpeg]) -> list[Prepared | None]:
        """In the order given; None for each that the cores must decode."""
        ...


class Answer(Protocol):
    """A pass that has begun. Taken once."""

    def ready(self) -> bool:
        """It can be taken without a wait for the device."""
        ...

    def take(self) -> list[tuple[Box, ...]]:
        """What `detect` gives for its pictures. Raises what the pass failed with."""
        ...


class PassQueue(Protocol):
    """A device that takes a pass while it is at another. Used by the thread that uses the engine."""

    def begin(self, images: Sequence[Prepared]) -> Answer:
        """Queued behind those begun before; `images` stay as they are until its answer is taken."""
        ...


class Engine(Protocol):
    """Made from a ChildSpec, in the child. One thread uses it, and others call `prepare` meanwhile."""

    def load(self) -> None:
        """Raises anything; the child then says why and ends."""
        ...

    def warm_up(self) -> None:
        """One real pass, so that the first request is not the slow one and a broken engine shows before it."""
        ...

    @property
    def label(self) -> str:
        """Library, device and precision, such as `torch-cpu-fp32`."""
        ...

    @property
    def names(self) -> Mapping[int, str]:
        """Class id to class name."""
        ...

    @property
    def pass_size(self) -> int:
        """How many pictures to put through the model at once; more gains nothing on this device."""
        ...

    @property
    def reader(self) -> Reader | None:
        """None where the cores decode everything."""
        ...

    @property
    def queue(self) -> PassQueue | None:
        """None where a pass takes the thread that calls `detect`."""
        ...

    def prepare(self, picture: Picture) -> Prepared:
        """Scaled and padded for the model."""
        ...

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        """Pictures of one shape in, their boxes out in the same order, most confident first."""
        ...
