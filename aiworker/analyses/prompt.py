"""What a model is told by us, and what it is shown of a user: kept apart, so that the second is never the first."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel

from aiworker.domain.completion import Turn

# What a person does not see and a model reads, by kind: controls, direction marks, soft hyphens, tag letters.
_UNSEEN = frozenset({"Cc", "Cf", "Cs"})
# Those that Unicode counts as letters and marks: fillers, variation selectors.
_IGNORABLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
# A joiner is seen where it makes one emoji of two.
_EMOJI = "[\u2190-\u2bff\U0001f000-\U0001faff]"
_JOINS_NOTHING = re.compile(f"(?<!{_EMOJI})\u200d|\u200d(?!{_EMOJI})")
_BRACKETS = str.maketrans("<>", "‹›")
# Models' own marks for a change of speaker ("<|im_start|>", "</s>", "[INST]", "[|user|]") are special tokens to some
# servers even inside a message, and Ollama looks for a picture at "[img-0]". Without their brackets they are letters.
_INST = re.compile(r"\[([/／|｜]?[\w-]{1,20}[|｜]?)\]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The fixed part of a prompt: `system` says who the model is and what the rules are, `answer` is the form that its
    answer must have, `task` is what follows the user's data, if anything must."""

    system: str
    answer: type[BaseModel] | None = None
    task: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes with every letter of this, and with the form of the answer. What stands around a user's data is not
        in it: who changes that raises the analysis's own version."""
        schema = json.dumps(self.answer.model_json_schema(), sort_keys=True) if self.answer else ""
        return hashlib.sha256("\0".join((self.system, schema, self.task)).encode()).hexdigest()[:8]


def as_data(text: str, tag: str) -> str:
    """User text inside `<tag>`, which it cannot close: prompts call what is inside data, never instructions."""
    return f"<{tag}>\n{harmless(text)}\n</{tag}>"


def harmless(text: str) -> str:
    """`text` without unseen characters, and with marks that only look like those of tags and of speakers."""
    return _INST.sub(r"(\1)", _JOINS_NOTHING.sub("", "".join(map(_seen, text))))


@lru_cache(maxsize=4096)
def _seen(letter: str) -> str:
    if letter in "\n\t\u200d":
        return letter
    if unicodedata.category(letter) in _UNSEEN or _IGNORABLE.match(letter):
        return ""
    # A server that normalises texts makes true brackets of wide and small ones.
    plain = unicodedata.normalize("NFKC", letter)
    return plain.translate(_BRACKETS) if any(bracket in plain for bracket in "<>[]") else letter


def past_turn(role: str, text: str, tag: str) -> Turn:
    """An earlier turn as the client tells it: who may have made it up, so it is data as well."""
    if role == "assistant":
        return Turn("assistant", harmless(text))
    return Turn("user", as_data(text, tag))
