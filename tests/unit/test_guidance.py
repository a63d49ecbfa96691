"""Guidance by demonstrations and hints: the specification's numbers, what is dropped, and what stays as it was."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.batching import collate
from rlvr.credit import assign_credit
from rlvr.errors import ConfigError, DataError
from rlvr.explore.ampo import AMPO
from rlvr.explore.critique_grpo import CritiqueGRPO
from rlvr.explore.luffy import Luffy
from rlvr.explore.rl_plus import RLPlus
from rlvr.objectives.off_policy import multiple_importance, shaped_probability, unexplored
from rlvr.objectives.view import TokenView
from rlvr.rollout.guidance import demonstrations, foreign
from rlvr.types import Group, Origin, Sampling, Task
from tests.unit.conformance import ADVANTAGE, make
from tests.unit.rows import make_group
from tests.unit.toy import ToyContext


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Teacher(ToyContext):
    """A context whose tokenizer refuses the text "7"."""

    def encode_response(self, text: str) -> np.ndarray:
        if text == "7":
            raise DataError("an end token before its end")
        return super().encode_response(text)


CONTEXT = Teacher(sampling=Sampling(max_tokens=4))


def failing(size: int = 8, **task: Any) -> Group:
    """A group of wrong answers to a task with these demonstrations and hints."""
    group = make_group(0, scores=[0.0] * size)
    return replace(group, task=Task("t0", "?", "1", source="unit", **task))


def guided(addon: Any, group: Group, ctx: ToyContext = CONTEXT) -> Group:
    return asyncio.run(addon.guide(group, ctx))


def advantages(group: Group, kind: str = "dr_grpo") -> list[float]:
    """One number a row: the advantage of its last token."""
    shaped = group.with_(rewards=group.scores)
    (credited,) = assign_credit([shaped], [make(ADVANTAGE, kind, {}, name="advantage")])
    assert credited.advantages is not None
    return [float(a[-1]) for a in credited.advantages]


def with_gradient(p: float, function: Any) -> tuple[float, float]:
    """The value at log p, and its slope in log p."""
    logp = torch.tensor([p], dtype=torch.float64).log().requires_grad_()
    value = function(logp)
    value.sum().backward()
    assert logp.grad is not None
    return float(value.detach()), float(logp.grad)


# policy shaping ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "value", "ratio"),
    [(0.01, 1 / 11, 8.26446281), (0.1, 0.5, 2.5), (0.5, 0.5 / 0.6, 0.27777778), (1.0, 1 / 1.1, 0.08264463)],
)
def test_shaped_probability(p: float, value: float, ratio: float) -> None:
    got, slope = with_gradient(p, lambda logp: shaped_probability(logp, gamma=0.1))
    assert got == pytest.approx(value, abs=1e-6)
    assert slope / p == pytest.approx(ratio, abs=1e-6)  # against the slope of pi itself


def test_the_slope_is_largest_at_gamma_and_vanishes_at_zero() -> None:
    assert with_gradient(0.1, lambda logp: shaped_probability(logp, gamma=0.1))[1] == pytest.approx(0.25, abs=1e-9)
    assert with_gradient(1e-6, lambda logp: shaped_probability(logp, gamma=0.1))[1] == pytest.approx(1e-5, rel=1e-3)


# multiple importance sampling ---------------------------------------------------------------------

MIS = [
    (0.01, 0.0388349515, 0.9949874371),
    (0.1, 0.3076923077, 0.9486832981),
    (0.5, 0.8, 0.7071067812),
    (0.99, 0.9974811083, 0.1),
]


@pytest.mark.parametrize(("p", "weight", "factor"), MIS)
def test_multiple_importance(p: float, weight: float, factor: float) -> None:
    old = torch.tensor([p], dtype=torch.float64).log()
    got, slope = with_gradient(p, lambda logp: multiple_importance(logp, old))
    assert got == pytest.approx(weight, abs=1e-6) and slope == pytest.approx(weight, abs=1e-6)
    assert float(unexplored(old, gamma=0.5)) == pytest.approx(factor, abs=1e-6)
    assert not unexplored(old.clone().requires_grad_(), gamma=0.5).requires_grad


def test_multiple_importance_of_a_token_that_was_impossible() -> None:
    never = torch.tensor([-torch.inf], dtype=torch.float64)
    assert with_gradient(0.3, lambda logp: multiple_importance(logp, never))[0] == pytest.approx(4 * 0.3, abs=1e-9)


# demonstrations -----------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_dropped_with_its_reason() -> None:
    task = Task("t", "?", "!", demos=("1 3", "7", "1 1 1 1", "1 2", "2 2 2", ""))
    ctx = replace(CONTEXT)
    found = asyncio.run(demonstrations(task, ctx, source="luffy", temperature=0.7))
    assert dict(found.dropped) == {"unusable": 1, "too_long": 1, "rejected": 1, "error": 1}
    assert found.places == (0, 4)
    assert found.noted("luffy")["luffy/dropped_too_long"] == 1


def test_a_demonstration_is_a_row_of_unknown_probability_under_the_tasks_prompt() -> None:
    (row,) = asyncio.run(demonstrations(Task("t", "?", "!", demos=("1 3",)), CONTEXT, source="x", temperature=0.7)).rows
    assert row.tokens.tolist() == [0, 1, 2, 1, 3, 10]  # prompt, demonstration, one end token
    assert row.origin.tolist() == [Origin.PROMPT] * 3 + [Origin.DEMO] * 3
    assert row.weight.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.isnan(row.logprobs).tolist() == [False] * 3 + [True] * 3
    assert (row.version == -1).all() and row.finish == "stop" and row.generated_under is None
    assert row.temperature.tolist() == pytest.approx([0.7] * 6)


# LUFFY --------------------------------------------------------------------------------------------


def test_luffy_group_by_hand() -> None:
    group = guided(make_luffy(), failing(demos=("1 3", "1 2")))
    assert [t.source for t in group.trajectories] == ["policy"] * 7 + ["luffy"]
    assert advantages(group) == pytest.approx([-0.125] * 7 + [0.875], abs=1e-6)
    assert advantages(group, "grpo")[-1] == pytest.approx(2.475, abs=1e-3)
    assert group.counts == {"luffy/demos": 1, "luffy/without": 0, "luffy/dropped_rejected": 1}


def test_luffy_pushes_nothing_in_a_group_that_is_all_right() -> None:
    group = replace(make_group(0, scores=[1.0] * 8), task=Task("t0", "?", "1", demos=("1 3",)))
    assert advantages(guided(make_luffy(), group)) == [0.0] * 8


def test_luffy_without_a_usable_demonstration_leaves_the_rows() -> None:
    group = failing(demos=("1 2",))
    after = guided(make_luffy(), group)
    assert after.trajectories == group.trajectories
    assert after.counts["luffy/without"] == 1


def test_luffy_picks_by_seed_and_draw() -> None:
    demos = tuple(f"{2 * i}" for i in range(1, 6))
    picks = [guided(make_luffy(), replace(failing(demos=demos), draw=d)).trajectories[-1].text for d in range(30)]
    assert set(picks) == set(demos)
    assert picks == [
        guided(make_luffy(), replace(failing(demos=demos), draw=d)).trajectories[-1].text for d in range(30)
    ]


def test_luffy_refuses_data_without_demonstrations() -> None:
    with pytest.raises(ConfigError, match="no training task has one"):
        asyncio.run(make_luffy().prepare(replace(CONTEXT, tasks=[Task("t", "?", "!", demos=("1 1 1 1",))])))


def make_luffy(**options: Any) -> Luffy:
    return Luffy(Luffy.Config(**options))


def test_marks_are_the_demonstrations_tokens() -> None:
    group = guided(make_luffy(), failing(demos=("1 3",)))
    marks = foreign(collate([group]), "luffy")
    assert [int(m.sum()) for m in marks] == [0] * 7 + [3]
    assert sum(m.sum() for m in foreign(collate([group]), "other")) == 0


def test_rl_plus_loss_is_the_product_and_its_gradient_that_of_the_weight() -> None:
    addon = RLPlus(RLPlus.Config())
    p = torch.tensor([[0.01, 0.1, 0.5, 0.99]], dtype=torch.float64)
    logp = p.log().requires_grad_()
    ones = torch.ones_like(p)
    view = TokenView(logp, p.log(), p.log(), 0 * ones, ones, ones, mark=torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    loss = addon.token_loss(view, 7.0 * ones)
    expected = [weight * factor for _, weight, factor in MIS]
    assert loss[0].tolist() == pytest.approx([*(-e for e in expected[:3]), 7.0], abs=1e-6)
    loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad[0].tolist() == pytest.approx([*(-e for e in expected[:3]), 0.0], abs=1e-6)


@pytest.mark.parametrize("addon", [Luffy(Luffy.Config()), AMPO(AMPO.Config()), CritiqueGRPO(CritiqueGRPO.Config())])
def test_shaped_loss_by_hand(addon: Any) -> None:
    """-A f(pi) at marked tokens: dl / dlogp = -A / 4 at pi = gamma; others keep theirs."""
    p = torch.tensor([[0.1, 0.1, 0.5]], dtype=torch.float64)
    logp, ones = p.log().requires_grad_(), torch.ones_like(p)
    advantages = torch.tensor([[0.875, -0.5, 1.0]], dtype=torch.float64)
    view = TokenView(logp, p.log(), p.log(), 0 * ones, advantages, ones, mark=torch.tensor([[1.0, 1.0, 0.0]]))
    loss = addon.token_loss(view, 7.0 * ones)
    assert loss[0].tolist() == pytest.approx([-0.875 / 2, 0.25, 7.0], abs=1e-9)
    loss.sum().backward()
    assert logp.grad is not None and logp.grad[0].tolist() == pytest.approx([-0.875 / 4, 0.125, 0.0], abs=1e-9)
    assert addon.token_loss(replace(view, mark=None), ones) is ones


def test_the_old_policy_of_rl_plus_has_no_gradient() -> None:
    logp = torch.tensor([0.3], dtype=torch.float64).log().requires_grad_()
    assert not multiple_importance(torch.tensor([0.2]).double().log(), logp).requires_grad
    # a new token that the policy knows well by now earns next to nothing: the weight .9975 times the factor .1
    old = torch.tensor([0.99], dtype=torch.float64).log()
    assert float(multiple_importance(old, old) * unexplored(old, gamma=0.5)) == pytest.approx(0.0998, abs=1e-4)
    assert float(unexplored(old, gamma=0.0)) == 1.0


# AMPO ---------------------------------------------------------------------------------------------


def test_ampo() -> None:
    group = guided(AMPO(AMPO.Config()), failing(demos=("1 3", "2 2", "1 2", "4")))
    injected = [t.source == "ampo" for t in group.trajectories]
    assert sum(injected) == 2
    assert advantages(group) == pytest.approx([0.75 if demo else -0.25 for demo in injected], abs=1e-6)


def test_ampo_leaves_a_group_with_a_right_answer() -> None:
    group = replace(make_group(0, scores=[0.0] * 7 + [1.0]), task=Task("t0", "?", "1", demos=("1 3",)))
    assert guided(AMPO(AMPO.Config()), group) is group
