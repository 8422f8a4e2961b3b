"""Ollama's error texts to typed errors. They decide but are not kept: they may quote input."""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

from aiworker.domain.errors import (
    ModelNotFound,
    PromptTooLong,
    ProviderError,
    ProviderMisconfigured,
    ProviderRateLimited,
    ProviderUnavailable,
    RequestRejected,
    StreamBroken,
)
from aiworker.llm.http import retry_after_of

NAME = "ollama"
_BUSY_RETRY_S = 1.0
_TOO_LONG = re.compile(r"context (?:length|size)", re.I)
# Ollama answers 500 to these although trying again cannot help.
_PERMANENT = re.compile(
    r"invalid format|^option |must be of type|does not support|unknown format|invalid image|failed to parse", re.I
)


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The typed error of an answer that is not 200."""
    try:
        item = orjson.loads(body)
    except orjson.JSONDecodeError:
        item = None
    text = str(item.get("error", "")) if isinstance(item, dict) else ""
    return error_of_text(status, text, retry_after_of(headers))


def error_of_text(status: int, text: str, retry_after: float | None = None) -> ProviderError:
    """`status` 200 is an error line inside a stream. `retry_after` comes from a proxy: Ollama itself never says."""
    if _TOO_LONG.search(text):
        note = "the prompt does not fit: raise OLLAMA_NUM_CTX, if the memory allows"
        return PromptTooLong(note, provider=NAME, status=status)
    if status == 404 and "not found" in text:
        return ModelNotFound("model not pulled: run `aiworker models pull`", provider=NAME, status=status)
    if status == 429 or (status == 503 and "busy" in text):
        wait_s = _BUSY_RETRY_S if retry_after is None else retry_after
        return ProviderRateLimited("the server is busy", provider=NAME, retry_after=wait_s, status=status)
    if status in (401, 403):
        return ProviderMisconfigured("the server wants a login: check OLLAMA_URL", provider=NAME, status=status)
    if status in (404, 405):
        note = "nothing of Ollama is there: check OLLAMA_URL, which ends before /api or /v1"
        return ProviderMisconfigured(note, provider=NAME, status=status)
    if 300 <= status < 400:
        note = "the address redirects, which is not followed: check OLLAMA_URL"
        return ProviderMisconfigured(note, provider=NAME, status=status)
    if _PERMANENT.search(text) or (400 <= status < 500 and status not in (408, 499)):
        return RequestRejected("the server refuses the request as it is", provider=NAME, status=status)
    if status == 200:
        return StreamBroken("the server broke off its answer", provider=NAME, status=status)
    return ProviderUnavailable("the server failed", provider=NAME, retry_after=retry_after, status=status)
