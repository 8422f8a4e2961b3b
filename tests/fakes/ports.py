"""Small stand-ins for the ports of an analysis: each answers with what the test gives it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from pydantic import BaseModel

from aiworker.analyses.base import Attempt, Tools
from aiworker.domain.completion import Completion, FinishReason, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detection, Detections
from aiworker.domain.errors import NoProvider

JOB_ID = UUID("22222222-2222-4222-8222-222222222222")


class FunctionImages:
    def __init__(self, answer: bytes | Exception = b"photo") -> None:
        self.answer = answer

    async def fetch(self, url: str, deadline: Deadline) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FunctionDetector:
    """`model` is the one last asked for."""

    def __init__(self, answer: Detections | Exception) -> None:
        self.answer = answer
        self.model = ""

    async def detect(self, image: bytes, deadline: Deadline, model: str = "") -> Detections:
        self.model = model
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FunctionModel:
    """Answers with `answer(request)`: text, a value, or an exception to raise. Keeps the requests."""

    def __init__(
        self,
        answer: Callable[[PromptRequest], str | BaseModel | Exception] | None = None,
        finish: FinishReason = "stop",
    ) -> None:
        self._finish = finish
        self._answer = answer or (
            lambda _: NoProvider(reasons={"gemini": "not_configured", "ollama": "not_configured"})
        )
        self.requests: list[PromptRequest] = []

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        self.requests.append(request)
        answer = self._answer(request)
        if isinstance(answer, Exception):
            raise answer
        text = answer if isinstance(answer, str) else answer.model_dump_json()
        value = None if isinstance(answer, str) else answer
        return Completion(text=text, provider="gemini", model="fake", finish=self._finish, value=value, answer_tokens=5)


def detections(*found: tuple[str, float], width: int = 640, height: int = 480) -> Detections:
    items = tuple(
        Detection(index, name, confidence, (10.0, 20.0, 110.0, 220.0)) for index, (name, confidence) in enumerate(found)
    )
    return Detections(items, width, height, "yolov8n", "torch-cpu-fp32", 1, 30.0)


def attempt(
    *,
    images: FunctionImages | None = None,
    detector: FunctionDetector | None = None,
    model: FunctionModel | None = None,
    report: Callable[[int, str], None] = lambda _percent, _stage: None,
) -> Attempt:
    tools = Tools(images or FunctionImages(), detector or FunctionDetector(detections()), model or FunctionModel())
    return Attempt(JOB_ID, tools, Deadline.after(10), report)
