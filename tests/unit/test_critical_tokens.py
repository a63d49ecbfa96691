"""Critical tokens: the certainty of a distribution, its power, and where the plain KL is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.explore.base import Update
from rlvr.explore.critical_tokens import Config, CriticalTokens
from rlvr.objectives.kl import kl_penalty
from rlvr.objectives.streams import reduction
from rlvr.objectives.view import TokenView
from rlvr.types import Row

LOGP, REF = torch.tensor([[0.75, 0.18, 0.8]]).log(), torch.tensor([[0.6, 0.3, 0.5]]).log()


def certainty(probs: list[float], t: float = 1.0) -> float:
    logp = torch.tensor([probs], dtype=torch.float64).log()
    return float(reduction(f"certainty({t})")(logp, torch.tensor([0])))


def spread(top: float, vocab: int) -> list[float]:
    return [top] + [(1 - top) / (vocab - 1)] * (vocab - 1)


@pytest.mark.parametrize(
    ("vocab", "top", "weight"),
    [
        (151_936, 0.99, 0.881), (151_936, 0.9, 0.264), (151_936, 0.7, 0.0105), (151_936, 0.5, 1.3e-4),
        (16, 0.99, 0.580), (16, 0.9, 0.003),
    ],
)  # fmt: skip
def test_weights_of_the_specification(vocab: int, top: float, weight: float) -> None:
    assert certainty(spread(top, vocab)) ** 150 == pytest.approx(weight, rel=0.02, abs=5e-4)


def test_certainty_is_0_where_uniform_and_1_where_one_hot() -> None:
    assert certainty([0.25] * 4) == pytest.approx(0.0, abs=1e-12)
    assert certainty([1.0, 0.0, 0.0]) == 1.0
    assert certainty(spread(0.9, 16)) == pytest.approx(0.961999, abs=1e-6)
    assert certainty(spread(0.5, 16)) == pytest.approx(0.75, abs=1e-6)
    assert certainty([0.5, 0.25, 0.15, 0.1]) == pytest.approx(1 + math.log(0.5) / math.log(4))
    single = torch.tensor([[0.1] * 10]).log()  # rounding must not give a negative number: it is raised to a power
    assert float(reduction("certainty(3.0)")(single, torch.tensor([0]))) >= 0.0


def test_its_own_temperature() -> None:
    """At 2, (.5, .25, .15, .1) becomes its square root over the sum."""
    roots = [math.sqrt(p) for p in (0.5, 0.25, 0.15, 0.1)]
    expected = 1 + math.log(roots[0] / sum(roots)) / math.log(4)
    assert certainty([0.5, 0.25, 0.15, 0.1], t=2.0) == pytest.approx(expected)


def loss(c: list[float], **options: Any) -> torch.Tensor:
    addon = CriticalTokens(Config(temperature=1.0, **options))
    ones = torch.ones_like(LOGP)
    streams = {addon.certainty: torch.tensor([c])}
    view = TokenView(LOGP, LOGP, LOGP, known=ones, advantages=ones, weight=ones, ref_logp=REF, streams=streams)
    return addon.token_loss(view, ones)


def test_power_0_is_the_plain_kl_and_a_large_one_leaves_it_where_the_reference_is_one_hot() -> None:
    for estimator in ("k2", "k3"):
        kl = kl_penalty(LOGP, REF, estimator=estimator)
        assert torch.equal(loss([1.0, 0.5, 0.0], coef=0.3, power=0.0, estimator=estimator), 1 + 0.3 * kl)
        far = loss([1.0, 0.99, 0.0], coef=0.3, power=1e6, estimator=estimator)
        assert torch.equal(far, 1 + 0.3 * kl * torch.tensor([[1.0, 0.0, 0.0]]))
    middle = loss([1.0, 0.5, 0.0], coef=2.0, power=2.0)
    torch.testing.assert_close(middle, 1 + torch.tensor([[2 * 0.024897, 0.5 * 0.130471, 0.0]]), atol=1e-5, rtol=0)


def test_active_counts_tokens_by_their_weight() -> None:
    addon = CriticalTokens(Config(coef=1.0, power=2.0, temperature=1.0))
    zeros, weight = np.zeros(4, np.float32), np.array([0, 1, 1, 1], np.float32)
    streams = {addon.certainty: np.array([9.0, 1.0, 0.5, np.nan], np.float32)}
    row = Row("0/0", 0, zeros.astype(np.int32), weight, zeros, zeros.astype(np.int32), weight, zeros, streams)
    update = Update(rows=[row], stats=[{}], update=0, step=0, seed=0, clip=(0.2, 0.2))
    assert addon.knobs(update).metrics == {"active": 1.25}
    assert addon.needs == {"ref_logp", "ref_certainty(1.0)"}
