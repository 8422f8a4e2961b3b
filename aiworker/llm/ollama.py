"""Ollama's `/api/chat`, as its `api/types.go` and recordings of version 0.13.5 define it."""

from __future__ import annotations

import base64
import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from aiworker.domain.completion import Completion, FinishReason, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    AnswerEmpty,
    ModelCannotSee,
    ModelNotFound,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderUnavailable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm.answering import ask_checked
from aiworker.llm.http import Http, json_object
from aiworker.llm.pictures import Pictures, pixels_read
from aiworker.llm.structured import schema_of

NAME = "ollama"
_SHOWN_TTL_S = 300.0
_BUSY_RETRY_S = 1.0
_NS_PER_MS = 1e6
# Ollama answers 500 to these although trying again cannot help.
_PERMANENT = re.compile(
    r"invalid format|^option |must be of type|does not support|unknown format|invalid image|failed to parse", re.I
)
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What `/api/show` says of a model. `capabilities` is None where the server is too old to list them."""

    capabilities: frozenset[str] | None
    pixels: int

    def says(self, capability: str) -> bool:
        """Whether it is listed."""
        return self.capabilities is not None and capability in self.capabilities

    def can(self, capability: str) -> bool:
        """Whether it may be asked for: what is not known may be tried."""
        return self.capabilities is None or capability in self.capabilities


def shown_of(answer: Mapping[str, Any]) -> Shown:
    """From the body of `/api/show`."""
    listed, info = answer.get("capabilities"), answer.get("model_info")
    return Shown(
        frozenset(str(item) for item in listed) if isinstance(listed, list) else None,
        pixels_read(info if isinstance(info, dict) else {}),
    )


class OllamaModel:
    """`num_ctx` is the same in every call, since another value makes Ollama load the model again."""

    name = NAME

    def __init__(
        self, base_url: str, text_model: str, vision_model: str | None, num_ctx: int, keep_alive: str = "30m"
    ) -> None:
        self.text_model = text_model
        self.vision_model = vision_model
        self._num_ctx = num_ctx
        self._keep_alive = keep_alive
        # A restarted local server leaves dead connections behind, and opening a new one costs nothing here.
        self._http = Http(NAME, base_url, error_of, keep_connections=False, headers={})
        self._shown: dict[str, tuple[float, Shown]] = {}
        self._pictures = Pictures()

    @property
    def sees_images(self) -> bool:
        return self.vision_model is not None

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """Raises a ProviderError, or an InputRejected for an image that cannot be read; cancelling closes the socket,
        which frees Ollama's slot."""
        model = self.text_model if not request.images else self.vision_model
        if model is None:
            raise ModelCannotSee("no vision model: set OLLAMA_VISION_MODEL", provider=NAME)
        shown = await self._show(model, deadline)
        if request.images:
            if not shown.can("vision"):
                # Ollama would take the image, ignore it, and let the model invent what it shows.
                raise ModelCannotSee("OLLAMA_VISION_MODEL is a text-only model", provider=NAME)
            images = await self._pictures.prepare(request.images, shown.pixels)
            request = dataclasses.replace(request, images=images)

        async def ask(request: PromptRequest, deadline: Deadline) -> Completion:
            body = chat_body(request, model, self._num_ctx, self._keep_alive, thinks=shown.says("thinking"))
            answer = ChatStream(model)
            await self._http.post_lines("/api/chat", body, deadline, answer.feed)
            return answer.completion()

        return await ask_checked(ask, request, deadline)

    async def probe(self, deadline: Deadline) -> dict[str, Any]:
        """What is there: `reachable, version, models: {name: {present, vision}}, error` (a code or None), `note`."""
        try:
            version = await self._http.json("GET", "/api/version", None, deadline)
            models = {name: await self._presence(name, deadline) for name in self._models()}
        except ProviderError as error:
            return {"reachable": False, "version": None, "models": {}, "error": error.code, "note": error.note}
        return {"reachable": True, "version": version.get("version"), "models": models, "error": None, "note": ""}

    async def close(self) -> None:
        await self._http.close()

    def _models(self) -> list[str]:
        return [self.text_model, *([self.vision_model] if self.vision_model else [])]

    async def _presence(self, model: str, deadline: Deadline) -> dict[str, bool | None]:
        self._shown.pop(model, None)
        try:
            shown = await self._show(model, deadline)
        except ModelNotFound:
            return {"present": False, "vision": None}
        return {"present": True, "vision": None if shown.capabilities is None else shown.says("vision")}

    async def _show(self, model: str, deadline: Deadline) -> Shown:
        known = self._shown.get(model)
        if known and known[0] > time.monotonic():
            return known[1]
        shown = shown_of(await self._http.json("POST", "/api/show", {"model": model}, deadline))
        self._shown[model] = (time.monotonic() + _SHOWN_TTL_S, shown)
        return shown


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
    system = request.system
    if request.answer is not None:
        body["format"] = schema_of(request.answer, "ollama")
        system += f"\n\nResponda só com JSON que siga este esquema:\n{orjson.dumps(body['format']).decode()}"
    if thinks:
        body["think"] = False
    body["messages"] = _messages(request, system)
    return body


