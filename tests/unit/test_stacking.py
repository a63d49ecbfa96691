"""Add-ons that change the rows of one group: who counts what, who leaves what alone, in which order they stand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvr.advantages.grpo import Grpo
from rlvr.batching import collate
from rlvr.errors import EngineError
from rlvr.explore import ampo, critique_grpo, ghpo, luffy
from rlvr.explore.base import Draw
from rlvr.explore.dars import DARS
from rlvr.explore.exgrpo import Config, Exgrpo
from rlvr.explore.outcome_bonus import OutcomeBonus
from rlvr.explore.reinforce_ada import ReinforceAda
from rlvr.explore.repo import RePO
from rlvr.explore.treerl import TreeRL
from rlvr.rollout.guidance import temperature_of
from rlvr.rollout.replay import Entry, ReplayStore
from rlvr.rollout.tree_method import KINDS
from rlvr.types import Completion, Group, Origin, Request, Sampling, Task, Verdict
from tests.unit.rows import make_group
from tests.unit.test_check import told
from tests.unit.test_guidance import CONTEXT, failing, guided
from tests.unit.test_replay import TASKS, draw, group, row
from tests.unit.test_retries import HINTS, Stages, critique
from tests.unit.test_retries import ghpo as hinting
from tests.unit.test_tree import rt1
from tests.unit.toy import ToyContext, flat


def from_elsewhere(scores: Sequence[float], others: int, *, score: float = 1.0, source: str = "exgrpo") -> Group:
    """A group with so many more rows, behind the policy's, that another add-on put in."""
    made = make_group(0, scores=[*scores, *[score] * others])
    rows = [replace(t, source=source) if i >= len(scores) else t for i, t in enumerate(made.trajectories)]
    return made.with_(trajectories=tuple(rows))


# rounds -------------------------------------------------------------------------------------------


