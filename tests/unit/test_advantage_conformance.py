"""What every estimator of `rlvr/advantages` must hold in a whole update. A new one joins by its entry in EXAMPLES."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.methods import ADVANTAGE, method_class
from rlvr.recipe import Recipe
from tests.unit.conformance import Base, Outcome, learn, make
from tests.unit.test_check import told
from tests.unit.toy import GROUP, TASKS

# kind -> options that make it do all that it can on the toy's groups of 6
EXAMPLES: dict[str, dict[str, Any]] = {
    "dr_grpo": {},
    "grpo": {},
    "lite_ppo": {},
    "magistral": {},
    "max_rl": {},
    "opo": {},
    "otb": {},
    "pass_at_k": {"k": 2},
    "reinforce_plus_plus": {"gamma": 0.9, "kl_coef": 0.1},
    "reinforce_plus_plus_baseline": {},
    "remax": {},
    "rloo": {},
}
KINDS = ADVANTAGE.kinds
WITHOUT_GROUP = {"remax", "reinforce_plus_plus"}


def update(kind: str, **changes: Any) -> Outcome:
    return learn([], base=Base(advantage=(kind, EXAMPLES[kind])), **changes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower, and on a busy machine far slower, with several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_kind_has_an_example() -> None:
    assert sorted(EXAMPLES) == KINDS, "an estimator without an entry in EXAMPLES, or the other way round"


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_documentation(kind: str) -> None:
    cls = method_class(ADVANTAGE, kind, project=Path())
    module = sys.modules[cls.__module__]
    assert cls.__module__ == f"rlvr.advantages.{kind}", "the file's name is the kind"
    assert cls.Config is module.Config
    assert re.search(r"Fidelity: (exact|close|reconstructed)\.", module.__doc__ or "")
    assert cls.Config()  # every option has a default
    with pytest.raises(ValueError, match="misspelt"):
        cls.Config(misspelt=1)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "grpo"])
def test_it_is_active_and_changes_the_loss(kind: str) -> None:
    plain, out = update("grpo"), update(kind)
    assert out.active("advantage") > 0
    assert out.loss != pytest.approx(plain.loss, rel=1e-6)
    assert out.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_split_order_and_padding_do_not_matter(kind: str) -> None:
    whole = update(kind)
    rows = (GROUP + (kind == "remax")) * TASKS
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(5)).tolist()
    for changes in ({"micro": 1}, {"order": shuffled, "micro": 7}, {"micro": 4, "extra": 3, "garbage": nan}):
        other = update(kind, **changes)
        assert other.loss == pytest.approx(whole.loss, rel=1e-6, abs=1e-9)
        torch.testing.assert_close(other.grad, whole.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_groups_and_members_does_not_matter(kind: str) -> None:
    groups = update(kind).groups
    method = make(ADVANTAGE, kind, EXAMPLES[kind])
    plain = method.advantage(groups)
    turned = [g.with_(trajectories=g.trajectories[::-1], rewards=g.rewards[::-1]) for g in groups[::-1]]
    for one, other in zip(plain, method.advantage(turned)[::-1], strict=True):
        for a, b in zip(one.advantages, other.advantages[::-1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_error_and_without_weight_get_nothing(kind: str) -> None:
    groups = update(kind).groups
    for group in groups:
        rows = zip(group.advantages or (), group.trajectories, group.valid, strict=True)
        assert all(not a[(t.weight == 0) | (not ok)].any() and np.isfinite(a).all() for a, t, ok in rows)
    assert not all(groups[0].valid)  # the toy has one


@pytest.mark.parametrize("kind", KINDS)
def test_pickles(kind: str) -> None:
    method = make(ADVANTAGE, kind, EXAMPLES[kind])
    groups = update(kind).groups
    copied = pickle.loads(pickle.dumps(method)).advantage(groups)
    for one, other in zip(method.advantage(groups), copied, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.advantages, other.advantages, strict=True))


# --- what the recipe already says -------------------------------------------------------------------------------------


def problems(kind: str, options: dict[str, Any], **changes: Any) -> str:
    raw = {"model": {"path": "a/b"}, "data": {"train": [{"name": "gsm8k"}]}} | changes
    return " ".join(make(ADVANTAGE, kind, options).problems(Recipe.model_validate(raw)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_is_refused_where_rows_are_compared(kind: str, tmp_path: Path) -> None:
    estimator = {"kind": kind, **({"k": 1} if kind == "pass_at_k" else {})}
    refused = "needs group >= 2, got 1" in " ".join(told(tmp_path, advantage=estimator, group=1, keep="all"))
    assert refused == (kind not in WITHOUT_GROUP)
    assert not told(tmp_path, advantage=estimator, group=2)


def test_pass_at_k_refuses_what_cannot_be_0_or_1() -> None:
    for k in (8, 9):
        assert f"got k = {k} with group: 8, expected k < group" in problems("pass_at_k", {"k": k}, group=8)
    assert not problems("pass_at_k", {"k": 7}, group=8)
    assert "overlong: {kind: shape}" in problems("pass_at_k", {}, overlong={"kind": "shape"})
    assert "kl: {where: reward}" in problems("pass_at_k", {}, kl={"coef": 0.1, "where": "reward"})
    assert not problems("pass_at_k", {}, kl={"coef": 0.1})


def test_one_kl_in_the_reward_is_enough() -> None:
    reward = {"coef": 0.1, "where": "reward"}
    assert "keep one" in problems("reinforce_plus_plus", {"kl_coef": 0.1}, kl=reward)
    assert not problems("reinforce_plus_plus", {}, kl=reward)
    assert not problems("reinforce_plus_plus", {"kl_coef": 0.1}, kl={"coef": 0.1})


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 1.1}, {"kl_coef": -0.1}, {"kl_coef": float("inf")}])
def test_coefficients_outside_their_domain_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        make(ADVANTAGE, "reinforce_plus_plus", options)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError):
        make(ADVANTAGE, "pass_at_k", {"k": 0})
