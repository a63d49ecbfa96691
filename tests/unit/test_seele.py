"""SEELE: the curve and its inverse, what the rounds show, what is trained on, and what bad input gets."""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.batching import collate, token_batch
from rlvr.credit import assign_credit
from rlvr.engine.deepspeed_loss import Losses, MicroBatch
from rlvr.errors import ConfigError, DataError
from rlvr.explore.base import Draw
from rlvr.explore.seele import SEELE, accuracy, by_lines, fitted, inverse, next_rate, sizes
from rlvr.methods import build_objective
from rlvr.prompting import Prompter
from rlvr.recipe import KL, Objective, Prompt
from rlvr.rollout.groups import flat_groups
from rlvr.types import Completion, Group, Origin, Plan, Request, Sampling, Task, Verdict
from tests.unit.conformance import ADVANTAGE, make
from tests.unit.test_check import told
from tests.unit.test_prompting import tokenizer

STEPS = tuple("abcdefghi"[:n] for n in range(1, 10))  # a solution in ten steps, a character each
TASK = Task("t", "?", "1", source="unit", hints=STEPS)

# the curve ----------------------------------------------------------------------------------------

CURVES = [
    (10.0, 0.0, -0.5, 0.5),
    (10.0, 0.2, -0.5, 0.4489),
    (4.46, 0.0, -0.5, 0.5),
    (43.15, 0.02, -0.84, 0.8391),
    (19.03, 0.45, -0.64, 0.5190),
]


@pytest.mark.parametrize(("k", "b", "mu", "rate"), CURVES)
def test_inverse(k: float, b: float, mu: float, rate: float) -> None:
    assert inverse(k, b, mu) == pytest.approx(rate, abs=5e-5)
    assert accuracy(inverse(k, b, mu), k, b, mu) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("b", [0.5, 0.6, 0.9])
def test_no_hint_where_guessing_is_as_good(b: float) -> None:
    assert inverse(10.0, b, -0.5) == 0.0


@pytest.mark.parametrize(("k", "b", "mu", "rate"), CURVES)
def test_a_curve_is_found_again(k: float, b: float, mu: float, rate: float) -> None:
    rates = np.linspace(0, 1, 11)
    found = fitted(list(rates), list(accuracy(rates, k, b, mu)), near=0.4)
    np.testing.assert_allclose(accuracy(rates, *found), accuracy(rates, k, b, mu), atol=2e-3)
    assert inverse(*found) == pytest.approx(rate, abs=2e-3)


def test_lines_before_three_parameters_are_known() -> None:
    assert by_lines([0.9], [1.0]) == pytest.approx(0.45)  # from (0, 0)
    assert by_lines([0.8], [0.25]) == pytest.approx(0.8 + 0.2 / 3)  # to (1, 1): a third of the way
    assert by_lines([0.4, 0.8], [0.25, 0.75]) == pytest.approx(0.6)
    assert by_lines([0.0, 0.5], [0.5, 1.0]) == 0.0
    assert by_lines([0.2, 0.4, 0.6], [0.6, 0.2, 0.8]) == pytest.approx(0.5)  # behind the last point below
    assert next_rate([(0.9, 1.0)], most=0.9) == (pytest.approx(0.45), 0.0)
    assert next_rate([(0.9, 0.0)], most=0.9) == (0.9, 0.0)
    assert next_rate([(0.5, 0.25), (0.5, 0.75)], most=0.9) == (pytest.approx(0.5), 0.0)  # the mean at equal rates
    assert next_rate([(0.3, 0.0), (0.5, 0.0), (0.9, 0.0)], most=0.9) == (0.9, 0.0)
    assert next_rate([(0.0, 1.0), (0.5, 1.0), (0.9, 1.0)], most=0.9) == (0.0, 0.0)
    assert next_rate([(0.3, 0.6), (0.5, 1.0), (0.9, 1.0)], most=0.9) == (pytest.approx(0.25), 0.0)  # no point below


