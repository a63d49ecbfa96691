"""Lp-Reg: the penalty's numbers, and which tokens it is for."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch

from rlvr.explore.lp_reg import LpReg
from rlvr.objectives.view import TokenView
from rlvr.types import F32, Row
from tests.unit.test_entropy_methods import build, marked, update
from tests.unit.test_explore_methods import f32, row


def lp_row(old: F32, **streams: F32) -> Row:
    return replace(row(0), advantages=f32(-1, -1, -1), streams={"old_logp": old, **streams})


def test_lp_reg_numbers() -> None:
    """pi = .04 under a proxy of .05/.95: penalty .041353, slope -.315789."""
    method = build(LpReg, rho=1.0)
    logp = torch.tensor([[log(0.04)]], requires_grad=True)
    blank, one = torch.zeros(1, 1), torch.ones(1, 1)
    streams = {method.kept: torch.tensor([[log(0.95)]])}
    view = TokenView(logp, torch.tensor([[log(0.05)]]), blank, one, -one, one, streams=streams, mark=one)
    loss = method.token_loss(view, blank)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(0.041353, abs=1e-6)
    assert float(logp.grad) == pytest.approx(-0.315789, abs=1e-6)
    far = replace(view, logp=torch.tensor([[-500.0]], requires_grad=True))  # e^497 is no float
    loss = method.token_loss(far, blank)
    loss.sum().backward()
    assert loss.isfinite().all() and far.logp.grad is not None and far.logp.grad.isfinite().all()
    h = 1e-3
    ends = [float(method.token_loss(replace(view, logp=logp.detach() + s * h), blank)) for s in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(-0.315789, abs=1e-3)


def test_lp_reg_selection() -> None:
    method = build(LpReg, kappa=0.1, rho=1.0)
    kept = {"max_prob": f32(0.6, 0.6, 0.6), method.kept: np.log(f32(0.9, 0.9, 0.9))}
    rows = [lp_row(np.log(f32(0.3, 0.06, 0.05)), **kept)]  # the third is below 0.1 * 0.6: no sensible token
    assert marked(method.knobs(update([{"logp": np.log(f32(0.3, 0.06, 0.05))}], rows))) == [[1, 1, 0]]
    now = np.log(f32(0.4, 0.06, 0.05))  # the first is above its proxy of 1/3 already
    said = method.knobs(update([{"logp": now}], rows))
    assert marked(said) == [[0, 1, 0]] and said.metrics["candidates"] == 3
    positive = [replace(rows[0], advantages=f32(1, 1, 1))]
    assert marked(method.knobs(update([{"logp": now}], positive))) == [[0, 0, 0]]
    few = build(LpReg, kappa=0.1, rho=0.5).knobs(update([{"logp": now}], rows))
    assert few.metrics["candidates"] == 2 and marked(few) == [[0, 1, 0]]  # the lowest 2 of 3
    few = build(LpReg, kappa=0.1, rho=0.3).knobs(update([{"logp": np.log(f32(0.3, 0.06, 0.4))}], rows))
    assert marked(few) == [[0, 1, 0]]  # the lowest, not the highest
    for off in ({"rho": 0.0}, {"beta": 0.0}):
        assert build(LpReg, **off).knobs(update([{"logp": now}], rows)) is None


def test_lp_reg_keeps_a_token_at_the_threshold_of_min_p_whichever_way_it_is_rounded() -> None:
    """.0175 is .05 of .35, but its log in float32 is below log .05 + log .35."""
    method = build(LpReg, kappa=0.05, rho=1.0)
    old = np.log(f32(0.0175, 0.0175, 0.0174))
    rows = [lp_row(old, max_prob=f32(0.35, 0.35, 0.35), **{method.kept: np.log(f32(0.9, 0.9, 0.9))})]
    assert marked(method.knobs(update([{"logp": old}], rows))) == [[1, 1, 0]]


def test_lp_reg_leaves_alone_what_is_not_punished_or_not_below_its_proxy() -> None:
    """An advantage of 0 is none; where min-p drops nothing the proxy is the old policy, and a token at it not below."""
    method = build(LpReg, kappa=0.1, rho=1.0)
    streams = {"max_prob": f32(0.6, 0.6, 0.6), method.kept: f32(0, 0, 0)}
    rows = [replace(lp_row(np.log(f32(0.3, 0.3, 0.3)), **streams), advantages=f32(0, 0.5, -1))]
    now = np.log(f32(0.2, 0.2, 0.2))
    assert marked(method.knobs(update([{"logp": now}], rows))) == [[0, 0, 1]]
    same = method.knobs(update([{"logp": rows[0].streams["old_logp"]}], rows))
    assert marked(same) == [[0, 0, 0]] and same.metrics["candidates"] == 1
