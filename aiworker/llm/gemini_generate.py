"""What is sent to Gemini's `streamGenerateContent` and what comes back, event by event. No I/O."""

from __future__ import annotations

import base64
import time
from typing import Any

from aiworker.domain.completion import Completion, FinishReason, PromptRequest, Tool, ToolCall, Turn
from aiworker.domain.errors import AnswerBlocked, AnswerEmpty, AnswerInvalid, PromptBlocked, StreamBroken
from aiworker.llm.gemini_errors import NAME, enum_name, error_in_stream
from aiworker.llm.gemini_models import FREE, Price, takes_temperature, thinking_of, wants_signatures
from aiworker.llm.http import json_object
from aiworker.llm.structured import RawCall, Said, schema_hint, schema_of

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
# Google's own word for calls that none of its models made.
_FROM_ELSEWHERE = "skip_thought_signature_validator"
# A conversation that the assistant opened, or of which only the end is told: Gemini wants the user to begin.
_BEFORE = {"role": "user", "parts": [{"text": "(início da conversa)"}]}


def generate_body(request: PromptRequest, model: str) -> dict[str, Any]:
    """The body of `streamGenerateContent`; JPEGs come before the text, as Google advises for one image."""
    thinking = thinking_of(model)
    config: dict[str, Any] = {"maxOutputTokens": request.max_tokens + thinking.tokens}
    if takes_temperature(model):
        config["temperature"] = request.temperature
    if thinking.config:
        config["thinkingConfig"] = thinking.config
    if request.seed is not None:
        config["seed"] = request.seed
    system = request.system
    if request.answer is not None:
        schema = schema_of(request.answer, "gemini")
        if request.tools:
            # Gemini 2.5 refuses a response type beside tools.
            system += schema_hint(schema)
        else:
            config["responseMimeType"] = "application/json"
            config["responseJsonSchema"] = schema
    body: dict[str, Any] = {"contents": _contents(request, model), "generationConfig": config}
    if request.tools:
        body["tools"] = [{"functionDeclarations": [_function(tool) for tool in request.tools]}]
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    return body


def _function(tool: Tool) -> dict[str, Any]:
    parameters = schema_of(tool.arguments, "gemini")
    return {"name": tool.name, "description": tool.description, "parametersJsonSchema": parameters}


def _contents(request: PromptRequest, model: str) -> list[dict[str, Any]]:
    """Turns of the same side are one: Gemini wants the results of all calls of a turn together, and nothing with them:
    a text after a result it takes for the model's own."""
    turns: list[dict[str, Any]] = []
    for turn in request.history:
        role, parts = "model" if turn.role == "assistant" else "user", _parts(turn)
        if turns and turns[-1]["role"] == role and _results(turns[-1]["parts"]) == _results(parts):
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": role, "parts": parts})
    if turns and turns[0]["role"] == "model":
        turns.insert(0, _BEFORE)
    if wants_signatures(model):
        _sign_calls_from_elsewhere(turns)
    images = [
        {"inlineData": {"mimeType": "image/jpeg", "data": base64.b64encode(image).decode()}} for image in request.images
    ]
    last = [*images, *_text(request.prompt)]
    return [*turns, {"role": "user", "parts": last}] if last else turns


def _sign_calls_from_elsewhere(turns: list[dict[str, Any]]) -> None:
    """It is the first call of a turn that needs a signature."""
    for content in turns:
        for part in content["parts"]:
            if "functionCall" in part:
                part.setdefault("thoughtSignature", _FROM_ELSEWHERE)
                break


def _parts(turn: Turn) -> list[dict[str, Any]]:
    if call := turn.result_of:
        return [{"functionResponse": {"name": call.name, "response": {"result": turn.text}} | _id_of(call)}]
    return [*_text(turn.text), *[_call_part(call) for call in turn.calls]]


def _results(parts: list[dict[str, Any]]) -> bool:
    return any("functionResponse" in part for part in parts)


def _text(text: str) -> list[dict[str, Any]]:
    """To Gemini a part with an empty text has nothing in it, which it refuses."""
    return [{"text": text}] if text else []


