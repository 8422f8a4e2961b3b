"""How long a provider will take for a request, learned from what it did. Pure: the time comes in."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from aiworker.domain.completion import Completion

_SAMPLES = 32
_SAFE_QUANTILE = 0.95
_LATE_QUANTILE = 0.9
_LATE_BEYOND_LIKELY = 3.0
_CHARS_PER_TOKEN = 3.5
_TOKENS_PER_IMAGE = 1000
_NEW_WEIGHT = 0.3
# What was not over when we left it may take about as long again.
_UNFINISHED = 2.0


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is. `kind` is what makes its answers alike: the analysis and how long they may be."""

    kind: str
    chars: int
    images: int
    max_tokens: int

    @property
    def prompt_tokens(self) -> float:
        return self.chars / _CHARS_PER_TOKEN + _TOKENS_PER_IMAGE * self.images


@dataclass(frozen=True, slots=True)
class Outlook:
    """Seconds for one answer, without waiting and loading: half are done by `likely_s`, 19 of 20 by `safe_s`.

    Beyond `late_s`, nine of ten have come or been given up: one that has not is unusual. Unlike `safe_s` it does not
    guess how long those would have taken that were given up, so hedging does not push it anywhere. `doubt` is 1 where
    many answers say so and 2 where one does. `hearsay`: of this kind no answer is known, only how fast others
    were; of it `load_s`, for loading the model, is certain.
    """

    likely_s: float
    mean_s: float
    safe_s: float
    late_s: float
    doubt: float = 1.0
    hearsay: bool = False
    load_s: float = 0.0

    def plus(self, seconds: float) -> Outlook:
        likely_s, mean_s, safe_s, late_s = (
            each + seconds for each in (self.likely_s, self.mean_s, self.safe_s, self.late_s)
        )
        return replace(self, likely_s=likely_s, mean_s=mean_s, safe_s=safe_s, late_s=late_s)

    def tempered(self, unknown_s: float) -> Outlook:
        """Hearsay says whom to prefer. It must not keep a provider from ever being asked, nor a call from the
        `unknown_s` that is given to one of which nothing is known."""
        if not self.hearsay:
            return self
        given_s = self.load_s + unknown_s
        likely_s, mean_s, late_s = min(self.likely_s, given_s), min(self.mean_s, given_s), max(self.late_s, given_s)
        return replace(self, likely_s=likely_s, mean_s=mean_s, late_s=late_s)


class Forecast:
    """By the last answers to requests of the same kind; for a kind without any, by tokens a second of the others.

    Requests with and without images go to different models, so their speeds are kept apart.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._samples: dict[str, deque[_Sample]] = {}
        self._speeds = {True: _Speed(), False: _Speed()}

    def note(self, now: float, kind: str, seconds: float) -> None:
        """One answer took `seconds`, without waiting and loading."""
        self._keep(_Sample(now, seconds, True), kind)

    def note_unfinished(self, now: float, kind: str, seconds: float) -> None:
        """No answer within `seconds`. Leaving these out would make a slow provider look as fast as its fast answers."""
        self._keep(_Sample(now, seconds, False), kind)

    def forget_unfinished(self) -> None:
        """For when a provider is left alone: its next chance is not judged by calls that hung before."""
        for kind, samples in self._samples.items():
            self._samples[kind] = deque((sample for sample in samples if sample.finished), maxlen=_SAMPLES)

    def note_speed(self, now: float, size: Size, completion: Completion) -> None:
        self._speeds[size.images > 0].note(now, size, completion)

    def outlook(self, now: float, size: Size) -> Outlook | None:
        """None where nothing is known, or nothing recent."""
        samples = self._samples.get(size.kind)
        while samples and samples[0].at < now - self._memory_s:
            samples.popleft()
        if samples and any(sample.finished for sample in samples):
            guessed = [sample.seconds if sample.finished else _UNFINISHED * sample.seconds for sample in samples]
            return _outlook(guessed, [sample.seconds for sample in samples])
        speed = self._speeds[size.images > 0]
        if speed.at < now - self._memory_s:
            return None
        outlook = speed.outlook(size)
        # Others are answered and this kind is not: whoever is safe goes first.
        longest_s = _UNFINISHED * max((sample.seconds for sample in samples or ()), default=0.0)
        return replace(outlook, safe_s=max(outlook.safe_s, longest_s), hearsay=True)

    def _keep(self, sample: _Sample, kind: str) -> None:
        self._samples.setdefault(kind, deque(maxlen=_SAMPLES)).append(sample)

    def tokens_per_s(self) -> float | None:
        """Of answers without images, as measured lately."""
        speed = self._speeds[False].s_per_answer_token
        return 1 / speed if speed else None


class _Sample(NamedTuple):
    at: float
    seconds: float
    finished: bool


@dataclass(slots=True)
class _Speed:
    """`shares` are answer tokens as parts of what was allowed."""

    at: float = float("-inf")
    s_per_prompt_token: float = 0.0
    s_per_answer_token: float = 0.0
    shares: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    def note(self, now: float, size: Size, completion: Completion) -> None:
        if not completion.prompt_tokens or not completion.answer_tokens:
            return
        weight = _NEW_WEIGHT if self.shares else 1.0
        prompt, answer = completion.prompt_tokens, completion.answer_tokens
        self.s_per_prompt_token += weight * (completion.prompt_ms / 1000 / prompt - self.s_per_prompt_token)
        self.s_per_answer_token += weight * (completion.answer_ms / 1000 / answer - self.s_per_answer_token)
        self.shares.append(min(1.0, answer / size.max_tokens))
        self.at = now

    def outlook(self, size: Size) -> Outlook:
        prompt_s = size.prompt_tokens * self.s_per_prompt_token
        most_s = size.max_tokens * self.s_per_answer_token
        answers = [share * most_s for share in self.shares]
        outlook = _outlook(answers, answers)
        return replace(outlook, safe_s=min(outlook.safe_s, most_s), late_s=min(outlook.late_s, most_s)).plus(prompt_s)


def _outlook(guessed: list[float], seen: list[float]) -> Outlook:
    likely_s = statistics.median(guessed)
    # Where more than one in ten hang, the quantile is of those that hung.
    late_s = min((1 + 1 / len(seen)) * _quantile(seen, _LATE_QUANTILE), _LATE_BEYOND_LIKELY * likely_s)
    doubt = 1 + 1 / len(guessed)
    return Outlook(likely_s, statistics.fmean(guessed), doubt * _quantile(guessed, _SAFE_QUANTILE), late_s, doubt)


def _quantile(samples: list[float], share: float) -> float:
    count = len(samples)
    return sorted(samples)[min(count - 1, int(share * count))]
