"""Structured JSON logs on stderr, one line an event, with the job's id wherever one is being worked on.

What could hold content never gets through: bytes are replaced by their length, long strings are cut, and an exception
is logged as its type, code and frames, never as its text.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TextIO, cast
from uuid import UUID

import orjson
import structlog
from structlog.types import Processor

from aiworker.domain.errors import WorkerError

_LONGEST_VALUE = 300
_FRAMES_KEPT = 8
_DIGITS = 4
# What asyncio says of a task or a callback that failed; after it come the exception's text and the arguments.
_ASYNCIO_SAYS = re.compile(r"[^\n(]*")

Logger = structlog.typing.FilteringBoundLogger
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


current_job: ContextVar[UUID | None] = ContextVar("current_job", default=None)
"""The job that this task works on; its id is on every line that the task logs."""


def get_logger(name: str) -> Logger:
    """A logger whose events carry `logger=name`."""
    logger: Logger = structlog.get_logger(name)
    return logger


def configure_logging(level: str, component: str, stream: TextIO | None = None) -> None:
    """Routes structlog and the standard library's loggers to `stream` (stderr); `component` names the process."""
    shared: list[Processor] = [
        _add_job,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exception,
        _keep_small,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Lines below the level cost a method call and nothing more.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render(component)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _render(component: str) -> Processor:
    def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        return orjson.dumps({"component": component, **event}, default=str).decode()

    return render


def _add_job(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (job_id := current_job.get()) is not None:
        event.setdefault("job_id", str(job_id))
    return event


def _describe_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        event.update(_described(cast(_ExcInfo, info)))
        if event.get("logger") == "asyncio" and (said := _ASYNCIO_SAYS.match(str(event["event"]))):
            event["event"] = said.group()
    return event


def _described(info: _ExcInfo) -> dict[str, Any]:
    kind, error, trace = info
    frames = [
        f"{frame.name} {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(trace)
    ]
    described: dict[str, Any] = {"error_type": kind.__name__, "frames": frames[-_FRAMES_KEPT:]}
    if isinstance(error, WorkerError):
        described["code"] = error.code
        described["note"] = error.note
    return described


def _keep_small(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
        elif isinstance(value, str) and len(value) > _LONGEST_VALUE:
            event[key] = value[:_LONGEST_VALUE] + "…"
        elif isinstance(value, float):
            event[key] = round(value, _DIGITS)
    return event
