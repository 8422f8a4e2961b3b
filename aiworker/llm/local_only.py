"""Which kinds of analysis may not leave this server (LOCAL_ONLY)."""

from __future__ import annotations

import dataclasses

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.ports import TextModel

ALL = "all"


class LocalOnlyRule:
    """Marks the requests of `purposes`, which may hold "all", before `model` chooses whom to ask. A provider elsewhere
    refuses them itself as well, so that no mistake in choosing sends anything away."""

    def __init__(self, model: TextModel, purposes: frozenset[str]) -> None:
        self._model = model
        self._purposes = purposes

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
        """As the model's own."""
        if stays_here(request, self._purposes):
            request = dataclasses.replace(request, local_only=True)
        return await self._model.complete(request, deadline)


def stays_here(request: PromptRequest, purposes: frozenset[str]) -> bool:
    """Whether nothing of `request` may leave this server."""
    return request.local_only or not purposes.isdisjoint((request.purpose, ALL))