def rounds_of(addon: Any, first: Group) -> tuple[Group, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []

    async def sample(at: Draw) -> Group:
        seen.append((at.first, at.group))
        return first if not at.first else make_group(0, scores=[0.0] * at.group)

    return asyncio.run(addon.sampler(sample)(Draw(first.task, 3, 0, 8, Sampling()))), seen


def test_replayed_answers_do_not_make_a_question_easy() -> None:
    """None of 7 fresh responses is right; with 8 replayed right ones it would be 8 of 15, and no second round."""
    made, seen = rounds_of(DARS(DARS.Config()), from_elsewhere([0.0] * 7, 8))
    assert seen == [(0, 8), (8, 24)] and len(made) == 15 + 24
    assert DARS(DARS.Config()).observe([made], {})["saved"] == 0
    method = ReinforceAda(ReinforceAda.Config(rounds=2))
    made, seen = rounds_of(method, from_elsewhere([0.0] * 7, 2))
    assert seen == [(0, 8), (8, 8)]
    kept = [i for i, t in enumerate(made.trajectories) if t.weight.any()]
    assert kept == [0, 1, 2, 3, 7, 8]  # n of its own, and what was replayed


@pytest.mark.parametrize("pair", [("dars", "reinforce_ada"), ("dars", "dars"), ("reinforce_ada", "reinforce_ada")])
def test_two_methods_of_rounds_would_sample_the_same_seeds(pair: tuple[str, str], tmp_path: Path) -> None:
    found = told(tmp_path, explore=[{"kind": kind} for kind in pair])
    assert sum("one method of rounds a recipe" in text for text in found) == 2


# order in the recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ead", "exgrpo", "temperature_schedule"])
def test_what_changes_a_draw_stands_before_its_tree(kind: str, tmp_path: Path) -> None:
    first = told(tmp_path, explore=[{"kind": kind}, {"kind": "treerl"}])
    behind = told(tmp_path, explore=[{"kind": "treerl"}, {"kind": kind}])
    assert not any("stands behind" in text for text in first)
    assert any(f"'{kind}' stands behind it" in text and "error explore.0" in text for text in behind)


@pytest.mark.parametrize("kind", ["diver", "length_reward", "rep_exp"])
def test_a_bonus_that_compares_rows_stands_behind_what_replays_them(kind: str, tmp_path: Path) -> None:
    wrong = told(tmp_path, explore=[{"kind": kind}, {"kind": "exgrpo"}])
    assert any(f"error explore.1: '{kind}' stands before it" in text for text in wrong)
    assert not any("stands before it" in t for t in told(tmp_path, explore=[{"kind": "exgrpo"}, {"kind": kind}]))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_trees_that_cannot_be_are_refused(kind: str, tmp_path: Path) -> None:
    def found(**changes: Any) -> str:
        return "\n".join(told(tmp_path, group=4, sampling={"max_tokens": 16}, **changes))

    assert "budget is 63 tokens" in found(explore=[{"kind": kind, "budget": 63}])
    assert "budget is" not in found(explore=[{"kind": kind, "budget": 64}])
    other = "treerl" if kind != "treerl" else "fr3e"
    assert f"one tree method a recipe, got {kind}, {other}" in found(explore=[{"kind": kind}, {"kind": other}])
    assert "gives the advantages itself" in found(explore=[{"kind": kind}], advantage={"kind": "remax"})
    for rounds in ("dars", "reinforce_ada"):
        assert "in one tree: take one of them away" in found(explore=[{"kind": rounds}, {"kind": kind}])


def test_a_bonus_on_advantages_stands_behind_the_tree_that_gives_them(tmp_path: Path) -> None:
    bonus, tree = {"kind": "outcome_bonus"}, {"kind": "treerl"}
    wrong = told(tmp_path, explore=[bonus, tree])
    assert any("error explore.0: 'outcome_bonus' changes advantages that 'treerl' (explore.1)" in t for t in wrong)
    assert not any("gives anew" in t for t in told(tmp_path, explore=[tree, bonus]))
    assert not any("gives anew" in t for t in told(tmp_path, explore=[bonus, {"kind": "latr"}]))  # the estimator's
    # what the check is for: the order decides whether the bonus is there at all
    method, trees, before = OutcomeBonus(OutcomeBonus.Config(form="batch")), TreeRL(TreeRL.Config()), rt1()
    (credited,) = Grpo(Grpo.Config()).advantage([before])
    (lost,), (kept,) = trees.advantage(method.advantage([credited])), method.advantage(trees.advantage([credited]))
    assert lost.advantages is not None and kept.advantages is not None
    assert float(kept.advantages[0][-1]) == pytest.approx(float(lost.advantages[0][-1]) - 0.2 * 3 / 4, abs=1e-6)


# counts -------------------------------------------------------------------------------------------


def test_only_the_policys_own_answers_are_counted() -> None:
    made = from_elsewhere([1.0, 0.0], 2, source="luffy")
    keys = ["1", "2", "1", "9"]
    rows = zip(made.trajectories, keys, strict=True)
    made = made.with_(
        trajectories=tuple(replace(t, verdict=replace(t.verdict, answer_key=k)) for t, k in rows),  # type: ignore[type-var]
        rewards=np.array([1, 0, 1, 1], np.float32),
    )
    method = OutcomeBonus(OutcomeBonus.Config())
    method.observe([made], {})
    assert method.state_dict() == {"counts": {"unit/t0": Counter({"1": 1, "2": 1})}}


# replay -------------------------------------------------------------------------------------------


def test_a_stored_row_comes_back_whole() -> None:
    """A branch's shared prefix, or a sample beyond those trained on, has weight 0 in its own step alone."""
    store = ReplayStore()
    branch = replace(row([5, 6, 7]), weight=np.array([0, 0, 0, 0, 0, 1], np.float32))
    unused = replace(row([8, 9]), weight=np.zeros(5, np.float32))
    for i, t in enumerate((branch, unused)):
        assert store.add(Entry("1", i, t)) is None
    assert [e.row.weight.tolist() for e in store.of("1")] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    masked = replace(  # forced tokens that another add-on took out of the loss stay out
        row([5, 6]),
        origin=np.array([0, 0, 0, Origin.FORCED, Origin.SAMPLED], np.int8),
        weight=np.array([0, 0, 0, 0, 1], np.float32),
        logprobs=np.array([0, 0, 0, np.nan, -1], np.float32),
    )
    assert store.add(Entry("2", 0, masked)) is None and store.of("2")[0].row.weight.tolist() == [0, 0, 0, 0, 1]
    assert store.add(Entry("2", 0, replace(masked, weight=np.array([0, 0, 0, 1, 1], np.float32)))) is not None
    nothing = replace(row([5]), weight=np.zeros(4, np.float32), logprobs=np.full(4, np.nan, np.float32))
    assert store.add(Entry("2", 0, nothing)) == "unknown behaviour"


def test_exgrpo_forgets_the_task_of_an_attempt_that_ran_out_of_time() -> None:
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("4", [1, 0, 0, 1])], {})
    context = ToyContext(tasks=TASKS)
    asyncio.run(addon.sampler(flat)(replace(draw(1), ctx=context)))
    assert addon._drawn[1].id == "4"
    addon.observe([group("4", [1, 1, 1, 1], draw=0)], {})  # meanwhile it is retired
    first = asyncio.run(addon.sampler(flat)(replace(draw(1), ctx=context)))
    second = asyncio.run(addon.sampler(flat)(replace(draw(1, 3), first=8, ctx=context)))
    assert first.task.id == second.task.id == "0"


