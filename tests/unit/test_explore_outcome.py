"""Outcome-based exploration: the numbers of 2509.06941, counts that grow after the step, the size of the bonus."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.advantages.grpo import Grpo
from rlvr.explore.outcome_bonus import OutcomeBonus, outcome_bonus
from rlvr.explore.outcome_bonus import answers as read
from rlvr.types import Group
from tests.unit.rows import make_group

ANSWERS = list("33357793")


def bonus(form: str, seen: dict[str, int], answers: list[str] = ANSWERS, baseline: float = 0.5) -> np.ndarray:
    return outcome_bonus(answers, np.ones(len(answers), bool), Counter(seen), form=form, baseline=baseline)


@pytest.mark.parametrize(
    ("n", "b", "con"),
    [(0, 1, 0.5), (1, 1, 0.5), (2, 0.7071068, 0.2071068), (3, 0.5773503, 0.0773503), (4, 0.5, 0.0),
     (5, 0.4472136, -0.0527864), (9, 1 / 3, -1 / 6), (16, 0.25, -0.25)],
)  # fmt: skip
def test_ucb_and_its_constant_baseline(n: int, b: float, con: float) -> None:
    assert bonus("ucb", {"3": n})[0] == pytest.approx(b, abs=1e-6)
    assert bonus("ucb_con", {"3": n})[0] == pytest.approx(con, abs=1e-6)
    assert bonus("ucb_con", {"3": n}, baseline=1.0)[0] <= 0


def test_ucb_mean_sums_to_zero() -> None:
    got = bonus("ucb_mean", {"3": 4, "5": 1, "7": 2})
    wanted = [-0.1768, -0.1768, -0.1768, 0.3232, 0.0303, 0.0303, 0.3232, -0.1768]
    np.testing.assert_allclose(got, wanted, atol=5e-5)
    assert got.sum() == pytest.approx(0, abs=1e-6)


def test_batch_punishes_duplicates() -> None:
    np.testing.assert_allclose(bonus("batch", {}), [-0.375, -0.375, -0.375, 0, -0.125, -0.125, 0, -0.375])
    np.testing.assert_allclose(bonus("batch", {}, ["1"] * 4), [-0.75] * 4)
    assert not bonus("ucb_mean", {"1": 3}, ["1"] * 4).any()


def test_a_row_in_error_is_nobodys_neighbour() -> None:
    ok = np.array([True, True, True, False])
    seen = Counter({"1": 4, "2": 1})
    given_ = ["1", "2", "1", "1"]
    mean = outcome_bonus(given_, ok, seen, form="ucb_mean", baseline=0.5)  # b = .5, 1, .5: mean 2/3
    np.testing.assert_allclose(mean, [-1 / 6, 1 / 3, -1 / 6, 0], atol=1e-6)
    here = outcome_bonus(given_, ok, seen, form="batch", baseline=0.5)
    np.testing.assert_allclose(here, [-0.25, 0, -0.25, 0], atol=1e-6)  # of G = 4, as the error's own slot stays


def test_what_cannot_be_read_is_one_answer_whatever_key_it_has() -> None:
    group = answered([0.0] * 3, ["1", None, "3"])
    rows = [replace(t, verdict=replace(t.verdict, parsed=i == 0)) for i, t in enumerate(group.trajectories)]
    assert read(group.with_(trajectories=tuple(rows))) == ["1", "", ""]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.randoms())
def test_the_order_of_rows_is_nothing(answers: list[str], random: object) -> None:
    order = np.random.default_rng(0).permutation(len(answers))
    for form in ("ucb", "ucb_mean", "ucb_con", "batch"):
        straight = bonus(form, {"a": 2}, answers)
        np.testing.assert_allclose(bonus(form, {"a": 2}, [answers[i] for i in order]), straight[order], atol=1e-7)


def answered(scores: list[float], keys: list[str | None], errors: list[str | None] | None = None) -> Group:
    """A group with its verdicts' answer keys."""
    group = make_group(0, scores=scores, errors=errors)
    rows = zip(group.trajectories, keys, strict=True)
    named = [replace(t, verdict=replace(t.verdict, answer_key=k, parsed=k is not None)) for t, k in rows]
    return Grpo(Grpo.Config()).advantage([group.with_(trajectories=tuple(named), rewards=group.scores)])[0]


def test_a_group_of_equal_scores_gets_no_more_than_the_bonus() -> None:
    group = answered([0.0, 0.0, 0.0, 0.0], ["1", "2", "2", None])
    (shaped,) = OutcomeBonus(OutcomeBonus.Config(form="batch", coef=0.2)).advantage([group])
    np.testing.assert_allclose([a[-1] for a in shaped.advantages], [0, -0.05, -0.05, 0], atol=1e-7)
    assert all(not a[:2].any() for a in shaped.advantages)  # nothing on the prompt


def test_counts_grow_after_the_step_and_survive() -> None:
    method = OutcomeBonus(OutcomeBonus.Config(form="ucb", coef=1.0))
    group = answered([1.0, 0.0, 0.0, 0.0], ["1", "2", None, "9"], errors=[None, None, None, "timeout"])
    first = method.advantage([group])[0].advantages
    again = method.advantage([group])[0].advantages
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))  # asking changes nothing
    for _ in range(4):
        said = method.observe([group], {})
    assert said["answers"] == 3  # "1", "2" and the one key of what could not be read; the error counts nowhere
    fresh = OutcomeBonus(method.config)
    fresh.load_state_dict(json.loads(json.dumps(method.state_dict())))
    later = fresh.advantage([group])[0].advantages
    for row, (before, after) in enumerate(zip(first, later, strict=True)):
        assert before[-1] - after[-1] == pytest.approx(0.0 if row == 3 else 0.5, abs=1e-6)
