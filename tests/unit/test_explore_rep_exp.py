"""RepExp: leverages of 2510.11686 by hand, their invariances, the gate, and the projection of the pooled state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlvr.explore.rep_exp import RepExp, elliptical
from rlvr.objectives.pooling import pooled_state
from rlvr.types import Group
from tests.unit.rows import make_group

X = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])


def test_leverages_of_the_specification() -> None:
    h = elliptical(X, lam=0.01)
    np.testing.assert_allclose(h, [0.125 / 1.51] * 3 + [1.125 / 1.51], atol=1e-9)
    assert h.sum() == pytest.approx(0.993377, abs=1e-6)
    np.testing.assert_allclose(elliptical(X, lam=0.01, form="leave_one_out"), h / (1 - h), atol=1e-9)
    assert elliptical(X, lam=0.01, form="leave_one_out")[3] == pytest.approx(2.9221, abs=5e-5)
    assert not elliptical(np.ones((4, 2)), lam=0.01).any()


def test_leverage_knows_no_order_no_rotation_and_no_shift() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    h, order = elliptical(x, lam=0.1), rng.permutation(6)
    np.testing.assert_allclose(elliptical(x[order], lam=0.1), h[order], atol=1e-9)
    np.testing.assert_allclose(elliptical(x @ turn + 3.0, lam=0.1), h, atol=1e-9)
    assert (h >= 0).all() and (h < 1).all()
    # the definition, with and without the row itself
    c = x - x.mean(axis=0)
    direct = [v @ np.linalg.inv(0.1 * np.eye(4) + c.T @ c) @ v for v in c]
    np.testing.assert_allclose(h, direct, atol=1e-9)
    alone = [v @ np.linalg.inv(0.1 * np.eye(4) + c.T @ c - np.outer(v, v)) @ v for v in c]
    np.testing.assert_allclose(elliptical(x, lam=0.1, form="leave_one_out"), alone, atol=1e-9)


def test_a_state_that_is_not_finite_has_no_part() -> None:
    broken = np.array([[np.nan, 0.0], [np.inf, 1.0]])
    h = elliptical(np.concatenate([X, broken]), lam=0.01)
    np.testing.assert_allclose(h, [*elliptical(X, lam=0.01), 0, 0], atol=1e-12)
    assert not elliptical(broken, lam=0.01).any()


def represented(method: RepExp, scores: list[float], errors: list[str | None] | None = None) -> Group:
    group = make_group(0, scores=scores, errors=errors)
    states = [*X.astype(np.float32), np.full(2, 99, np.float32)]
    rows = zip(group.trajectories, states, strict=False)
    return group.with_(trajectories=tuple(replace(t, streams={method.stream: s}) for t, s in rows))


def test_groups_without_a_right_answer_are_not_paid() -> None:
    method = RepExp(RepExp.Config(coef=0.5, d=2))
    paid = represented(method, [1, 0, 0, 0, 1], [None] * 4 + ["timeout"])  # the error row is nobody's sibling
    rewards = method.reward([paid])[0].rewards
    np.testing.assert_allclose(rewards, [1 + 0.0413907, 0.0413907, 0.0413907, 0.3725166, np.nan], atol=1e-6)
    wrong = represented(method, [0, 0, 0, 0])
    np.testing.assert_array_equal(method.reward([wrong])[0].rewards, np.zeros(4))
    said = method.observe([paid, wrong], {})
    assert (said["active"], said["gated"]) == (4, 1)


def test_the_projection_keeps_inner_products_and_is_the_same_everywhere() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 64, generator=rng)
    assert torch.equal(pooled_state(hidden, d=8), pooled_state(hidden, d=8))
    assert not pooled_state(hidden[:0], d=8).any()
    wide = pooled_state(hidden, d=20_000)
    assert float(wide.square().sum()) == pytest.approx(float(hidden.mean(dim=0).square().sum()), rel=0.05)
