"""Tokens are counted where they are decoded, whatever becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlvr.errors import EngineError
from rlvr.observer import drop_metrics
from rlvr.rollout.meter import DECODED, Meter
from rlvr.types import Completion, Request, Sampling
from tests.unit.rows import make_group


class Sampler:
    """As many tokens as the prompt has."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any(r.key == "broken" for r in requests):
            raise EngineError("gone")
        empty = np.zeros(0, np.float32)
        return [Completion(r.key, r.tokens, empty, r.tokens, "stop") for r in requests]


def request(key: str, tokens: int, home: int | None) -> Request:
    return Request(key, np.zeros(tokens, np.int32), Sampling(), home=home)


def test_a_draw_pays_for_all_that_was_decoded_for_it_once() -> None:
    meter = Meter(Sampler())

    async def many() -> None:
        done = await meter.generate([request("7/0", 3, 7), request("8/0", 5, 8), request("table", 100, None)])
        assert [len(c.tokens) for c in done] == [3, 5, 100]
        await meter.generate([request("7/ghpo/0/0", 4, 7)])  # a retry, of which nothing may be kept
        with pytest.raises(EngineError):
            await meter.generate([request("broken", 9, 7)])

    asyncio.run(many())
    assert (meter.taken(7), meter.taken(8), meter.taken(9)) == (7, 5, 0)
    assert meter.taken(7) == 0  # it is counted in one step


def test_a_steps_tokens_are_those_of_its_draws() -> None:
    groups = [make_group(i, scores=[1.0, 0.0]) for i in range(2)]
    groups = [replace(g, counts={DECODED: float(n)}) for g, n in zip(groups, (11, 20), strict=True)]
    assert drop_metrics(groups)["sampled/tokens"] == 31
