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
from rlvr.explore.ghpo import GHPO, hinted_task
from rlvr.explore.luffy import Luffy
from rlvr.explore.rl_plus import RLPlus
from rlvr.objectives.off_policy import multiple_importance, shaped_probability, unexplored
from rlvr.objectives.view import TokenView
from rlvr.rollout.guidance import demonstrations, foreign
from rlvr.types import Completion, Group, Origin, Request, Sampling, Task
from tests.unit.conformance import ADVANTAGE, ToyContext, make
from tests.unit.rows import make_group


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


# GHPO ---------------------------------------------------------------------------------------------


class Stages(Teacher):
    """Retries are right from stage `good` on; `asked` are the requests of every call."""

    def __init__(self, good: int, limit: int = 100) -> None:
        super().__init__(sampling=Sampling(max_tokens=4))
        self.good, self.limit, self.asked = good, limit, list[list[Request]]()

    async def generate(self, requests: Any) -> list[Completion]:
        right = len(self.asked) >= self.good
        self.asked.append(list(requests))
        answers = [np.array([2 if right and i == 0 else 1], np.int32) for i in range(len(requests))]
        one = np.ones(1, np.int32)
        return [
            Completion(r.key, a, -0.3 * one.astype(np.float32), one, "stop")
            for r, a in zip(requests, answers, strict=True)
        ]

    def encode(self, task: Task) -> np.ndarray:
        assert isinstance(task.prompt, str)
        if len(task.prompt) > self.limit:
            raise DataError("the prompt is too long")
        return np.frombuffer(task.prompt.encode(), np.uint8).astype(np.int32)


HINTS = ("ab", "abcdefghij")


def ghpo(**options: Any) -> GHPO:
    return GHPO(GHPO.Config(template="{prompt}{hint}", **options))


def test_ghpo_shows_more_and_more() -> None:
    ctx = Stages(good=1)
    group = guided(ghpo(), failing(4, hints=HINTS), ctx)
    prompts = [bytes(call[0].tokens.astype(np.uint8)).decode() for call in ctx.asked]
    assert prompts == ["?ab", "?abcde"]  # round(10 * 0.25) = 2 characters, then 5
    keys = [r.key for call in ctx.asked for r in call]
    assert len(set(keys)) == 8 and len({r.sampling.seed for call in ctx.asked for r in call}) == 8
    for t in group.trajectories:  # trained under the prompt it was generated under, with known log-probs
        assert bytes(t.tokens[: group.prompt_len].astype(np.uint8)).decode() == "?abcde"
        assert t.generated_under is None and np.isfinite(t.logprobs).all() and t.source == "ghpo"
    assert group.correct.tolist() == [True, False, False, False]
    assert group.counts == {"ghpo/tried": 1, "ghpo/tried_rows": 8, "ghpo/rescued": 1, "ghpo/ratio_sum": 0.5}


def test_ghpo_that_fails_leaves_the_group_after_three_retries() -> None:
    ctx, group = Stages(good=9), failing(4, hints=HINTS)
    after = guided(ghpo(), group, ctx)
    assert len(ctx.asked) == 3
    assert after.trajectories == group.trajectories and after.counts == {"ghpo/tried": 1, "ghpo/tried_rows": 12}


def test_a_group_of_errors_has_not_failed() -> None:
    group = make_group(0, scores=[0.0, 0.0], errors=["timeout", "crash"])
    group = replace(group, task=Task("t0", "?", "1", source="unit", demos=("1 3",), hints=HINTS))
    for addon in (ghpo(), AMPO(AMPO.Config())):
        assert guided(addon, group, Stages(good=0)) is group


def test_retries_are_judged_as_answers_to_the_task_itself() -> None:
    judged: list[Task] = []

    class Judged(Stages):
        async def verify(self, task: Task, responses: Any) -> Any:
            judged.append(task)
            return await super().verify(task, responses)

    group = failing(4, hints=HINTS)
    hinted = guided(ghpo(), group, Judged(good=0))
    guided(critique(shortest=0.0), group, Judged(good=0))
    assert all(task is group.task for task in judged) and len(judged) == 2
    marks = foreign(collate([hinted]), "ghpo")  # its rows are on-policy: nothing replaces their loss
    assert not any(m.any() for m in marks)


def test_ghpo_costs_nothing_where_an_answer_is_right() -> None:
    ctx, group = Stages(good=0), make_group(0, scores=[0.0, 1.0])
    assert guided(ghpo(), group, ctx) is group
    assert not ctx.asked