def test_exgrpo_is_told_of_refused_rows_by_the_step_that_drew_them() -> None:
    """What is sampled for a later step meanwhile changes nothing in this one, whatever the timing."""
    addon = Exgrpo(Config(), seed=1)
    addon.observe([group("1", [1, 0, 0, 1])], {})
    for e in addon.store.of("1"):
        addon.store.evict(task="1")
        addon.store.add(replace(e, row=replace(e.row, text="other")))
    asyncio.run(addon.sampler(flat)(draw(5)))
    addon.observe([group("2", [1, 0], draw=4)], {})
    assert "1" in addon.store.tasks
    addon.observe([group("2", [1, 0], draw=5)], {})
    assert "1" not in addon.store.tasks


def test_exgrpo_judges_a_task_by_fresh_answers_without_error() -> None:
    """1 of 2 is right: not the replayed one, nor the error, which is neither."""
    addon = Exgrpo(Config(), seed=1)
    made = group("1", [1, 0, 1, 1])
    lost = replace(made.trajectories[3], verdict=Verdict(0.0, False, error="timeout"))
    old = replace(made.trajectories[2], source="exgrpo")
    addon.observe([made.with_(trajectories=(*made.trajectories[:2], old, lost))], {})
    assert addon.rates == {"1": 0.5} and len(addon.store) == 1 and not addon.retired
    solved = made.with_(trajectories=(made.trajectories[0], lost), rewards=None)
    addon.observe([solved], {})
    assert addon.retired == {"1"} and len(addon.store) == 0


def test_repo_refuses_rows_of_another_tokenizer_and_ranks_by_shaped_reward() -> None:
    addon = RePO(RePO.Config(k=1, strategy="highest"))
    made = group("1", [1, 1, 0]).with_(rewards=np.array([0.2, 0.9, 0.0], np.float32))
    addon.observe([made], {})
    context = ToyContext(tasks=TASKS)
    out = asyncio.run(addon.guide(group("1", [0, 0], draw=9), context))
    assert out.trajectories[-1].tokens.tolist() == made.trajectories[1].tokens.tolist()
    for e in addon.store.of("1"):
        addon.store.evict(task="1")
        addon.store.add(replace(e, row=replace(e.row, text="other")))
    out = asyncio.run(addon.guide(group("1", [0, 0], draw=9), context))
    assert len(out) == 2 and out.counts == {"repo/replayed": 0, "repo/refused": 1}
    said = addon.observe([out.with_(rewards=out.scores)], {})
    assert said["refused"] == 1 and [e.row.text for e in addon.store.of("1")] == ["5 4", "6 4"]


# guidance -----------------------------------------------------------------------------------------


