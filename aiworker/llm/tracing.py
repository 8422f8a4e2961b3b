"""A span for each call to a model, by OpenTelemetry's semantic conventions for generative AI."""

from __future__ import annotations

from typing import Any

from yarl import URL

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.llm.answering import Ask
from aiworker.llm.structured import Said
from aiworker.telemetry.traces import Traces

# The conventions' own name where they have one.
_PROVIDERS = {"gemini": "gcp.gemini"}
_FINISH = {"tool": "tool_call"}


def traced(ask: Ask, traces: Traces, *, provider: str, model: str, base_url: str) -> Ask:
    """`ask`, with a span of kind client around it."""
    url = URL(base_url)
    server = {"server.address": url.host or "", "server.port": url.port or 0}

    async def asked(request: PromptRequest, deadline: Deadline) -> Said:
        about = _asked(request, provider, model) | server
        with traces.span(f"chat {model}", "client", about) as span:
            said = await ask(request, deadline)
            span.note(_said(said))
            return said

    return asked


def _asked(request: PromptRequest, provider: str, model: str) -> dict[str, Any]:
    seed = {} if request.seed is None else {"gen_ai.request.seed": request.seed}
    return seed | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        "gen_ai.request.model": model,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.output.type": "json" if request.answer else "text",
        "aiworker.purpose": request.purpose,
        "aiworker.images": len(request.images),
    }


def _said(said: Said) -> dict[str, Any]:
    completion: Completion = said.completion
    finish = "tool" if said.calls else completion.finish
    return {
        "gen_ai.response.model": completion.model,
        "gen_ai.response.finish_reasons": [_FINISH.get(finish, finish)],
        "gen_ai.usage.input_tokens": completion.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.answer_tokens,
        "aiworker.wait_ms": completion.wait_ms,
        "aiworker.load_ms": completion.load_ms,
        "aiworker.cost_usd": completion.cost_usd,
    }
