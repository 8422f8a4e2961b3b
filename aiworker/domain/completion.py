"""What is asked of a language model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation before the prompt."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One call. `order` is the provider names in order of preference; `images` are encoded pictures (JPEG, PNG, WebP).

    With `answer` set, the model must return JSON that validates as that pydantic model.
    """

    purpose: str
    system: str
    prompt: str
    order: tuple[str, ...]
    history: tuple[Turn, ...] = ()
    images: tuple[bytes, ...] = field(default=(), repr=False)
    answer: type[BaseModel] | None = None
    max_tokens: int = 1024
    temperature: float = 0.2
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """`value` is set when the request had an `answer` model. Times in milliseconds, tokens as the provider counted.

    `wait_ms` is time in line (ours and the provider's), `load_ms` loading the model.
    """

    text: str = field(repr=False)
    provider: str
    model: str
    finish: FinishReason
    value: BaseModel | None = field(default=None, repr=False)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    wait_ms: float = 0.0
    load_ms: float = 0.0
    prompt_ms: float = 0.0
    answer_ms: float = 0.0
    cost_usd: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