class Lost(Stages):
    """The engine is gone from call number `good` on."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if len(self.asked) >= self.good:
            raise self.error("lost")
        self.asked.append(list(requests))
        return [Completion(r.key, np.ones(1, np.int32), np.zeros(1, np.float32), np.zeros(1, np.int32), "stop")
                for r in requests]  # fmt: skip

    error: type[Exception] = EngineError


@pytest.mark.parametrize("error", [EngineError, TimeoutError])
def test_a_retry_that_fails_leaves_the_group_and_is_counted(error: type[Exception]) -> None:
    before = failing(4, hints=HINTS)
    ctx = Lost(good=1)
    ctx.error = error
    after = guided(hinting(), before, ctx)
    assert after.trajectories == before.trajectories and after.prompt_len == before.prompt_len
    assert after.counts == {"ghpo/tried": 1, "ghpo/tried_rows": 4, "ghpo/failed": 1}
    ctx = Lost(good=0)
    ctx.error = error
    after = guided(critique(shortest=0.0), before, ctx)
    assert after.trajectories == before.trajectories and after.counts == {"critique_grpo/failed": 1}
    assert critique().observe([after], {}) == {"failed": 1}
    assert hinting().observe([guided(hinting(), before, Lost(good=0))], {})["failed"] == 1


def test_guidance_leaves_what_others_put_in() -> None:
    task = Task("t0", "?", "1", source="unit", demos=("1 3", "2 2"), hints=HINTS)
    before = replace(from_elsewhere([0.0] * 4, 4, score=0.0, source="repo"), task=task)
    after = guided(ampo.AMPO(ampo.Config(demos=3)), before)
    assert [t.source for t in after.trajectories[4:]] == ["repo"] * 4
    assert sum(t.source == "ampo" for t in after.trajectories) == 2
    ctx = Stages(good=0)
    after = guided(hinting(), before, ctx)
    assert len(ctx.asked[0]) == 4 and [t.source for t in after.trajectories] == ["ghpo"] * 4 + ["repo"] * 4
    assert after.trajectories[4:] == before.trajectories[4:]
    after = guided(luffy.Luffy(luffy.Config(demos=3)), before)
    assert [t.source for t in after.trajectories] == ["policy", "policy", "luffy", "luffy", *["repo"] * 4]
    few = replace(before, trajectories=before.trajectories[2:])
    few = few.with_(
        trajectories=tuple(replace(t, source="policy" if i < 2 else "repo") for i, t in enumerate(few.trajectories))
    )
    after = guided(luffy.Luffy(luffy.Config(demos=3)), few)  # one response of the policy's stays
    assert [t.source for t in after.trajectories[:2]] == ["policy", "luffy"]
    after = guided(critique(shortest=0.0), before, Stages(good=0))
    assert [t.source for t in after.trajectories] == ["policy"] * 3 + ["critique_grpo"] + ["repo"] * 4


def test_one_guidance_after_another() -> None:
    """A demonstration makes a failed group no failure; a hinted group takes no demonstration."""
    before = failing(4, demos=("1 3",), hints=HINTS)
    shown = guided(luffy.Luffy(luffy.Config()), before)
    assert guided(hinting(), shown, Stages(good=0)) is shown
    assert guided(ampo.AMPO(ampo.Config()), shown) is shown
    hinted = guided(hinting(), before, Stages(good=0))
    after = guided(luffy.Luffy(luffy.Config()), hinted)
    assert after.trajectories == hinted.trajectories and after.counts["luffy/without"] == 1
    assert guided(critique_grpo.CritiqueGRPO(critique_grpo.Config()), hinted, Stages(good=0)) is hinted


def test_rows_from_elsewhere_have_the_temperature_at_which_a_response_begins() -> None:
    """An annealed response ends at 0.1; its demonstrations and retries must not be of that temperature."""
    before = failing(3, demos=("1 3",))
    heat = np.array([1, 1, 1.2, 0.9, 0.1], np.float32)
    old = replace(before.trajectories[0], source="deep_search", temperature=np.full(5, 7, np.float32))
    rows = (old, *(replace(t, temperature=heat) for t in before.trajectories[1:]))
    before = before.with_(trajectories=rows)
    assert temperature_of(before) == pytest.approx(1.2)
    after = guided(luffy.Luffy(luffy.Config()), before, replace(CONTEXT))
    assert set(after.trajectories[-1].temperature[2:].tolist()) == {np.float32(1.2)}
    assert temperature_of(before.with_(trajectories=(old,))) == 7


def test_repo_and_luffy_in_one_group_weigh_their_own_rows() -> None:
    repo = RePO(RePO.Config(k=2))
    repo.observe([group("1", [1, 0])], {})

    async def go() -> Group:
        made = await repo.guide(group("1", [0, 0], draw=9), ToyContext(tasks=TASKS))
        made = replace(made, task=replace(made.task, demos=("1 3",)))
        return await luffy.Luffy(luffy.Config()).guide(made, ToyContext(tasks=TASKS))

    made = asyncio.run(go())
    assert [t.source for t in made.trajectories] == ["policy", "luffy", "repo", "repo"]
    rows = collate([made.with_(rewards=made.scores)])
    assert [r.source for r in rows] == ["policy", "luffy", "repo", "repo"]
    (credited,) = Grpo(Grpo.Config(std=False)).advantage([made.with_(rewards=made.scores)])
    assert credited.advantages is not None
    assert [float(a[-1]) for a in credited.advantages] == [-0.5, 0.5, 0.5, -0.5]  # each pair its own baseline
    assert ghpo.GHPO(ghpo.Config()).observe([made], {})["active"] == 0
