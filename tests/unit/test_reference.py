"""When the reference moves: timer, plateau, average; what a checkpoint keeps of the decision."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from rlvr.engine.protocols import Which
from rlvr.explore.base import AddOn
from rlvr.loop import train
from rlvr.recipe import KL, Reference
from rlvr.reference import ReferenceSchedule, Scores, move_reference, uses_reference
from rlvr.types import Metrics, Streams, TokenBatch
from tests.unit.test_loop import make_loop, recipe


@dataclass
class Moves:
    """A policy that only writes down how its reference was moved."""

    calls: list[tuple[float, bool]] = field(default_factory=list)

    async def move_reference(self, *, alpha: float, reset_optimizer: bool) -> None:
        self.calls.append((alpha, reset_optimizer))


def nothing() -> list[tuple[int, float]]:
    return []


def due(config: Reference, steps: int, scores: Scores = nothing) -> list[int]:
    schedule = ReferenceSchedule(config)
    return [step for step in range(steps) if schedule.due(step, scores)]


def test_the_timer() -> None:
    assert due(Reference(update="every", steps=3), 10) == [3, 6, 9]
    assert due(Reference(update="average", steps=4), 10) == [4, 8]
    assert due(Reference(), 10) == []


SCORES = [(0, 0.1), (2, 0.3), (4, 0.2), (6, 0.3), (8, 0.25), (10, 0.5), (12, 0.4), (14, 0.4)]


def until(step: int) -> list[tuple[int, float]]:
    return [pair for pair in SCORES if pair[0] <= step]


def plateau(patience: int = 2) -> ReferenceSchedule:
    return ReferenceSchedule(Reference(update="plateau", patience=patience))


def test_a_plateau_is_so_many_evaluations_without_a_new_best() -> None:
    # 4 and 6 are none (a tie is no new best), so the reset comes at step 7; 8 counts anew, 10 is a best, 12 and 14 none
    assert due(Reference(update="plateau", patience=2), 17, lambda: SCORES) == [7, 15]
    assert due(Reference(update="plateau", patience=4), 17, lambda: SCORES) == []


def test_the_decision_does_not_depend_on_when_an_evaluation_ends() -> None:
    early, late = plateau(), plateau()
    fired = []
    for step in range(17):  # `early` sees the evaluation of this very step, `late` those before it alone
        a, b = early.due(step, lambda step=step: until(step)), late.due(step, lambda step=step: until(step - 1))
        assert a == b
        fired += [step] if a else []
    assert fired == [7, 15]


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_resumed_schedule_decides_as_the_uninterrupted_one(cut: int) -> None:
    whole, first, second = plateau(), plateau(), plateau()
    expected = [whole.due(step, lambda: SCORES) for step in range(17)]
    begun = [first.due(step, lambda step=step: until(step)) for step in range(cut)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [second.due(step, lambda: SCORES) for step in range(cut, 17)]
    assert begun + rest == expected and sum(expected) == 2


def test_an_empty_state_is_that_of_a_new_run() -> None:
    schedule = plateau()
    schedule.load_state_dict({})
    assert schedule.state_dict() == plateau().state_dict()


async def test_what_is_asked_of_the_policy() -> None:
    policy = Moves()
    for config in (
        Reference(),
        Reference(update="every", steps=1),
        Reference(update="average", steps=1, alpha=0.25),
        Reference(update="every", steps=2),
    ):
        metrics = await move_reference(ReferenceSchedule(config), policy, step=1, scores=nothing)
        assert metrics.get("reference/moved", 0.0) == float(config.update != "never" and config.steps == 1)
    assert policy.calls == [(1.0, True), (0.25, False)]
    metrics = await move_reference(plateau(1), policy, step=5, scores=lambda: SCORES[:3])
    assert metrics == {"reference/moved": 1.0, "reference/stale": 0.0} and policy.calls[-1] == (1.0, True)


def test_who_needs_a_reference() -> None:
    class Asks(AddOn):
        needs = frozenset({"ref_logp"})

    assert not uses_reference(KL(), [AddOn]) and not uses_reference(KL(), [])
    assert uses_reference(KL(coef=0.1), []) and uses_reference(KL(), [AddOn, Asks])


async def run_loop(**reference: object) -> tuple[list[tuple[int, list[int], Metrics]], list[str]]:
    """The records of a toy run, and the order of what was asked of its policy."""
    loop, policy, recorder = make_loop(recipe(kl={"coef": 0.1}, reference=reference))
    order: list[str] = []
    measure = policy.measure

    async def measured(batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        order.append(model)
        return await measure(batch, needs, model)

    async def moved(*, alpha: float, reset_optimizer: bool) -> None:
        order.append("move")

    policy.measure = measured  # type: ignore[method-assign]
    policy.move_reference = moved  # type: ignore[attr-defined]
    await train(loop)
    return recorder.lines, order


async def test_a_reference_that_never_moves_is_plain_kl_and_one_that_does_moves_before_it_is_measured() -> None:
    plain, order = await run_loop()
    waiting, _ = await run_loop(update="every", steps=1000)
    said = [metrics.pop("reference/moved") for _, _, metrics in waiting]
    assert waiting == plain and said == [0.0] * 5 and order == ["reference"] * 5
    moving, order = await run_loop(update="every", steps=2)
    assert [metrics["reference/moved"] for _, _, metrics in moving] == [0, 0, 1, 0, 1]
    assert order == ["reference", "reference", "move", "reference", "reference", "move", "reference"]