def _call_part(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments.model_dump(mode="json", by_alias=True)
    part: dict[str, Any] = {"functionCall": {"name": call.name, "args": arguments} | _id_of(call)}
    return part | ({"thoughtSignature": call.opaque} if call.opaque else {})


def _id_of(call: ToolCall) -> dict[str, str]:
    """Since Gemini 3.5 a result must name its call."""
    return {"id": call.id} if call.id else {}


class GenerateStream:
    """Collects the server-sent events of one answer; Google puts each event's JSON on one `data:` line."""

    def __init__(self, model: str, price: Price = FREE) -> None:
        self._model = model
        self._price = price
        self._pieces: list[str] = []
        self._calls: list[RawCall] = []
        self._usage: dict[str, Any] = {}
        self._finish = ""
        self._blocked = ""
        self._bare: list[bytes] = []
        self._events = 0
        self._started = time.perf_counter()
        self._first = 0.0

    def feed(self, line: bytes) -> bool:
        """Whether the answer is complete. Raises ProviderError for an error event or for data that is not JSON."""
        if not line.startswith(b"data:"):
            if self._bare or line.startswith((b"{", b"[")):
                self._bare.append(line)
            return False
        item = json_object(line[5:], NAME)
        if "error" in item:
            raise error_in_stream(line[5:])
        self._first = self._first or time.perf_counter()
        self._events += 1
        self._usage = _dict(item.get("usageMetadata")) or self._usage
        self._blocked = str(_dict(item.get("promptFeedback")).get("blockReason") or self._blocked)
        for candidate in map(_dict, _list(item.get("candidates"))[:1]):
            for part in map(_dict, _list(_dict(candidate.get("content")).get("parts"))):
                self._take(part)
            self._finish = str(candidate.get("finishReason") or self._finish)
        # A blocked prompt has no candidates, so nothing finishes.
        return bool(self._finish or self._blocked)

    def _take(self, part: dict[str, Any]) -> None:
        if "functionCall" in part:
            call = _dict(part["functionCall"])
            signature, call_id = str(part.get("thoughtSignature") or ""), str(call.get("id") or "")
            self._calls.append(RawCall(str(call.get("name")), _dict(call.get("args")), signature, call_id))
        elif not part.get("thought"):
            self._pieces.append(str(part.get("text") or ""))

    def said(self) -> Said:
        """Raises PromptBlocked, AnswerBlocked, AnswerInvalid, and StreamBroken where the stream ended early."""
        finish = self._checked_finish()
        ended = time.perf_counter()
        prompt_tokens, answer_tokens = self._tokens()
        completion = Completion(
            text="".join(self._pieces),
            provider=NAME,
            model=self._model,
            finish=finish,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            prompt_ms=1000 * (self._first - self._started),
            answer_ms=1000 * (ended - self._first),
            cost_usd=self.cost_usd,
        )
        return Said(completion, tuple(self._calls))

    @property
    def cost_usd(self) -> float:
        """What it has cost so far: each event counts the tokens up to itself."""
        return self._price.of(*self._tokens())

    def _checked_finish(self) -> FinishReason:
        if self._blocked:
            raise PromptBlocked("the prompt is blocked", provider=NAME, reason=enum_name(self._blocked))
        if self._finish in _FINISH:
            return _FINISH[self._finish]
        if self._finish in _BLOCKED:
            raise AnswerBlocked("the answer is blocked", provider=NAME, reason=enum_name(self._finish))
        if self._finish:
            raise AnswerInvalid("the answer ended badly", provider=NAME, reason=enum_name(self._finish))
        if self._events and not self._pieces and not self._calls:
            raise AnswerEmpty("the answer has no candidates", provider=NAME)
        if self._bare:
            # An error as it would come alone, which Google puts into streams as well.
            raise error_in_stream(b"".join(self._bare))
        raise StreamBroken("the stream ended early", provider=NAME, phase="total")

    def _tokens(self) -> tuple[int, int]:
        """Of prompt and answer, thinking included."""
        return self._count("promptTokenCount"), self._count("candidatesTokenCount") + self._count("thoughtsTokenCount")

    def _count(self, key: str) -> int:
        value = self._usage.get(key)
        return max(0, value) if isinstance(value, int) else 0


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
