"""Gemini's `streamGenerateContent` (REST v1beta), as its API reference and the python-genai types define it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    LocalOnly,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
)
from aiworker.llm.answering import ask_checked
from aiworker.llm.bill import Bill
from aiworker.llm.gemini_errors import NAME, error_of
from aiworker.llm.gemini_generate import GenerateStream, generate_body
from aiworker.llm.gemini_models import FREE, Price, price_of
from aiworker.llm.http import Http
from aiworker.llm.local_only import stays_here
from aiworker.llm.pictures import Pictures
from aiworker.llm.structured import Said
from aiworker.llm.tracing import traced
from aiworker.telemetry.traces import Traces

# Four of the tiles of 768 x 768 pixels that Gemini cuts a picture into; each is 258 tokens.
PIXELS = 4 * 768 * 768


class GeminiModel:
    """The key travels in a header, to `base_url` only, and is in no repr, log or exception.

    `price` is what its tokens cost, by default the list price; a model that is not on the list costs nothing.
    Requests for the purposes in `local_only`, which may hold "all", are refused before anything is sent.
    """

    name = NAME
    sees_images = True

    def __init__(
        self,
        api_key: SecretStr,
        model: str,
        base_url: str,
        local_only: frozenset[str] = frozenset(),
        traces: Traces | None = None,
        price: Price | None = None,
    ) -> None:
        self._price = price or price_of(model) or FREE
        self._traces = traces or Traces()
        self._base_url = base_url
        self.model = model
        self._local_only = local_only
        self._pictures = Pictures()
        self._path = f"/v1beta/models/{quote(model, safe='')}"
        headers = {"x-goog-api-key": api_key.get_secret_value().strip()}
        self._http = Http(NAME, base_url, error_of, keep_connections=True, headers=headers)

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill | None = None) -> Completion:
        """Raises a ProviderError, or an InputRejected for an image that cannot be read. `bill` knows at any moment what
        it has cost by the server's count."""
        bill = bill or Bill()
        if stays_here(request, self._local_only):
            raise LocalOnly("this kind of analysis stays on this server", provider=NAME)
        images = await self._pictures.prepare(request.images, PIXELS)
        ask = partial(self._ask, bill=bill)
        told = traced(ask, self._traces, provider=NAME, model=self.model, base_url=self._base_url)
        return await ask_checked(told, dataclasses.replace(request, images=images), deadline)

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

    async def _ask(self, request: PromptRequest, deadline: Deadline, bill: Bill) -> Said:
        bill.note_call()
        answer = GenerateStream(self.model, self._price)
        path = f"{self._path}:streamGenerateContent?alt=sse"
        try:
            await self._http.post_lines(path, generate_body(request, self.model), deadline, answer.feed)
            return answer.said()
        finally:
            bill.charge(answer.cost_usd)