def test_ghpo_with_a_hint_too_long_for_the_prompt() -> None:
    ctx, group = Stages(good=9, limit=5), failing(4, hints=HINTS)
    after = guided(ghpo(), group, ctx)
    assert after.trajectories == group.trajectories
    assert after.counts == {"ghpo/tried": 1, "ghpo/tried_rows": 4, "ghpo/too_long": 1}


@pytest.mark.parametrize("ratios", [[0.0], [1.0], [-0.1], [1.5], [0.5, 0.25], [float("nan")]])
def test_hint_ratios_out_of_range_are_refused(ratios: list[float]) -> None:
    with pytest.raises(ValueError):
        GHPO.Config(ratios=ratios)


@pytest.mark.parametrize(
    ("length", "ratio", "shown"), [(10, 0.25, 2), (11, 0.25, 3), (7, 0.5, 4), (3, 0.5, 2), (4, 0.9, 4)]
)
def test_a_hint_is_rounded_to_characters(length: int, ratio: float, shown: int) -> None:
    made = hinted_task(Task("t", "", "1", hints=("x", "y" * length)), ratio, template="{prompt}{hint}")
    assert made.prompt == "y" * shown


def test_a_hint_goes_into_the_last_turn_of_the_user() -> None:
    chat = (
        {"role": "user", "content": "{hint}?"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": "2"},
    )
    made = hinted_task(Task("t", chat, "1", hints=("{prompt}xx",)), 0.8, template="{prompt}: {hint}")
    assert [m["content"] for m in made.prompt] == ["{hint}?", "?", "2: {prompt}"]  # type: ignore[index]


# Critique-GRPO ------------------------------------------------------------------------------------


def critique(**options: Any) -> CritiqueGRPO:
    return CritiqueGRPO(CritiqueGRPO.Config(template="{prompt}{response}{critique}", wrong="no:{truth}", **options))


def test_critique_replaces_one_wrong_row() -> None:
    ctx, group = Stages(good=0), failing(4)
    after = guided(critique(shortest=0.0), group, ctx)
    assert bytes(ctx.asked[0][1].tokens.astype(np.uint8)).decode() == "?text 1no:1"
    assert [a is b for a, b in zip(after.trajectories, group.trajectories, strict=True)] == [True] * 3 + [False]
    row = after.trajectories[3]
    assert row.tokens.tolist() == [ord("?"), 2]  # the question alone
    assert row.generated_under is not None and bytes(row.generated_under.astype(np.uint8)).decode() == "?text 0no:1"
    assert np.isnan(row.logprobs).tolist() == [False, True] and row.weight.tolist() == [0, 1]
    assert [int(m.sum()) for m in foreign(collate([after]), "critique_grpo")] == [0, 0, 0, 1]


def test_a_refinement_of_just_the_shortest_length_is_taken_and_right_answers_are_told_so() -> None:
    group = failing(4)
    right = replace(group.trajectories[0], verdict=replace(group.trajectories[0].verdict, score=1.0, correct=True))
    group = group.with_(trajectories=(right, *group.trajectories[1:]))
    ctx = Stages(good=0)
    addon = CritiqueGRPO(
        CritiqueGRPO.Config(template="{prompt}{response}{critique}", right="yes", wrong="no", shortest=1 / 3)
    )
    after = guided(addon, group, ctx)  # 1 token for 3
    asked = [bytes(r.tokens.astype(np.uint8)).decode() for r in ctx.asked[0]]
    assert asked == ["?text 0yes", "?text 1no", "?text 2no", "?text 3no"]
    assert after.counts["critique_grpo/taken"] == 1 and after.trajectories[0] is right


def test_the_first_right_refinement_is_taken() -> None:
    class Both(Stages):
        async def generate(self, requests: Any) -> list[Completion]:
            one = np.ones(1, np.int32)
            said = [1, 2, 4, 6]  # wrong, then three right ones
            return [
                Completion(r.key, np.array([n], np.int32), np.zeros(1, np.float32), one, "stop")
                for r, n in zip(requests, said, strict=True)
            ]

    after = guided(critique(shortest=0.0), failing(4), Both(good=0))
    assert after.trajectories[3].tokens.tolist() == [ord("?"), 2]
    assert after.counts["critique_grpo/right"] == 3 and after.counts["critique_grpo/taken"] == 1


def test_a_refinement_that_is_wrong_or_a_copy_is_not_taken() -> None:
    group = failing(4)
    assert guided(critique(shortest=0.0), group, Stages(good=9)).trajectories == group.trajectories
    after = guided(critique(shortest=0.5), group, Stages(good=0))  # 1 token for 3
    assert after.trajectories == group.trajectories and after.counts["critique_grpo/too_short"] == 1
