"""Retries of GHPO and Critique-GRPO: what is asked again, what is taken, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlvr.batching import collate
from rlvr.errors import DataError
from rlvr.explore.ampo import AMPO
from rlvr.explore.critique_grpo import CritiqueGRPO
from rlvr.explore.ghpo import GHPO, hinted_task
from rlvr.rollout.guidance import foreign
from rlvr.types import Completion, Request, Sampling, Task
from tests.unit.rows import make_group
from tests.unit.test_guidance import Teacher, failing, guided

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
