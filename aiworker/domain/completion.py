"""What is asked of a language model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for. It is never run by a provider: the call comes back in the Completion."""

    name: str
    description: str
    arguments: type[BaseModel]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the model asked for. `arguments` are validated; `opaque` is the provider's own, to be given back with it;
    `id` is set where the provider names its calls."""

    name: str
    arguments: BaseModel = field(repr=False)
    opaque: str = field(default="", repr=False)
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation before the prompt. `calls` are what an assistant's turn asked for; a tool's turn holds
    what came of the call that it is the `result_of`."""

    role: Literal["user", "assistant", "tool"]
    text: str = field(repr=False)
    calls: tuple[ToolCall, ...] = ()
    result_of: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One call. `order` is the provider names in order of preference; `images` are encoded pictures.

    `purpose` is the name of the analysis. With `answer` set, the model must return JSON that validates as that pydantic
    model. With `tools` set, it may ask for one of them instead of answering; an empty `prompt` then goes on from the
    last turn. With `local_only`, no provider outside this server may be asked. With `hedge`, a second provider is asked
    as soon as the first is unusually late, not only at the last moment. With `allow_degraded`, the caller can answer
    by rule, and is told shortly before the deadline that nobody will.
    """

    purpose: str
    system: str = field(repr=False)
    prompt: str = field(repr=False)
    order: tuple[str, ...]
    history: tuple[Turn, ...] = ()
    images: tuple[bytes, ...] = field(default=(), repr=False)
    answer: type[BaseModel] | None = None
    tools: tuple[Tool, ...] = ()
    max_tokens: int = 1024
    temperature: float = 0.2
    seed: int | None = None
    local_only: bool = False
    hedge: bool = False
    allow_degraded: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """`value` is set when the request had an `answer` model. Times in milliseconds, tokens as the provider counted.

    `wait_ms` is time in line (ours and the provider's), `load_ms` loading the model, `prompt_ms` until the first token,
    `answer_ms` from there to the end. `calls` is 2 where the first answer had to be repaired; tokens, times and cost
    are of both.
    """

    text: str = field(repr=False)
    provider: str
    model: str
    finish: FinishReason
    value: BaseModel | None = field(default=None, repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    answer_tokens: int = 0
    wait_ms: float = 0.0
    load_ms: float = 0.0
    prompt_ms: float = 0.0
    answer_ms: float = 0.0
    cost_usd: float = 0.0
    calls: int = 1
    skipped: dict[str, str] = field(default_factory=dict)
