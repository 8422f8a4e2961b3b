"""The API as an OpenAPI 3.1 document, made of the models that check requests and make results."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from aiworker.analyses.registry import ANALYSES, OLD_NAMES
from aiworker.domain.job import JobStatus
from aiworker.gateway.schemas import EnqueueRequest, JobReference

_REF = "#/components/schemas/{model}"
_ENQUEUE_ERRORS = (400, 401, 403, 409, 413, 429, 503)
_JOB_ERRORS = (400, 401, 404, 503)
_MEANING = {
    400: "the request is at fault; `code` and `details` say where",
    401: "no or a bad token",
    403: "this token may not do that",
    404: "no such job, or another user's",
    409: "the job has ended, or the idempotency key was used for another request",
    413: "the body is too large",
    429: "the user has too many unfinished jobs; `Retry-After` says when to come back",
    503: "the worker cannot be reached: take the synchronous way (`fallback: true`)",
}


class _Reply(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Accepted(_Reply):
    """The job is in the queue: `pending`, or further where its idempotency key was sent before. `estimated_time` in
    seconds."""

    job_id: UUID
    status: JobStatus
    estimated_time: int
    poll_url: str


class FromCache(_Reply):
    """An identical request was answered before."""

    job_id: None
    status: Literal["completed"]
    result: dict[str, Any]
    cached: Literal[True]


class Job(_Reply):
    """Fields that do not apply to the status are left out. `processing_time` in milliseconds, `estimated_duration` in
    seconds; `error` is a sentence, `code` is stable."""

    job_id: UUID
    status: JobStatus
    type: str
    created_at: datetime
    updated_at: datetime
    estimated_duration: int
    progress: int = Field(ge=0, le=100)
    stage: str | None
    attempts: int
    max_attempts: int
    priority: int | None = None
    started_at: datetime | None = None
    worker_id: str | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    code: str | None = None
    completed_at: datetime | None = None
    processing_time: int | None = None


class Error(_Reply):
    """`fallback` is there, and true, with 503 only."""

    error: str
    code: str
    details: dict[str, Any]
    fallback: bool = False


class Health(_Reply):
    """`checks` maps what the process needs to whether it has it."""

    status: Literal["healthy", "unhealthy"]
    checks: dict[str, bool]


def document() -> dict[str, Any]:
    """What `/openapi.json` answers."""
    schemas = _schemas()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aiworker",
            "version": version("aiworker"),
            "summary": "Slow AI analyses in the background: enqueue, poll, cancel.",
            "description": "Every path also works without `/functions/v1`. Sentences are Portuguese, or English with "
            "`Accept-Language: en`.",
            "license": {"name": "AGPL-3.0-or-later", "identifier": "AGPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"serviceKey": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a user's Supabase JWT, or the service key",
                },
                "serviceKey": {"type": "apiKey", "in": "header", "name": "apikey", "description": "the service key"},
            },
        },
    }


def _schemas() -> dict[str, Any]:
    asked: list[tuple[type[BaseModel], JsonSchemaMode]] = [(EnqueueRequest, "validation"), (JobReference, "validation")]
    asked += [(model, "serialization") for model in (Accepted, FromCache, Job, Error, Health)]
    for analysis in ANALYSES.values():
        asked += [(analysis.input_model, "validation"), (get_type_hints(analysis.run)["return"], "serialization")]
    _, found = models_json_schema(asked, ref_template=_REF)
    schemas: dict[str, Any] = found["$defs"]
    order = schemas["EnqueueRequest"]["properties"]
    order["type"] |= {"enum": sorted(ANALYSES) + sorted(OLD_NAMES)}
    order["input"] = {
        "description": "the input of that type",
        "anyOf": [_ref(analysis.input_model.__name__) for analysis in ANALYSES.values()],
    }
    schemas["Job"]["properties"]["result"] = {
        "description": "the result of that type, once the job has completed",
        "anyOf": [*(_ref(get_type_hints(each.run)["return"].__name__) for each in ANALYSES.values()), {"type": "null"}],
    }
    return schemas


def _paths() -> dict[str, Any]:
    job_id = {"name": "jobId", "in": "query", "required": True, "schema": {"type": "string", "format": "uuid"}}
    key = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 200}}
    status = {"200": _answer("the job", "Job"), **_errors(_JOB_ERRORS)}
    return {
        "/functions/v1/enqueue-analysis": {
            "post": {
                "operationId": "enqueueAnalysis",
                "summary": "Ask for an analysis",
                "parameters": [key],
                "requestBody": _body("EnqueueRequest"),
                "responses": {
                    "202": _answer("in the queue", "Accepted"),
                    "200": _answer("answered from the cache", "FromCache"),
                    **_errors(_ENQUEUE_ERRORS),
                },
            }
        },
        "/functions/v1/get-analysis-status": {
            "get": {
                "operationId": "getAnalysisStatus",
                "summary": "How a job is, and its result",
                "parameters": [job_id],
                "responses": status,
            },
            "post": {
                "operationId": "postAnalysisStatus",
                "summary": "The same, as the Edge Function was called",
                "requestBody": _body("JobReference"),
                "responses": status | _errors((413,)),
            },
        },
        "/functions/v1/cancel-analysis": {
            "post": {
                "operationId": "cancelAnalysis",
                "summary": "Stop a job: at once, whether it waits or runs",
                "requestBody": _body("JobReference"),
                "responses": {"200": _answer("the job", "Job"), **_errors((*_JOB_ERRORS, 409, 413))},
            }
        },
        "/health": {"get": _health("health", "Whether the gateway can work: for uptime checks")},
        "/ready": {"get": _health("ready", "The same, for load balancers")},
        "/live": {"get": _open("live", "Whether the process answers at all", "application/json")},
        "/health/detailed": {"get": _health("healthDetailed", "How it is, for a person", secured=True)},
        "/metrics": {"get": _open("metrics", "OpenMetrics", "application/openmetrics-text", secured=True)},
        "/openapi.json": {"get": _open("openapi", "This document", "application/json")},
    }


def _health(operation: str, summary: str, *, secured: bool = False) -> dict[str, Any]:
    found = _open(operation, summary, "application/json", secured=secured)
    found["responses"] |= {"200": _answer("it can", "Health"), "503": _answer("it cannot", "Health")}
    return found


def _open(operation: str, summary: str, content: str, *, secured: bool = False) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": summary, "content": {content: {}}}}
    security: list[dict[str, list[str]]] = [{}]
    if secured:
        responses["401"] = _answer("HEALTH_TOKEN is set and was not given", "Error")
        security.append({"token": []})
    return {"operationId": operation, "summary": summary, "security": security, "responses": responses}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}


def _body(name: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _answer(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    return {str(status): _answer(_MEANING[status], "Error") for status in statuses}
