"""DIVER: textual and equational diversity by hand, the weight that falls to 0, who is paid and how much."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.advantages.grpo import Grpo
from rlvr.explore.diver import Diver, bleu, cosine_weight, equational, formulas, textual
from rlvr.types import Group
from tests.unit.rows import make_group


def test_bleu_by_hand() -> None:
    assert bleu("a b c d e f", "a b c d e f") == 1.0
    assert bleu("a b", "a b") == 1.0  # no n-gram of 3 words: left out
    # one word of two agrees, no pair does: 0.1 of a match in 1
    assert bleu("a b", "a c") == pytest.approx(math.exp(0.02 * math.log(0.5) + 0.1 * math.log(0.1)), abs=1e-9)
    # all of a short text is in a text of twice its length
    assert bleu("a b", "a b c d") == pytest.approx(math.exp(-1), abs=1e-9)
    assert (bleu("", ""), bleu("", "a")) == (1.0, 0.0)


def test_textual_diversity() -> None:
    assert textual(("the same text", "the same text", "the same text")) == (0.0, 0.0, 0.0)
    assert textual(("alone",)) == (0.0,)
    b = (bleu("a b", "a c") + bleu("a c", "a b")) / 2
    assert textual(("a b", "a b", "a c")) == pytest.approx((1 - (1 + b) / 2, 1 - (1 + b) / 2, 1 - b), abs=1e-9)


def test_equational_diversity() -> None:
    texts = (r"$x = 1$ then \(y=2\)", r"\[x=1\]", "no formula", "$$z$$ and $z$")
    assert formulas(texts[0]) == {"x=1", "y=2"}
    assert formulas(texts[3]) == {"z"}
    assert equational(texts) == (0.5, 0.0, 0.0, 1.0)
    assert equational((texts[0], texts[0])) == (0.0, 0.0)


@given(st.lists(st.text("ab $=", max_size=12), min_size=1, max_size=5))
def test_diversity_is_bounded_and_knows_no_order(texts: list[str]) -> None:
    order = np.random.default_rng(0).permutation(len(texts))
    for measure in (textual, equational):
        got = measure(tuple(texts))
        assert all(0 <= d <= 1 for d in got)
        assert measure(tuple(texts[i] for i in order)) == pytest.approx([got[i] for i in order], abs=1e-9)


def test_the_weight_falls_from_w_to_0() -> None:
    got = [cosine_weight(k, start=0.4, steps=100) for k in range(200)]
    assert got[0] == 0.4 and got[50] == pytest.approx(0.2, abs=1e-9)
    assert got[100:] == [0.0] * 100 and min(got) == 0.0
    assert got == sorted(got, reverse=True)


def written(texts: list[str], scores: list[float], errors: list[str | None] | None = None) -> Group:
    group = make_group(0, scores=scores, errors=errors)
    rows = [replace(t, text=text) for t, text in zip(group.trajectories, texts, strict=True)]
    return group.with_(trajectories=tuple(rows), rewards=group.scores)


def test_right_answers_alone_are_paid_up_to_the_cap() -> None:
    texts = ["$a$", "$b$", "$c$", "no formula", "$b$"]
    group = written(texts, [1, 1, 0, 1, 1], [None] * 4 + ["timeout"])
    method = Diver(Diver.Config(form="equational", w=0.5, steps=10))
    rewards = method.reward([group])[0].rewards
    np.testing.assert_allclose(rewards, [1.34, 1.34, 0, 1, np.nan], atol=1e-6)  # the error row is no sibling
    assert method.observe([group], {})["active"] == 2
    resumed = Diver(method.config)
    resumed.load_state_dict(method.state_dict() | {"step": 5})
    np.testing.assert_allclose(resumed.reward([group])[0].rewards, [1.17, 1.17, 0, 1, np.nan], atol=1e-6)
    resumed.load_state_dict({"step": 10})
    assert resumed.reward([group])[0] is group


def test_caps_and_the_part_of_a_text_that_is_looked_at() -> None:
    def paid(texts: list[str], **options: object) -> list[float]:
        group = written(texts, [1.0] * len(texts))
        rewards = Diver(Diver.Config.model_validate({"w": 1.0} | options)).reward([group])[0].rewards
        return [float(r) - 1 for r in rewards]  # type: ignore[union-attr]

    apart = ["a b c d e f g h", "i j k l m n o p"]
    assert paid(apart) == pytest.approx([0.91, 0.91], abs=1e-6) and min(textual(tuple(apart))) > 0.91
    assert paid(apart, cap=0.5) == pytest.approx([0.5, 0.5], abs=1e-6)
    assert paid(["$a$", "$b$"], form="equational") == pytest.approx([0.68, 0.68], abs=1e-6)
    head = "x " * 500
    assert paid([head + "a b c", head + "d e f"]) == [0.0, 0.0]  # alike in their first 1000 characters


def test_in_a_group_of_right_answers_it_stays_small() -> None:
    group = written(["a b c", "a b c", "a b c", "d e f"], [1.0] * 4)
    (credited,) = Grpo(Grpo.Config()).advantage(Diver(Diver.Config(w=1e-3)).reward([group]))
    assert credited.advantages is not None
    assert 0 < max(abs(float(a[-1])) for a in credited.advantages) < 1e-3
