"""Whether a model is in Ollama's memory, and how long it takes to get there. Pure: the time comes in."""

from __future__ import annotations

import math

# A loaded model reports tens of milliseconds of load_duration, too.
_REAL_LOAD_S = 0.5


class Residence:
    """Text and vision are two models, for which there may be room together or not: what had to be loaded though it
    was thought to be there says that there is none, until one is there that was thought to be gone.

    `keep_alive_s` is what every call asks for; None: the provider loads nothing.
    """

    def __init__(self, keep_alive_s: float | None) -> None:
        self._keep_alive_s = keep_alive_s
        self._until = {True: -math.inf, False: -math.inf}
        self._load_s = {True: 0.0, False: 0.0}
        self._loading_until = {True: -math.inf, False: -math.inf}
        self._one_at_a_time = False

    def load_s(self, now: float, vision: bool, wait_s: float = 0.0) -> float:
        """What a call that has its slot in `wait_s` has to wait for its model then: 0 while it is there, or where no
        load has been seen yet; behind a call that loads it, what will be left of that one's load."""
        if self._keep_alive_s is None or now < self._until[vision]:
            return 0.0
        if self.loading(vision):
            return min(self._load_s[vision], max(0.0, self._loading_until[vision] - now - wait_s))
        return self._load_s[vision]

    def loading(self, vision: bool) -> bool:
        """Whether a call is under way that has the model loaded."""
        return self._loading_until[vision] > -math.inf

    def begins(self, now: float, vision: bool) -> None:
        """A call that begins at `now` has the model loaded."""
        self._loading_until[vision] = now + self._load_s[vision]

    def ended(self, vision: bool) -> None:
        """The call that had it loaded is over."""
        self._loading_until[vision] = -math.inf

    def last_load_s(self, vision: bool) -> float:
        """What loading took when last seen, whether or not the model is thought to be there."""
        return self._load_s[vision]

    def loaded(self, now: float, vision: bool) -> bool:
        return self._keep_alive_s is None or now < self._until[vision]

    def may_load(self, now: float, vision: bool) -> bool:
        """To load it drives the other one out of nothing that is known."""
        return not (self._one_at_a_time and self.loaded(now, not vision))

    def answered(self, now: float, vision: bool, load_s: float) -> None:
        """A call ended well; `load_s` is what it said of loading."""
        if self._keep_alive_s is None:
            return
        loaded_now = load_s >= _REAL_LOAD_S
        if loaded_now:
            self._load_s[vision] = load_s
        if loaded_now == self.loaded(now, vision):
            self._one_at_a_time = loaded_now
        self._until[vision] = now + self._keep_alive_s
        if self._one_at_a_time:
            self._until[not vision] = -math.inf

    def gone(self) -> None:
        """The server was not there: if it comes back, it comes back empty."""
        self._until = {True: -math.inf, False: -math.inf}
