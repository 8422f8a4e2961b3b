"""Ollama's `/api/chat`, as its `api/types.go` and recordings of version 0.13.5 define it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    LocalOnly,
    ModelCannotSee,
    ModelNotFound,
    PromptTooLong,
    ProviderError,
    ProviderTimeout,
    RequestRejected,
)
from aiworker.llm.answering import ask_checked
from aiworker.llm.bill import Bill
from aiworker.llm.http import Http
from aiworker.llm.ollama_chat import ChatStream, chat_body, load_body, newer_half, out_of_room
from aiworker.llm.ollama_errors import NAME, error_of
from aiworker.llm.pictures import Pictures, pixels_read
from aiworker.llm.structured import Said
from aiworker.llm.tracing import traced
from aiworker.telemetry.traces import Traces

_SHOWN_TTL_S = 300.0
_SHOW_S = 5.0
_LOAD_S = 600.0
_UNUSED_LOAD_S = 300.0


@dataclass(frozen=True, slots=True)
class Shown:
    """What `/api/show` says of a model. `capabilities` is None where the server is too old to list them; a `remote` one
    runs in Ollama's cloud, whatever server it was asked for from; one that `projects` has a part for pictures."""

    capabilities: frozenset[str] | None
    pixels: int
    remote: bool
    projects: bool = False

    def says(self, capability: str) -> bool:
        """Whether it is listed."""
        return self.capabilities is not None and capability in self.capabilities

    def can(self, capability: str) -> bool:
        """Whether it may be asked for: what is not known may be tried, but for pictures, which it would ignore."""
        if self.capabilities is None:
            return capability != "vision" or self.projects
        return capability in self.capabilities


def shown_of(answer: Mapping[str, Any]) -> Shown:
    """From the body of `/api/show`."""
    listed, info = answer.get("capabilities"), answer.get("model_info")
    return Shown(
        frozenset(str(item) for item in listed) if isinstance(listed, list) else None,
        pixels_read(info if isinstance(info, dict) else {}),
        bool(answer.get("remote_host") or answer.get("remote_model")),
        bool(answer.get("projector_info")) or (isinstance(info, dict) and any(".vision." in key for key in info)),
    )


class OllamaModel:
    """`num_ctx` is the same in every call, since another value makes Ollama load the model again. The oldest turns of a
    conversation that does not fit into it are left out."""

    name = NAME

    def __init__(
        self,
        base_url: str,
        text_model: str,
        vision_model: str | None,
        num_ctx: int,
        keep_alive: str = "30m",
        traces: Traces | None = None,
    ) -> None:
        self._base_url = base_url
        self._traces = traces or Traces()
        self.text_model = text_model
        self.vision_model = vision_model
        self._num_ctx = num_ctx
        self._keep_alive = keep_alive
        # A restarted local server leaves dead connections behind, and opening a new one costs nothing here.
        self._http = Http(NAME, base_url, error_of, keep_connections=False, headers={})
        self._shown: dict[str, tuple[float, Shown]] = {}
        self._pictures = Pictures()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._no_load_until: dict[str, float] = {}

    @property
    def sees_images(self) -> bool:
        return self.vision_model is not None

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill | None = None) -> Completion:
        """Raises a ProviderError, or an InputRejected for an image that cannot be read; cancelling closes the socket,
        which frees Ollama's slot."""
        model = self.text_model if not request.images else self.vision_model
        if model is None:
            raise ModelCannotSee("no vision model: set OLLAMA_VISION_MODEL", provider=NAME)
        shown = await self._show(model, deadline)
        if request.local_only and shown.remote:
            raise LocalOnly("this kind of analysis stays on this server, and the model does not", provider=NAME)
        if request.images:
            if not shown.can("vision"):
                # Ollama would take the image, ignore it, and let the model invent what it shows.
                raise ModelCannotSee("OLLAMA_VISION_MODEL is a text-only model", provider=NAME)
            images = await self._pictures.prepare(request.images, shown.pixels)
            request = dataclasses.replace(request, images=images)
        if request.tools and not shown.can("tools"):
            raise RequestRejected("the model does not take tools: set OLLAMA_MODEL to one that does", provider=NAME)

        bill = bill or Bill()

        async def ask(request: PromptRequest, deadline: Deadline) -> Said:
            bill.note_call()
            body = chat_body(request, model, self._num_ctx, self._keep_alive, thinks=shown.says("thinking"))
            answer = ChatStream(model)
            try:
                await self._http.post_lines("/api/chat", body, deadline, answer.feed)
            except (ProviderTimeout, asyncio.CancelledError):
                if not (answer.begun or shown.remote):
                    self._load_on(model)
                raise
            self._no_load_until.pop(model, None)
            said = answer.said()
            if out_of_room(said.completion, request.max_tokens, self._num_ctx):
                note = "the prompt leaves no room for an answer: raise OLLAMA_NUM_CTX, if the memory allows"
                raise PromptTooLong(note, provider=NAME)
            return said

        told = traced(ask, self._traces, provider=NAME, model=model, base_url=self._base_url)
        while True:
            try:
                return await ask_checked(told, request, deadline)
            except PromptTooLong:
                newer = newer_half(request)
                if len(newer) == len(request.history):
                    raise
                request = dataclasses.replace(request, history=newer)

    async def probe(self, deadline: Deadline) -> dict[str, Any]:
        """What is there: `reachable, version, models: {name: {present, vision, remote}}, error, note`."""
        try:
            version = await self._http.json("GET", "/api/version", None, deadline)
            models = {name: await self._presence(name, deadline) for name in self._models()}
        except ProviderError as error:
            return {"reachable": False, "version": None, "models": {}, "error": error.code, "note": error.note}
        return {"reachable": True, "version": version.get("version"), "models": models, "error": None, "note": ""}

    async def close(self) -> None:
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await self._http.close()

    def _load_on(self, model: str) -> None:
        """Ollama breaks a load off when nobody waits for it any more: one that takes longer than a job may would be
        begun anew by every job, and never be over. Not for a while after one that nobody had anything of: where there
        is no room for both models, it takes the other one away from its users each time."""
        if model not in self._loads and time.monotonic() >= self._no_load_until.get(model, 0.0):
            self._loads[model] = task = asyncio.create_task(self._load(model))
            task.add_done_callback(lambda _: self._loads.pop(model, None))

    async def _load(self, model: str) -> None:
        body = load_body(model, self._num_ctx, self._keep_alive)
        # Nobody waits for it; what is wrong, the next call is told.
        with contextlib.suppress(ProviderError):
            await self._http.json("POST", "/api/chat", body, Deadline.after(_LOAD_S))
            self._no_load_until[model] = time.monotonic() + _UNUSED_LOAD_S

    def _models(self) -> list[str]:
        return [self.text_model, *([self.vision_model] if self.vision_model else [])]

    async def _presence(self, model: str, deadline: Deadline) -> dict[str, bool | None]:
        self._shown.pop(model, None)
        try:
            shown = await self._show(model, deadline)
        except ModelNotFound:
            return {"present": False, "vision": None, "remote": None}
        vision = None if shown.capabilities is None else shown.says("vision")
        return {"present": True, "vision": vision, "remote": shown.remote}

    async def _show(self, model: str, deadline: Deadline) -> Shown:
        known = self._shown.get(model)
        if known and known[0] > time.monotonic():
            return known[1]
        shown = shown_of(await self._http.json("POST", "/api/show", {"model": model}, deadline.within(_SHOW_S)))
        self._shown[model] = (time.monotonic() + _SHOWN_TTL_S, shown)
        return shown
