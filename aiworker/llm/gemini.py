"""Gemini's `streamGenerateContent` (REST v1beta), as its API reference and the python-genai types define it."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from aiworker.domain.completion import Completion, FinishReason, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerBlocked,
    AnswerEmpty,
    AnswerInvalid,
    LocalOnly,
    PromptBlocked,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    StreamBroken,
)
from aiworker.llm.answering import ask_checked
from aiworker.llm.gemini_errors import NAME, enum_name, error_of, error_of_item
from aiworker.llm.http import Http, json_object
from aiworker.llm.pictures import Pictures
from aiworker.llm.structured import schema_of

_T = TypeVar("_T")

ALL = "all"
# Four of the tiles of 768 x 768 pixels that Gemini cuts a picture into; each is 258 tokens.
_PIXELS = 4 * 768 * 768

_FINISH: dict[str, FinishReason] = {"STOP": "stop", "MAX_TOKENS": "length"}
_BLOCKED = frozenset(
    [
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
    ]
)
# Dollars per million tokens (prompt, answer with thinking), paid tier up to 200k tokens of prompt, from
# ai.google.dev/gemini-api/docs/pricing as quoted in April 2026. The longest prefix of the name wins; others cost 0.
_PRICES: dict[str, tuple[float, float]] = {
    "gemini-2.5-flash-lite": (0.10, 0.40),
    "gemini-2.5-flash": (0.30, 2.50),
    "gemini-2.5-pro": (1.25, 10.00),
    "gemini-3-flash": (0.50, 3.00),
}
# Thinking costs seconds and eats the answer's tokens. Flash can do without; 128 is the least that Pro takes.
_THINKING_BUDGET: dict[str, int] = {"gemini-2.5-flash": 0, "gemini-2.5-pro": 128}


class GeminiModel:
    """The key travels in a header, to `base_url` only, and is in no repr, log or exception.

    Requests for the purposes in `local_only`, which may hold "all", are refused before anything is sent.
    """

    name = NAME
    sees_images = True

    def __init__(self, api_key: SecretStr, model: str, base_url: str, local_only: frozenset[str] = frozenset()) -> None:
        self.model = model
        self._local_only = local_only
        self._pictures = Pictures()
        self._path = f"/v1beta/models/{quote(model, safe='')}"
        headers = {"x-goog-api-key": api_key.get_secret_value().strip()}
        self._http = Http(NAME, base_url, error_of, keep_connections=True, headers=headers)

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """Raises a ProviderError, or an InputRejected for an image that cannot be read."""
        if request.local_only or not self._local_only.isdisjoint((request.purpose, ALL)):
            raise LocalOnly("this kind of analysis stays on this server", provider=NAME)
        images = await self._pictures.prepare(request.images, _PIXELS)
        return await ask_checked(self._ask, dataclasses.replace(request, images=images), deadline)

    async def probe(self, deadline: Deadline) -> dict[str, Any]:
        """Whether key and model are good: `reachable, model, present, error` (a code or None), `note` (what to do)."""
        try:
            await self._http.json("GET", self._path, None, deadline)
        except ProviderError as error:
            asked = isinstance(error, ProviderMisconfigured | ProviderRateLimited)
            return {
                "reachable": asked,
                "model": self.model,
                "present": False,
                "error": error.code,
                "note": error.note,
            }
        return {"reachable": True, "model": self.model, "present": True, "error": None, "note": ""}

    async def close(self) -> None:
        await self._http.close()

    async def _ask(self, request: PromptRequest, deadline: Deadline) -> Completion:
        answer = GenerateStream(self.model)
        await self._http.post_lines(
            f"{self._path}:streamGenerateContent?alt=sse", generate_body(request, self.model), deadline, answer.feed
        )
        return answer.completion()


def generate_body(request: PromptRequest, model: str) -> dict[str, Any]:
    """The body of `streamGenerateContent`; JPEGs come before the text, as Google advises for one
    image."""
    thinking = _longest_prefix(_THINKING_BUDGET, model)
    config: dict[str, Any] = {
        "temperature": request.temperature,
        "maxOutputTokens": request.max_tokens + (thinking or 0),
    }
    if thinking is not None:
        config["thinkingConfig"] = {"thinkingBudget": thinking}
    if request.seed is not None:
        config["seed"] = request.seed
    if request.answer is not None:
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = schema_of(request.answer, "gemini")
    body: dict[str, Any] = {"contents": _contents(request), "generationConfig": config}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": request.system}]}
    return body


def _contents(request: PromptRequest) -> list[dict[str, Any]]:
    turns = [
        {"role": "user" if turn.role == "user" else "model", "parts": [{"text": turn.text}]} for turn in request.history
    ]
    images = [
        {"inlineData": {"mimeType": "image/jpeg", "data": base64.b64encode(image).decode()}} for image in request.images
    ]
    return [*turns, {"role": "user", "parts": [*images, {"text": request.prompt}]}]


def cost_usd(model: str, prompt_tokens: int, answer_tokens: int) -> float:
    """By list price; 0 for a model that is not on our list."""
    prompt_price, answer_price = _longest_prefix(_PRICES, model) or (0.0, 0.0)
    return (prompt_tokens * prompt_price + answer_tokens * answer_price) / 1e6


def _longest_prefix(table: Mapping[str, _T], name: str) -> _T | None:
    fitting = [prefix for prefix in table if name.startswith(prefix)]
    return table[max(fitting, key=len)] if fitting else None


class GenerateStream:
    """Collects the server-sent events of one answer; Google puts each event's JSON on one `data:` line."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._pieces: list[str] = []
        self._usage: dict[str, Any] = {}
        self._finish = ""
        self._blocked = ""
        self._events = 0
        self._started = time.perf_counter()
        self._first = 0.0

    def feed(self, line: bytes) -> None:
        """Raises ProviderError for an error event or for data that is not JSON."""
        if not line.startswith(b"data:"):
            return
        item = json_object(line[5:], NAME)
        if "error" in item:
            raise error_of_item(item["error"])
        self._first = self._first or time.perf_counter()
        self._events += 1
        self._usage = item.get("usageMetadata") or self._usage
        self._blocked = (item.get("promptFeedback") or {}).get("blockReason") or self._blocked
        for candidate in (item.get("candidates") or [])[:1]:
            parts = (candidate.get("content") or {}).get("parts") or []
            self._pieces += [str(part.get("text") or "") for part in parts if not part.get("thought")]
            self._finish = candidate.get("finishReason") or self._finish

    def completion(self) -> Completion:
        """Raises PromptBlocked, AnswerBlocked, AnswerInvalid, and StreamBroken where the stream ended early."""
        finish = self._checked_finish()
        ended = time.perf_counter()
        prompt_tokens = self._tokens("promptTokenCount")
        answer_tokens = self._tokens("candidatesTokenCount") + self._tokens("thoughtsTokenCount")
        return Completion(
            text="".join(self._pieces),
            provider=NAME,
            model=self._model,
            finish=finish,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            prompt_ms=1000 * (self._first - self._started),
            answer_ms=1000 * (ended - self._first),
            cost_usd=cost_usd(self._model, prompt_tokens, answer_tokens),
        )

    def _checked_finish(self) -> FinishReason:
        if self._blocked:
            raise PromptBlocked("the prompt is blocked", provider=NAME, reason=enum_name(self._blocked))
        if self._finish in _FINISH:
            return _FINISH[self._finish]
        if self._finish in _BLOCKED:
            raise AnswerBlocked("the answer is blocked", provider=NAME, reason=enum_name(self._finish))
        if self._finish:
            raise AnswerInvalid("the answer ended badly", provider=NAME, reason=enum_name(self._finish))
        if self._events and not self._pieces:
            raise AnswerEmpty("the answer has no candidates", provider=NAME)
        raise StreamBroken("the stream ended early", provider=NAME, phase="total")

    def _tokens(self, key: str) -> int:
        value = self._usage.get(key)
        return value if isinstance(value, int) else 0