def _messages(request: PromptRequest, system: str) -> list[dict[str, Any]]:
    last: dict[str, Any] = {"role": "user", "content": request.prompt}
    if request.images:
        last["images"] = [base64.b64encode(image).decode() for image in request.images]
    history = [{"role": turn.role, "content": turn.text} for turn in request.history]
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *history, last]


class ChatStream:
    """Collects the lines of one streamed answer."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._pieces: list[str] = []
        self._last: dict[str, Any] | None = None

    def feed(self, line: bytes) -> None:
        """Raises ProviderError for an `error` line or for a line that is not JSON."""
        item = json_object(line, NAME)
        if "error" in item:
            raise _error_of_text(200, str(item["error"]))
        message = item.get("message")
        if isinstance(message, dict):
            self._pieces.append(str(message.get("content") or ""))
        if item.get("done"):
            self._last = item

    def completion(self) -> Completion:
        """Raises StreamBroken where the stream ended before its `done` line."""
        if self._last is None:
            raise StreamBroken("the stream ended early", provider=NAME, phase="total")
        finish = _FINISH.get(str(self._last.get("done_reason", "stop")))
        if finish is None:
            raise AnswerEmpty("the model was loaded or unloaded instead of asked", provider=NAME)
        load, prompt, answer = (self._ms(f"{part}_duration") for part in ("load", "prompt_eval", "eval"))
        return Completion(
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

    def _ms(self, key: str) -> float:
        return self._number(key) / _NS_PER_MS

    def _number(self, key: str) -> float:
        value = (self._last or {}).get(key)
        return float(value) if isinstance(value, int | float) else 0.0


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The typed error of an answer that is not 200. Ollama's own text decides but is not kept: it may quote input."""
    try:
        item = orjson.loads(body)
    except orjson.JSONDecodeError:
        item = None
    text = str(item.get("error", "")) if isinstance(item, dict) else ""
    return _error_of_text(status, text)


def _error_of_text(status: int, text: str) -> ProviderError:
    if status == 404 and "not found" in text:
        return ModelNotFound("model not pulled: run `aiworker models pull`", provider=NAME, status=status)
    if status == 429 or (status == 503 and "busy" in text):
        return ProviderRateLimited("the server is busy", provider=NAME, retry_after=_BUSY_RETRY_S, status=status)
    if status in (401, 403):
        return ProviderMisconfigured("the server wants a login: check OLLAMA_URL", provider=NAME, status=status)
    if _PERMANENT.search(text) or (300 <= status < 500 and status not in (408, 499)):
        return RequestRejected("the server refuses the request as it is", provider=NAME, status=status)
    if status == 200:
        return StreamBroken("the server broke off its answer", provider=NAME, status=status)
    return ProviderUnavailable("the server failed", provider=NAME, status=status)
