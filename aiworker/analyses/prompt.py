"""What a model is told by us, and what it is shown of a user: kept apart, so that the second is never the first."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from pydantic import BaseModel

from aiworker.domain.completion import Turn

# Characters that a person does not see and a model reads: controls, direction marks, Unicode's tag letters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
# Models' own marks for a change of speaker ("<|im_start|>", "</s>", "[INST]") are special tokens to some servers even
# inside a message. Without their brackets they are letters.
_INST = re.compile(r"\[(/?\w{1,20})\]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The fixed part of a prompt: `system` says who the model is and what the rules are, `answer` is the form that its
    answer must have, `task` is what follows the user's data, if anything must."""

    system: str
    answer: type[BaseModel] | None = None
    task: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes with every letter that a model is told, and with the form of the answer."""
        schema = json.dumps(self.answer.model_json_schema(), sort_keys=True) if self.answer else ""
        return hashlib.sha256("\0".join((self.system, schema, self.task)).encode()).hexdigest()[:8]


def as_data(text: str, tag: str) -> str:
    """User text inside `<tag>`, which it cannot close: prompts call what is inside data, never instructions."""
    return f"<{tag}>\n{harmless(text)}\n</{tag}>"


def harmless(text: str) -> str:
    """`text` without unseen characters, and with marks that only look like those of tags and of speakers."""
    seen = _UNSEEN.sub("", text).replace("<", "‹").replace(">", "›")
    return _INST.sub(r"(\1)", seen)


def past_turn(role: str, text: str, tag: str) -> Turn:
    """An earlier turn as the client tells it: who may have made it up, so it is data as well."""
    if role == "assistant":
        return Turn("assistant", harmless(text))
    return Turn("user", as_data(text, tag))
