"""The HTTP API: enqueue, status, cancel. It validates, asks the queue, and answers; the row is the hand-over."""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from aiworker.analyses.registry import checked_input, describe, find_analysis
from aiworker.domain.errors import InputRejected, NotAllowed, UnknownJobType
from aiworker.domain.job import JobView, NewJob
from aiworker.domain.messages import sentence
from aiworker.domain.ports import JobIntake
from aiworker.gateway.auth import Authenticator, Principal
from aiworker.gateway.openapi import document
from aiworker.gateway.replies import json_reply, language_of, replies
from aiworker.gateway.schemas import EnqueueRequest, JobReference, job_reply
from aiworker.telemetry.metrics import Metrics

_PREFIX = "/functions/v1"
_UNKNOWN_ESTIMATE_S = 10
_DEEPEST = 200
"""Levels of arrays and objects in a body. orjson writes 254 of them, and Python's stack is not much deeper."""

Body = TypeVar("Body", bound=BaseModel)


class InvalidJson(InputRejected):
    code = "invalid_json"


class InvalidJobId(InputRejected):
    code = "invalid_job_id"


class Gateway:
    """Handlers of the API. `enable_cache` False lets every job run for itself."""

    def __init__(self, intake: JobIntake, auth: Authenticator, metrics: Metrics, *, enable_cache: bool) -> None:
        self._intake = intake
        self._auth = auth
        self._metrics = metrics
        self._enable_cache = enable_cache

    async def enqueue(self, request: web.Request) -> web.Response:
        """202 with the job's id, or 200 with the result when an identical request was answered before."""
        principal = self._auth.principal(request.headers)
        body = await _json_object(request)
        order = _checked(EnqueueRequest, body)
        analysis = find_analysis(order.type)
        checked_input(analysis, order.input)
        if order.unlimited and not principal.is_service:
            raise NotAllowed("only the service may leave out the limit")
        enqueued = await self._intake.enqueue(
            NewJob(
                user_id=_user_of(principal, order),
                type=analysis.name,
                input=order.input,
                priority=order.priority,
                idempotency_key=_idempotency_key(request, order),
                delay_s=order.delay_seconds,
                use_cache=order.use_cache and self._enable_cache,
                unlimited=order.unlimited,
            )
        )
        if order.use_cache and self._enable_cache and analysis.sharing != "never":
            self._metrics.cache_lookups.labels(analysis.name, "hit" if enqueued.job_id is None else "miss").inc()
        if enqueued.job_id is None:
            reply = {"jobId": None, "status": "completed", "result": enqueued.cached_result, "cached": True}
            return json_reply(reply)
        return json_reply(
            {
                "jobId": str(enqueued.job_id),
                "status": enqueued.status.value,
                "estimatedTime": analysis.estimate_s,
                "pollUrl": f"{_PREFIX}/get-analysis-status?jobId={enqueued.job_id}",
            },
            status=202,
        )

    async def status(self, request: web.Request) -> web.Response:
        """The job as its owner, or the service, may see it."""
        principal = self._auth.principal(request.headers)
        job = await self._intake.status(await _job_id(request), principal.user_id)
        return json_reply(_view(request, job))

    async def cancel(self, request: web.Request) -> web.Response:
        """The job ends at once, whether it waits or runs."""
        principal = self._auth.principal(request.headers)
        job = await self._intake.cancel(await _job_id(request), principal.user_id)
        return json_reply(_view(request, job))


def build_gateway(gateway: Gateway, metrics: Metrics, *, max_body_bytes: int) -> web.Application:
    """The API with and without the Edge Functions' prefix."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[replies(metrics)])
    for prefix in (_PREFIX, ""):
        app.router.add_post(f"{prefix}/enqueue-analysis", gateway.enqueue)
        app.router.add_get(f"{prefix}/get-analysis-status", gateway.status)
        app.router.add_post(f"{prefix}/get-analysis-status", gateway.status)
        app.router.add_post(f"{prefix}/cancel-analysis", gateway.cancel)
    described = document()

    async def openapi(_request: web.Request) -> web.Response:
        return json_reply(described)

    app.router.add_get("/openapi.json", openapi)
    return app


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        raw = await request.read()
    except (web.RequestPayloadError, ConnectionResetError):
        # Half an upload of a phone without a signal, or not what Content-Encoding says: no bug of ours.
        raise InvalidJson("the body did not arrive whole") from None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidJson("not JSON") from None
    if not isinstance(body, dict):
        raise InvalidJson("not an object")
    if raw.count(b"[") + raw.count(b"{") > _DEEPEST and _is_deeper(body, _DEEPEST):
        raise InvalidJson("nested too deep")
    if b"\\u0000" in raw and _holds_nul(body):
        raise InputRejected("NUL character", fields="PostgreSQL cannot store the character U+0000: remove it")
    return body


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_holds_nul(item) for item in value)


def _checked(model: type[Body], raw: Any) -> Body:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InputRejected("body does not fit", fields=describe(error)) from None


def _user_of(principal: Principal, order: EnqueueRequest) -> UUID:
    if principal.user_id is not None:
        return principal.user_id
    if order.user_id is not None:
        return order.user_id
    try:
        return UUID(str(order.input.get("userId")))
    except ValueError:
        raise InputRejected("no user", fields="userId: with the service key, name the user by UUID") from None


def _idempotency_key(request: web.Request, order: EnqueueRequest) -> str | None:
    key = request.headers.get("Idempotency-Key") or order.idempotency_key
    if key is not None and len(key) > 200:
        raise InputRejected("idempotency key too long", fields="Idempotency-Key: at most 200 characters")
    return key


async def _job_id(request: web.Request) -> UUID:
    if request.method != "POST":
        raw: Any = {"jobId": request.query.get("jobId")}
    else:
        raw = await _json_object(request)
    try:
        return JobReference.model_validate(raw).job_id
    except ValidationError:
        raise InvalidJobId("not a UUID") from None


def _view(request: web.Request, job: JobView) -> dict[str, Any]:
    try:
        estimate = find_analysis(job.type).estimate_s
    except UnknownJobType:
        estimate = _UNKNOWN_ESTIMATE_S
    error = job.error
    if job.error_code and language_of(request) == "en":
        error = sentence(job.error_code, "en")
    return job_reply(job, estimate, error)
