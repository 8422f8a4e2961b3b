"""What is sent to Ollama's `/api/chat` and what comes back, line by line. No I/O."""

from __future__ import annotations

import base64
import itertools
from typing import Any

from aiworker.domain.completion import Completion, FinishReason, PromptRequest, Tool, ToolCall, Turn
from aiworker.domain.errors import AnswerEmpty, StreamBroken
from aiworker.llm.http import json_object
from aiworker.llm.ollama_errors import NAME, error_of_text
from aiworker.llm.structured import RawCall, Said, schema_hint, schema_of

_NS_PER_MS = 1e6
# What is less than this part of the answer is none, and what is more than that part of the context is all of it.
_LEAST_ROOM = 0.5
_FULL = 0.95
_NOT_ASKED = frozenset({"load", "unload"})


def chat_body(request: PromptRequest, model: str, num_ctx: int, keep_alive: str, *, thinks: bool) -> dict[str, Any]:
    """The body of `/api/chat`. The schema is in the system prompt too: the grammar hides it from the model."""
    options: dict[str, Any] = {
        "num_ctx": num_ctx,
        "num_predict": request.max_tokens,
        "temperature": request.temperature,
    }
    if request.seed is not None:
        options["seed"] = request.seed
    body: dict[str, Any] = {"model": model, "stream": True, "keep_alive": keep_alive, "options": options}
    # By default what does not fit is cut off at the front, where the instructions are, and nobody is told.
    body["truncate"] = False
    # The same in mid-answer, where the context gets full: the answer had better end there, as one that was cut.
    body["shift"] = False
    system = request.system
    if request.answer is not None:
        schema = schema_of(request.answer, "ollama")
        system += schema_hint(schema)
        if not request.tools:
            # A grammar would leave the model no way to ask for a tool.
            body["format"] = schema
    if request.tools:
        body["tools"] = [_function(tool) for tool in request.tools]
    if thinks:
        body["think"] = False
    body["messages"] = _messages(request, system)
    return body


def load_body(model: str, num_ctx: int, keep_alive: str) -> dict[str, Any]:
    """The body of `/api/chat` that has the model loaded and says nothing to it."""
    return {
        "model": model,
        "messages": [],
        "stream": False,
        "keep_alive": keep_alive,
        "options": {"num_ctx": num_ctx},
    }


def _function(tool: Tool) -> dict[str, Any]:
    parameters = schema_of(tool.arguments, "ollama")
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _messages(request: PromptRequest, system: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    history = [_message(turn) for turn in request.history]
    if not request.prompt and not request.images:
        return [*first, *history]
    last: dict[str, Any] = {"role": "user", "content": request.prompt}
    if request.images:
        last["images"] = [base64.b64encode(image).decode() for image in request.images]
    return [*first, *history, last]


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [_asked(call) for call in turn.calls]
    if call := turn.result_of:
        message["tool_name"] = call.name
        message |= {"tool_call_id": call.id} if call.id else {}
    return message


def _asked(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments.model_dump(mode="json", by_alias=True)
    # Ollama names its calls since 0.12.10; of two calls to one tool nothing else tells the results apart.
    return {"function": {"name": call.name, "arguments": arguments}} | ({"id": call.id} if call.id else {})


def newer_half(request: PromptRequest) -> tuple[Turn, ...]:
    """At most the newer half of the history, beginning with what the user said: a tool's result means nothing without
    its call. Where no prompt follows, the user's last turn is the question, and is never left out."""
    history = request.history
    newer = tuple(itertools.dropwhile(lambda turn: turn.role != "user", history[(len(history) + 1) // 2 :]))
    if newer or request.prompt or request.images:
        return newer
    question = max((place for place, turn in enumerate(history) if turn.role == "user"), default=0)
    return history[question:]


def out_of_room(completion: Completion, max_tokens: int, num_ctx: int) -> bool:
    """Whether the answer ended because the context was full, with less than half of the tokens that it might take."""
    full = completion.prompt_tokens + completion.answer_tokens >= _FULL * num_ctx
    return completion.finish == "length" and full and completion.answer_tokens < _LEAST_ROOM * max_tokens


class ChatStream:
    """Collects the lines of one streamed answer."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._pieces: list[str] = []
        self._calls: list[RawCall] = []
        self._last: dict[str, Any] | None = None
        self.begun = False

    def feed(self, line: bytes) -> bool:
        """Whether this was the last line. Raises ProviderError for an `error` line or for a line that is not JSON."""
        self.begun = True
        item = json_object(line, NAME)
        if item.get("error"):
            raise error_of_text(200, str(item["error"]))
        message = item.get("message")
        if isinstance(message, dict):
            self._pieces.append(str(message.get("content") or ""))
            calls = message.get("tool_calls")
            self._calls += [_call(item) for item in calls] if isinstance(calls, list) else []
        if item.get("done"):
            self._last = item
        return self._last is not None

    def said(self) -> Said:
        """Raises StreamBroken where the stream ended before its `done` line."""
        if self._last is None:
            raise StreamBroken("the stream ended early", provider=NAME, phase="total")
        reason = str(self._last.get("done_reason"))
        if reason in _NOT_ASKED:
            raise AnswerEmpty("the model was loaded or unloaded instead of asked", provider=NAME)
        finish: FinishReason = "length" if reason == "length" else "stop"
        load, prompt, answer = (self._ms(f"{part}_duration") for part in ("load", "prompt_eval", "eval"))
        completion = Completion(
            text="".join(self._pieces),
            provider=NAME,
            model=self._model,
            finish=finish,
            prompt_tokens=int(self._number("prompt_eval_count")),
            answer_tokens=int(self._number("eval_count")),
            wait_ms=max(0.0, self._ms("total_duration") - load - prompt - answer),
            load_ms=load,
            prompt_ms=prompt,
            answer_ms=answer,
        )
        return Said(completion, tuple(self._calls))

    def _ms(self, key: str) -> float:
        return self._number(key) / _NS_PER_MS

    def _number(self, key: str) -> float:
        value = (self._last or {}).get(key)
        return max(0.0, float(value)) if isinstance(value, int | float) else 0.0


def _call(item: Any) -> RawCall:
    """Raises StreamBroken for what is no call."""
    function = item.get("function") if isinstance(item, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if arguments is None:
        # What some models' templates leave of a function that takes none. Where it takes some, it is the model's error.
        arguments = {}
    if not isinstance(function, dict) or not isinstance(arguments, dict):
        raise StreamBroken("a tool call that is none", provider=NAME, phase="total")
    return RawCall(str(function.get("name")), arguments, id=str(item.get("id") or ""))
