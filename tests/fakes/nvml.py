"""NVML with cards that a test describes. Functions and errors are named as the real module's."""

from __future__ import annotations

from types import SimpleNamespace

_MB = 2**20


class FakeNvml:
    """`cards` are (name, total MiB, free MiB); None stands for a machine without a driver."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards: list[tuple[str, int, int]] | None) -> None:
        self.cards = cards
        self.open = False

    def nvmlInit(self) -> None:
        if self.cards is None:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.cards or ())

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check()
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self._check()
        _, total, free = (self.cards or [])[handle]
        if free < 0:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=total * _MB, free=free * _MB, used=(total - free) * _MB)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return (self.cards or [])[handle][0]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle:08x}-cafe"

    def _check(self) -> None:
        if not self.open:
            raise self.NVMLError("Uninitialized")
