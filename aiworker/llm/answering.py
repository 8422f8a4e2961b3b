"""One question to one provider: ask, check the answer, and give one chance to repair it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import AnswerEmpty, AnswerInvalid, AnswerLeaks, AnswerTruncated, PromptTooLong
from aiworker.llm.leaks import quotes
from aiworker.llm.structured import AnswerMistake, Said, answer_text, parse_answer, parse_calls, repair_request

Ask = Callable[[PromptRequest, Deadline], Awaitable[Said]]


class _Leak(AnswerMistake):
    def __init__(self) -> None:
        super().__init__(("the answer quotes your instructions, which stay between us",))


async def ask_checked(ask: Ask, request: PromptRequest, deadline: Deadline) -> Completion:
    """The answer with its `value` where the request has an `answer` model, or with its `tool_calls`; tokens, times and
    cost are of both calls.

    Raises what `ask` raises, AnswerTruncated for JSON cut by the token limit (asking again would cut it again),
    AnswerEmpty, and AnswerInvalid or AnswerLeaks when the repaired answer is wrong too or neither time nor room is left
    to repair it.
    """
    started = time.monotonic()
    first = await ask(request, deadline)
    try:
        return _checked(request, first)
    except AnswerMistake as mistake:
        if deadline.remaining() < time.monotonic() - started:
            raise _given_up(mistake, first.completion, "no time is left to repair the answer") from None
        try:
            again = await ask(repair_request(request, first, mistake), deadline)
        except PromptTooLong:
            raise _given_up(mistake, first.completion, "the model's context has no room to repair the answer") from None
    try:
        return _checked(request, again._replace(completion=_sum(first.completion, again.completion)))
    except AnswerMistake as mistake:
        raise _given_up(mistake, again.completion, "the repaired answer does not fit either") from None


def _checked(request: PromptRequest, said: Said) -> Completion:
    completion = said.completion
    text = answer_text(completion.text)
    if quotes(request.system, text):
        raise _Leak
    if quotes(request.system, " ".join(_texts([dict(call.arguments) for call in said.calls]))):
        raise _Leak
    if said.calls:
        calls = parse_calls(request.tools, said.calls)
        return dataclasses.replace(completion, text=text, tool_calls=calls, finish="tool")
    if request.answer is None:
        if not text:
            raise AnswerEmpty("the answer is empty", provider=completion.provider)
        return dataclasses.replace(completion, text=text)
    try:
        value = parse_answer(request.answer, completion.text)
    except AnswerMistake:
        if completion.finish == "length":
            raise AnswerTruncated("the token limit cut the JSON", provider=completion.provider) from None
        raise
    if quotes(request.system, " ".join(_texts(value.model_dump(mode="json")))):
        raise _Leak
    return dataclasses.replace(completion, value=value)


def _texts(value: Any) -> Iterator[str]:
    """Every text in `value`, in its order: a quote may be spread over several fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _given_up(mistake: AnswerMistake, completion: Completion, note: str) -> AnswerInvalid:
    kind = AnswerLeaks if isinstance(mistake, _Leak) else AnswerInvalid
    return kind(note, provider=completion.provider, problems=len(mistake.problems))


def _sum(first: Completion, again: Completion) -> Completion:
    return dataclasses.replace(
        again,
        prompt_tokens=first.prompt_tokens + again.prompt_tokens,
        answer_tokens=first.answer_tokens + again.answer_tokens,
        wait_ms=first.wait_ms + again.wait_ms,
        load_ms=first.load_ms + again.load_ms,
        prompt_ms=first.prompt_ms + again.prompt_ms,
        answer_ms=first.answer_ms + again.answer_ms,
        cost_usd=first.cost_usd + again.cost_usd,
        calls=first.calls + again.calls,
    )
