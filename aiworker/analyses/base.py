"""What every analysis is made of: its contract, the tools it may use, and the stages it reports."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from aiworker.analyses.prompt import Prompt
from aiworker.domain.completion import Completion
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import NoProvider, ProviderError
from aiworker.domain.job import JobType, Sharing
from aiworker.domain.messages import sentence
from aiworker.domain.ports import Detector, ImageSource, TextModel

Stage = Literal["fetch", "detect", "generate", "save"]
STAGES: tuple[Stage, ...] = ("fetch", "detect", "generate", "save")


class JobInput(BaseModel):
    """Fields are snake_case here and camelCase on the wire; fields that we do not know are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", str_strip_whitespace=True, allow_inf_nan=False
    )


class ProviderNote(BaseModel):
    """Who answered, and what it took. Times in milliseconds."""

    name: str
    model: str
    wait_ms: float
    answer_ms: float
    prompt_tokens: int
    answer_tokens: int
    cost_usd: float

    @classmethod
    def of(cls, completion: Completion) -> ProviderNote:
        return cls(
            name=completion.provider,
            model=completion.model,
            wait_ms=completion.wait_ms + completion.load_ms,
            answer_ms=completion.prompt_ms + completion.answer_ms,
            prompt_tokens=completion.prompt_tokens,
            answer_tokens=completion.answer_tokens,
            cost_usd=completion.cost_usd,
        )


class AnalysisResult(BaseModel):
    """The part that all results share; the rest has the shape that the old function's callers read.

    `degraded` is true when a part was answered by rule; `degraded_code` is stable, `degraded_reason` is for people, and
    `providers_skipped` says for each provider that did not answer why not. `cost_usd` is of all that this attempt
    asked of models, also in vain.
    """

    success: bool = True
    degraded: bool = False
    degraded_code: str | None = None
    degraded_reason: str | None = None
    provider: ProviderNote | None = None
    providers_skipped: dict[str, str] = Field(default_factory=dict)
    cost_usd: float = 0.0
    stages_ms: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tools:
    """All that an analysis may reach."""

    images: ImageSource
    detector: Detector
    model: TextModel


@dataclass(slots=True)
class Attempt:
    """What one run of an analysis is given besides its input. `report` is told (percent, stage) as each stage begins,
    `stages_ms` is how long each has taken."""

    job_id: UUID
    tools: Tools
    deadline: Deadline
    report: Callable[[int, str], None]
    stages_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Around the work of `stage`."""
        self.report(100 * STAGES.index(stage) // len(STAGES), stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = 1000 * (time.perf_counter() - started)
            self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + spent


@dataclass(frozen=True, slots=True)
class Analysis:
    """One job type, called `name`. `version` is part of the cache key: raise it when rules or result change. The
    fingerprints of `prompts` are part of it too, so that a changed prompt needs no thought.

    `slo_s` sets the deadline, `estimate_s` is what clients are told, `sharing` who may be given a result again.
    """

    name: str
    version: str
    input_model: type[JobInput]
    run: Callable[[Any, Attempt], Awaitable[AnalysisResult]]
    slo_s: float
    estimate_s: int
    sharing: Sharing
    prompts: tuple[Prompt, ...] = ()

    @property
    def job_type(self) -> JobType:
        """What the queue has to know of it."""
        version = ".".join([self.version, *[prompt.fingerprint for prompt in self.prompts]])
        return JobType(self.name, version, self.slo_s, self.sharing)


def degraded(code: str) -> dict[str, Any]:
    """The shared fields of a result that is not all that was asked for."""
    return {"degraded": True, "degraded_code": code, "degraded_reason": sentence(code)}


def provenance(answer: Completion | None, error: ProviderError | None = None) -> dict[str, Any]:
    """The shared fields of a result that `answer` gave, or that had to do without a model because of `error`."""
    if answer is not None:
        return {
            "provider": ProviderNote.of(answer),
            "providers_skipped": answer.skipped,
            "cost_usd": answer.cost_usd,
        }
    if error is None:
        return {}
    return {
        **degraded(error.code),
        "cost_usd": error.cost_usd,
        "providers_skipped": error.reasons if isinstance(error, NoProvider) else {error.provider: error.code},
    }
