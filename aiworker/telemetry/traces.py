"""Spans: what was done within what, and how long it took. These go nowhere; `telemetry/otel` has those that do.

A span holds names, counts and codes. Nothing of an input, a prompt or an answer may be noted on one, and an error is
noted by its code, never by its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

Kind = Literal["internal", "client", "consumer"]
Attributes = Mapping[str, str | int | float | bool | Sequence[str]]


class Span:
    """One that nobody looks at."""

    def note(self, attributes: Attributes) -> None:
        """Adds to what is known of it."""

    def fail(self, code: str) -> None:
        """Marks it as failed, by an error's code."""


class Traces:
    """Spans that go nowhere, and cost next to nothing. `kept` says whether anybody will see one."""

    kept = False

    def span(self, name: str, kind: Kind, attributes: Attributes) -> AbstractContextManager[Span]:
        """Begins one within the one that this task is in; an exception that leaves it marks it as failed."""
        return nullcontext(_UNSEEN)

    def stop(self) -> None:
        """Sends what is left, for a few seconds at most. Blocks."""


_UNSEEN = Span()