def test_the_fit_takes_means_and_keeps_its_bounds() -> None:
    points = [(0.2, 0.0), (0.6, 0.0), (0.6, 1.0), (0.9, 1.0)]
    rate, by_fit = next_rate(points, most=0.9)
    assert by_fit == 1.0 and rate == next_rate([(0.2, 0.0), (0.6, 0.5), (0.9, 1.0)], most=0.9)[0]
    assert rate == pytest.approx(0.6, abs=1e-3)
    assert next_rate([(0.0, 0.8), (0.4, 0.9), (0.6, 0.2)], most=0.9) == (0.0, 1.0)  # a floor above 1/2
    assert next_rate([(0.7, 0.0), (0.8, 0.2), (0.9, 0.6)], most=0.85) == (0.85, 1.0)


# rounds -------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run whose model answers right with probability f(steps shown); one character is one token."""

    curve: tuple[float, float, float] = (8.0, 0.05, -0.6)
    steps: int = 10
    limit: int = 100
    broken: bool = False
    exact: bool = False  # so many right ones as f says, whatever the seed
    seed: int = 7
    step: int = 0
    tasks: Sequence[Task] = (TASK,)
    sampling: Sampling = field(default_factory=Sampling)
    asked: list[list[Request]] = field(default_factory=list)
    judged: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompter = Prompter(tokenizer(), Prompt(max_tokens=self.limit))
        self.encode, self.encode_response = self.prompter.encode, self.prompter.encode_response
        self.decode = self.prompter.decode

    def at(self, step: int) -> Run:
        return replace(self, step=step)

    def right(self, requests: Sequence[Request]) -> np.ndarray:
        rates = np.array([accuracy((len(r.tokens) - 1) / self.steps, *self.curve) for r in requests])
        seeds = [np.random.default_rng(r.sampling.seed).random() for r in requests]
        return np.arange(len(rates)) < np.round(rates * len(rates)) if self.exact else np.array(seeds) < rates

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append(list(requests))
        tokens = [self.encode_response("1" if right else "0") for right in self.right(requests)]
        return [
            Completion(r.key, t, np.array([-0.3, -0.1], np.float32), np.array([4, 4], np.int32), "stop")
            for r, t in zip(requests, tokens, strict=True)
        ]

    async def verify(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        self.judged.append(list(responses))
        error = "timeout" if self.broken else None
        return [Verdict(float(text.endswith("1")), text.endswith("1"), error=error) for text in responses]

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        return await self.verify(task, responses)

    def prompts(self) -> list[str]:
        """Of each round, once."""
        for call in self.asked:
            assert len({r.tokens.tobytes() for r in call}) == 1
        return [self.decode(call[0].tokens) for call in self.asked]


def sampled(addon: SEELE, run: Run, task: Task = TASK, *, group: int = 16, draw: int = 0) -> Group:
    plain = flat_groups(run, run, run, seed=run.seed)  # type: ignore[arg-type]
    return asyncio.run(addon.sampler(plain)(Draw(task, draw, 0, group, run.sampling, ctx=run)))  # type: ignore[arg-type]


def method(**options: Any) -> SEELE:
    return SEELE(SEELE.Config(**options))


@pytest.mark.parametrize("curve", [(8.0, 0.05, -0.6), (15.0, 0.2, -0.3), (30.0, 0.0, -0.75)])
def test_accuracy_nears_a_half(curve: tuple[float, float, float]) -> None:
    letters = string.ascii_lowercase + string.ascii_uppercase
    task = replace(TASK, hints=tuple(letters[:n] for n in range(1, 50)))
    run = Run(curve=curve, exact=True, steps=50)
    sampled(method(), run, task, group=400)
    gaps = [abs(np.mean([t.endswith("1") for t in texts]) - 0.5) for texts in run.judged]
    assert len(gaps) == 4 and gaps[0] > 0.35
    assert gaps[3] < 0.12 and gaps[3] < gaps[0] / 3


def test_rounds_show_what_the_last_ones_ask_for() -> None:
    run = Run(curve=(50.0, 0.0, -0.55), exact=True)  # right from six steps on
    group = sampled(method(gamma=0.5), run)
    assert run.prompts() == ["?abcdefghi", "?abcde", "?abcdefg", "?abcdef"]  # .9 -> .45, .7 (lines), .6 (fit)
    assert [len(call) for call in run.asked] == [4] * 4
    keys = [r.key for call in run.asked for r in call]
    assert keys == [f"0/{i}" for i in range(16)] and len({r.sampling.seed for c in run.asked for r in c}) == 16
    assert run.judged[1][0] == "abcde0" and group.trajectories[4].text == "abcde0"
    assert group.task is TASK and group.draw == 0 and group.prompt_len == 1 and len(group) == 16
    assert all(t.source == "seele" and t.generated_under is None for t in group.trajectories)
    assert group.counts["seele/rate_sum"] == pytest.approx(0.9 + 0.5 + 0.7 + 0.6)


def test_hint_tokens_are_imitated_and_take_no_policy_loss() -> None:
    group = sampled(method(gamma=0.5), Run(curve=(50.0, 0.0, -0.55), exact=True))
    row = group.trajectories[4]  # "?abcde" and two tokens
    assert row.origin.tolist() == [Origin.PROMPT] * 6 + [Origin.SAMPLED] * 2
    assert row.weight.tolist() == [0] * 6 + [1] * 2
    assert row.sft_weight is not None and row.sft_weight.tolist() == [0] + [0.5] * 5 + [0] * 2
    assert row.logprobs.tolist() == pytest.approx([0] * 6 + [-0.3, -0.1]) and row.version[6:].tolist() == [4, 4]


def test_one_baseline_for_all_rounds() -> None:
    group = sampled(method(), Run(curve=(50.0, 0.0, -0.55), exact=True))  # right in all of rounds 1, 3, 4
    (credited,) = assign_credit([group.with_(rewards=group.scores)], [make(ADVANTAGE, "dr_grpo", {}, name="advantage")])
    assert credited.advantages is not None
    assert [float(a[-1]) for a in credited.advantages] == pytest.approx([0.25] * 4 + [-0.75] * 4 + [0.25] * 8)
    assert all(not a[t.weight == 0].any() for a, t in zip(credited.advantages, credited.trajectories, strict=True))


def test_without_a_hint_the_rows_are_those_of_plain_sampling() -> None:
    run, addon = Run(), method()
    addon.load_state_dict({"rates": {"unit/t": 0.0}})
    run.curve = (8.0, 0.9, -0.5)  # guessing is good enough
    group, plain = sampled(addon, run, group=40), sampled(method(rounds=0), run, group=40)
    same(group, plain)
    assert all(t.sft_weight is None and t.source == "policy" for t in group.trajectories)
    assert group.counts["seele/hinted"] == 0 and plain.counts == {}


def same(a: Group, b: Group) -> None:
    for one, other in zip(a.trajectories, b.trajectories, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.logprobs.tolist() == other.logprobs.tolist()
        assert one.text == other.text and one.verdict == other.verdict


def test_a_task_without_steps_is_sampled_plainly_and_counted() -> None:
    run, addon = Run(), method()
    group = sampled(addon, run, replace(TASK, hints=()))
    assert len(run.asked) == 1 and group.counts == {"seele/without": 1}
    same(group, sampled(method(rounds=0), run, replace(TASK, hints=())))
    assert addon.observe([group], {}) == {"active": 0.0, "without": 1.0} and not addon.rates


def test_a_hint_too_long_for_the_prompt_gives_way_to_a_shorter_one() -> None:
    run, addon = Run(limit=4, curve=(50.0, 0.0, -0.95), exact=True), method()
    group = sampled(addon, run)
    assert set(run.prompts()) == {"?abc"}  # four tokens with the question
    assert addon.observe([group], {})["refused"] == 6 + 3 * 3  # 9, then 6 steps (between .3 and 1) are asked for
    none = Run(limit=1, exact=True)
    assert sampled(method(), none).counts["seele/hinted"] == 0 and set(none.prompts()) == {"?"}


def test_a_hint_with_an_end_token_inside_is_not_shown() -> None:
    run = Run(exact=True)
    group = sampled(method(), run, replace(TASK, hints=("a", "ab", "ab<end>c")))
    assert run.prompts()[0] == "?ab" and group.counts["seele/refused"] >= 1


def test_rounds_in_error_say_nothing() -> None:
    run, addon = Run(broken=True), method()
    group = sampled(addon, run)
    assert set(run.prompts()) == {"?abcdefghi"}
    assert "gap" not in addon.observe([group], {}) and addon.rates == {"unit/t": 0.9}


def test_the_next_epoch_begins_where_the_last_one_ended() -> None:
    run, addon = Run(curve=(50.0, 0.0, -0.55), exact=True), method()
    first = sampled(addon, run)
    assert addon.rates == {}  # nothing changes before `observe`
    said = addon.observe([first], {})
    assert addon.rates == {"unit/t": pytest.approx(0.55, abs=0.05)}
    assert said == {
        "active": 16.0, "without": 0.0, "refused": 0.0, "fitted": 1.0, "gap": 0.5, "rate_mean": pytest.approx(0.675),
    }  # fmt: skip
    fresh = method()
    fresh.load_state_dict(json.loads(json.dumps(addon.state_dict())))
    again = Run(curve=(50.0, 0.0, -0.55), exact=True)
    sampled(fresh, again, draw=1)
    assert again.prompts()[0] in ("?abcde", "?abcdef")


def test_a_group_that_rounds_do_not_divide() -> None:
    assert sizes(16, 4) == [4, 4, 4, 4] and sizes(5, 3) == [1, 2, 2] and sizes(2, 4) == [1, 1]
    assert len(sampled(method(rounds=3), Run(), group=5)) == 5


# the loss -----------------------------------------------------------------------------------------


def supervised(group: Group, parts: Sequence[Sequence[int]], logp: float = -2.0) -> float:
    """The supervised loss of an update of all rows, where every token has this log-prob."""
    rows = collate([group])
    batch = token_batch(rows, range(len(rows)), scale=np.zeros(len(rows), np.float32))
    losses = Losses(*build_objective(Objective(), seed=0, project=Path()), KL(), (), frozenset())
    total = 0.0
    for part in parts:
        chosen = [rows[i] for i in part]
        shape = len(chosen), max(len(r.tokens) for r in chosen)
        out = {"logp": torch.full(shape, logp), "entropy": torch.zeros(shape)}
        micro = MicroBatch(chosen, batch.scale[list(part)], batch.sft_scale[list(part)])
        total += losses(out, micro, Plan(0, 0.1, 0, True))[1]["sft_loss"]
    return total


@pytest.mark.parametrize("gamma", [0.001, 0.5])
def test_gamma_is_applied_and_global(gamma: float) -> None:
    group = sampled(method(gamma=gamma), Run(curve=(50.0, 0.0, -0.55), exact=True))
    assert supervised(group, [range(16)]) == pytest.approx(gamma * 2.0, rel=1e-6)
    assert supervised(group, [[i] for i in range(16)]) == pytest.approx(gamma * 2.0, rel=1e-5)


# what is refused ----------------------------------------------------------------------------------


def test_data_without_solutions_is_refused() -> None:
    with pytest.raises(ConfigError, match="no training task has a hint"):
        asyncio.run(method().prepare(Run(tasks=[replace(TASK, hints=())])))  # type: ignore[arg-type]
    for hints in (("ab", "b"), ("ab", "ab"), ("ab", "a"), ("",)):
        with pytest.raises(DataError, match="1 tasks have others"):
            asyncio.run(method().prepare(Run(tasks=[TASK, replace(TASK, hints=hints)])))  # type: ignore[arg-type]
    asyncio.run(method(rounds=0).prepare(Run(tasks=[])))  # type: ignore[arg-type]


def test_recipes_that_cannot_work_are_refused(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [{"kind": "seele", "rounds": 4}]
    assert told(tmp_path, group=8, explore=asked) == []
    assert any("rounds = 4 do not divide" in text for text in told(tmp_path, group=6, explore=asked))
    for other, says in (("dars", "same seeds"), ("treerl", "take one of them away"), ("eepo", "same seeds")):
        assert any(says in t for t in told(tmp_path, group=8, explore=[*asked, {"kind": other}])), other
    replay: list[dict[str, Any]] = [{"kind": "exgrpo"}]
    assert told(tmp_path, group=8, explore=[*replay, *asked]) == []
    assert any("name it before" in t for t in told(tmp_path, group=8, explore=[*asked, *replay]))
    assert any("'remax'" in t for t in told(tmp_path, group=8, advantage={"kind": "remax"}, explore=asked))
