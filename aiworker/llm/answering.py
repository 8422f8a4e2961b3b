"""One question to one provider: ask, check the answer against its model, and give one chance to repair it."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import AnswerEmpty, AnswerInvalid, AnswerTruncated
from aiworker.llm.structured import AnswerMistake, answer_text, parse_answer, repair_request

Ask = Callable[[PromptRequest, Deadline], Awaitable[Completion]]


async def ask_checked(ask: Ask, request: PromptRequest, deadline: Deadline) -> Completion:
    """The answer with its `value`, where the request has an `answer` model; tokens, times and cost are of both calls.

    Raises what `ask` raises, AnswerTruncated for JSON cut by the token limit (asking again would cut it again),
    AnswerInvalid when the repaired answer is wrong too.
    """
    first = await ask(request, deadline)
    if request.answer is None:
        return _plain(first)
    try:
        return _checked(request.answer, first)
    except AnswerMistake as mistake:
        again = await ask(repair_request(request, first.text, mistake), deadline)
    try:
        return _checked(request.answer, _sum(first, again))
    except AnswerMistake as mistake:
        raise AnswerInvalid(
            "the repaired answer does not fit either", provider=first.provider, problems=len(mistake.problems)
        ) from None


def _plain(completion: Completion) -> Completion:
    text = answer_text(completion.text)
    if not text:
        raise AnswerEmpty("the answer is empty", provider=completion.provider)
    return dataclasses.replace(completion, text=text)


def _checked(model: type[BaseModel], completion: Completion) -> Completion:
    try:
        return dataclasses.replace(completion, value=parse_answer(model, completion.text))
    except AnswerMistake:
        if completion.finish == "length":
            raise AnswerTruncated("the token limit cut the JSON", provider=completion.provider) from None
        raise


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
