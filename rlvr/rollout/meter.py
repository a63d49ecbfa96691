"""Tokens decoded for each draw, whichever method asked for them and whatever became of the responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlvr.engine.protocols import Sampler
from rlvr.types import Completion, Request

DECODED = "decoded"  # among the counts of a group


class Meter:
    """A `Sampler` that counts for another one: retries, pruned branches and replaced rows cost what they cost."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._tokens: Counter[int] = Counter()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """As the other one does. A request belongs to the draw that is its `home`; one without is not counted."""
        done = await self._sampler.generate(requests)
        for request, completion in zip(requests, done, strict=True):
            if request.home is not None:
                self._tokens[request.home] += len(completion.tokens)
        return done

    def taken(self, draw: int) -> int:
        """Tokens decoded for the draw since the last call."""
        return self._tokens.pop(draw, 0)
