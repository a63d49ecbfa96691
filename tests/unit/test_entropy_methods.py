"""Entropy control against worked numbers: two responses of three and two tokens (the second's third is padding)."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan, tanh
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvr.explore.adaptive_entropy import AdaptiveEntropy
from rlvr.explore.aer import Aer, difficulty
from rlvr.explore.base import AddOn, Knobs, Update
from rlvr.explore.effective_rank import EffectiveRank, phi, shaped
from rlvr.explore.egsw import Egsw, step_weights
from rlvr.explore.entropy_advantage import EntropyAdvantage
from rlvr.explore.forking_tokens import ForkingTokens
from rlvr.explore.kl_cov import KlCov
from rlvr.explore.lp_reg import LpReg
from rlvr.explore.siren import Siren, _share, peak_tokens
from rlvr.objectives.loss import compose, token_losses
from rlvr.objectives.loss import shaped as shaped_view
from rlvr.objectives.reduce import row_scales, scaled_sum
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL
from rlvr.types import F32, Group, Row, Streams, Trajectory
from tests.unit.conformance import Base, make, stack
from tests.unit.conformance import learn as toy
from tests.unit.test_explore_methods import NEW, OLD, WEIGHTS, f32, group, row

ENTROPY = (f32(0.2, 1.0, 0.6), f32(0.8, 1.5, 0.0))
UNCLIPPED = ("clip", {"low": 1.0, "high": 1e9})


def build(cls: type[AddOn], **options: Any) -> Any:
    return cls(cls.Config(**options))


def update(stats: Streams | None = None, rows: list[Row] | None = None) -> Update:
    rows = rows or [row(0), row(1)]
    given = [{"logp": lp, "entropy": h} for lp, h in zip(NEW, ENTROPY, strict=True)]
    scale = row_scales([float(r.weight.sum()) for r in rows], reduction="token")
    return Update(rows=rows, stats=stats or given, update=0, step=0, seed=1, clip=(0.2, 0.2), scale=scale)


def padded(values: Any) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(v, np.float32) for v in values]))


def loss_of(addon: AddOn, said: Knobs | None, *, objective: tuple[str, dict] = UNCLIPPED, **streams: Any) -> Tensor:
    """Token-mean loss of the two rows under one add-on."""
    zeros = torch.zeros(2, 3)
    view = TokenView(
        logp=padded(NEW), old_logp=padded(OLD), behaviour_logp=padded(OLD), known=zeros + 1, weight=padded(WEIGHTS),
        advantages=padded([[1, 1, 1], [-1, -1, -1]]), streams={k: padded(v) for k, v in streams.items()},
    )  # fmt: skip
    knobs = {addon.name: said.scalars} if said else {}
    marks = {addon.name: padded(said.marks)} if said and said.marks is not None else {}
    base = Base(objective=objective).built([])
    view = shaped_view(view, [addon], knobs=knobs, marks=marks)
    loss, _ = token_losses(view, base.surrogate, base.correction, KL())
    loss = compose(view, loss, [addon], knobs=knobs, marks=marks)
    return scaled_sum(loss, weight=view.weight, scale=torch.full((2,), 0.2))


def marked(said: Knobs | None) -> list[list[float]]:
    assert said is not None and said.marks is not None
    return [m.tolist() for m in said.marks]


# --- KL-Cov ----------------------------------------------------------------------------------------------------------


def test_kl_cov() -> None:
    method = build(KlCov, ratio=0.2)
    said = method.knobs(update())
    assert marked(said) == [[0, 0, 0], [1, 0, 0]] and said.metrics["active"] == 1
    assert float(loss_of(method, None)) == pytest.approx(0.22, abs=1e-6)
    assert float(loss_of(method, said)) == pytest.approx(0.358629, abs=1e-6)  # 0.22 + |log 0.5| / 5
    assert said.metrics["cov_mean"] == pytest.approx(0.250075, abs=1e-6)
    assert sum(map(sum, marked(build(KlCov, ratio=1e-9).knobs(update())))) == 1  # max(floor(.), 1)
    assert marked(build(KlCov, ratio=0.6).knobs(update())) == [[1, 0, 1], [1, 0, 0]]


def test_equal_covariances_are_picked_by_row_not_by_place() -> None:
    same = [replace(row(0), key=k) for k in ("0/0", "0/1", "0/2")]
    stats = [{"logp": f32(-1, -1, -1)} for _ in same]
    method = build(KlCov, ratio=0.4)
    forward = marked(method.knobs(update(stats, same)))
    assert marked(method.knobs(update(stats, same[::-1]))) == forward[::-1]
    assert sum(map(sum, forward)) == 3


# --- entropy-shaped advantage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kappa", "last"), [(2.0, -0.5), (1.0, -0.4)])
def test_entropy_advantage(kappa: float, last: float) -> None:
    method = build(EntropyAdvantage, kappa=kappa)
    blank = torch.zeros(2, 3)
    h = padded(ENTROPY).requires_grad_()
    view = TokenView(blank, blank, blank, blank, padded([[1, 1, 1], [-1, -1, 0]]), blank, streams={"entropy": h})
    shaped = method.token_advantage(view)
    np.testing.assert_allclose(shaped, [[1.08, 1.4, 1.24], [-0.68, last, 0.0]], atol=1e-6)
    assert not shaped.requires_grad
    assert method.token_advantage(replace(view, advantages=view.advantages * 1.0)).equal(shaped)  # nothing piles up
    assert build(EntropyAdvantage, alpha=0.0).token_advantage(view) is view.advantages


# --- EGSW ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "weights"),
    [({"alpha": 0.5}, (0.848772, 0.151228)), ({"alpha": 0.0}, (0.880797, 0.119203)), ({"P": 1e6}, (0.5, 0.5))],
)
def test_egsw_by_trajectory(options: dict, weights: tuple[float, float]) -> None:
    said = build(Egsw, **options).knobs(update())
    expected = [[2 * weights[0]] * 3, [2 * weights[1]] * 2 + [0]]  # 2: the group's size
    np.testing.assert_allclose(marked(said), expected, atol=2e-6)


def test_egsw_by_step_is_over_those_that_have_the_step() -> None:
    w = step_weights([np.array([1.0, 2.0, 9.0]), np.array([1.0, 0.0])])
    np.testing.assert_allclose(w[0], [1.0, 2 / (1 + np.exp(-2)), 1.0])  # the third token is alone
    np.testing.assert_allclose(w[1], [1.0, 2 / (1 + np.exp(2))])


def test_egsw_keeps_groups_apart() -> None:
    said = build(Egsw).knobs(update(rows=[row(0), replace(row(1), group=1)]))
    np.testing.assert_allclose(marked(said), [[1, 1, 1], [1, 1, 0]])
    assert said.metrics["active"] == 0


# --- 80/20 -----------------------------------------------------------------------------------------------------------


def test_forking_tokens() -> None:
    method = build(ForkingTokens, rho=0.2)
    said = method.knobs(update())
    assert marked(said) == [[0, 0, 0], [0, 1, 0]] and said.metrics["entropy_min"] == 1.5
    loss = loss_of(method, said, objective=("clip", {"low": 0.2, "high": 0.28}))
    assert float(loss) == pytest.approx(4.0, abs=1e-6)  # the mean over the kept token
    assert marked(build(ForkingTokens, rho=0.21).knobs(update())) == [[0, 1, 0], [0, 1, 0]]  # ceil
    assert build(ForkingTokens, rho=1.0).knobs(update()) is None


# --- SIREN -----------------------------------------------------------------------------------------------------------


def test_peak_tokens() -> None:
    values = f32(1, 2, 3, 4, 5, 9)
    trained = np.array([1, 1, 1, 1, 1, 0], dtype=bool)
    assert peak_tokens(values, trained, q=0.8).tolist() == [False] * 4 + [True, False]  # the quantile is 4.2
    assert peak_tokens(values, trained, q=0.0).tolist() == trained.tolist()
    assert not peak_tokens(values, trained & False, q=0.5).any()


def test_a_peak_tokens_share_undoes_its_weight_and_the_scale() -> None:
    peak, weight, x = np.array([True, False, True]), f32(2, 1, 0.5), f32(3, 9, 5)
    share = _share(peak, weight, 0.1)
    assert 0.1 * float((weight * share * x).sum()) == pytest.approx(4.0)  # the mean of 3 and 5


def siren_at(anchor: float | None, **options: float) -> Any:
    method = build(Siren, **options)
    method.load_state_dict({"anchor": anchor})
    return method


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_siren_is_the_square_of_the_gap_whatever_the_reduction(reduction: str) -> None:
    """p = 1, q = 0: h is the mean over responses of their mean entropy; value and gradient by finite differences."""
    beta, anchor, step = 0.7, 1.1, 1e-4
    method = siren_at(anchor, p=1.0, q=0.0, beta=beta)

    def with_loss(shift: float, *, mark_from: float) -> tuple[float, Tensor]:
        h = [torch.from_numpy(e + shift * np.array([1, -2, 3], np.float32)) for e in ENTROPY]
        measured = [e + mark_from * np.array([1, -2, 3], np.float32) for e in ENTROPY]
        u = replace(update([{method.stream: e} for e in measured]), scale=row_scales([3, 2], reduction=reduction, constant=7))  # noqa: E501  # fmt: skip
        said = method.knobs(u)
        values = torch.stack(h).requires_grad_()
        view = TokenView(*[torch.zeros(2, 3)] * 6, streams={method.stream: values}, mark=padded(said.marks), knobs=said.scalars)  # noqa: E501  # fmt: skip
        loss = scaled_sum(method.token_loss(view, torch.zeros(2, 3)), weight=padded(WEIGHTS), scale=torch.from_numpy(u.scale))  # noqa: E501  # fmt: skip
        loss.backward()
        return float(loss.detach()), values.grad

    value, grad = with_loss(0.0, mark_from=0.0)
    h0 = ((0.2 + 1.0 + 0.6) / 3 + (0.8 + 1.5) / 2) / 2
    assert value == pytest.approx(beta * (h0 - anchor) ** 2, rel=1e-5)
    up, down = (with_loss(s, mark_from=s)[0] for s in (step, -step))
    direction = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 3.0]])
    assert float((grad * direction).sum()) == pytest.approx((up - down) / (2 * step), rel=2e-2)
    expected = 2 * beta * (h0 - anchor) * torch.tensor([[1 / 6, 1 / 6, 1 / 6], [1 / 4, 1 / 4, 0]])
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


def test_siren_anchors_in_the_first_step_and_rests_at_the_anchor() -> None:
    method = siren_at(None, p=1.0, q=0.0)
    said = method.knobs(update([{method.stream: e} for e in ENTROPY]))
    assert said.marks is None and said.metrics["active"] == 0 and said.metrics["h"] == pytest.approx(0.875)
    assert method.observe([], {}) == {}
    assert method.observe([], {"siren/h": said.metrics["h"]}) == {"anchor": said.metrics["h"]}
    assert method.state_dict() == {"anchor": said.metrics["h"]}
    method.observe([], {"siren/h": 9.0})
    assert method.state_dict() == {"anchor": said.metrics["h"]}
    assert method.knobs(update([{method.stream: e} for e in ENTROPY])).marks is None  # h = h_0


def test_siren_on_the_toy_pulls_towards_its_anchor() -> None:
    """The gradient of the add-on alone points from h to h_0."""
    none = toy([])
    for anchor, sign in ((0.1, 1.0), (3.0, -1.0)):
        (method,) = stack(("siren", {"p": 1.0, "q": 0.0, "beta": 0.5}))
        method.load_state_dict({"anchor": anchor})
        (bonus,) = stack(("entropy_bonus", {"coef": 1.0}))
        pull = toy([method]).grad - none.grad
        up = none.grad - toy([bonus], reduction="sequence").grad + toy([], reduction="sequence").grad - none.grad
        assert sign * float((pull * up).sum()) > 0


# --- adaptive entropy, AER -------------------------------------------------------------------------------------------


def with_entropy(groups: list[Group], value: float) -> list[Group]:
    def one(t: Trajectory) -> Trajectory:
        return replace(t, streams={"entropy": np.where(t.weight != 0, value, 0.0).astype(np.float32)})

    return [g.with_(trajectories=tuple(map(one, g.trajectories))) for g in groups]


def test_adaptive_entropy_moves_by_delta_within_its_bounds() -> None:
    method = build(AdaptiveEntropy, target=0.2, delta=0.005, max=0.012)
    seen = []
    for entropy in (0.1, 0.1, 0.1, 0.3, 0.2, 0.3, 0.3):
        method.observe(with_entropy([group([3, 4], [1, 0])], entropy), {})
        seen.append(method.coef)
    assert seen == pytest.approx([0.005, 0.01, 0.012, 0.007, 0.002, 0.0, 0.0])
    at = build(AdaptiveEntropy, target=0.25, delta=0.005, initial=0.01)
    at.observe(with_entropy([group([3, 4], [1, 0])], 0.25), {})
    assert at.coef == 0.005  # at the target it falls
    method.observe(with_entropy([group([3], [None])], 0.1), {})  # no verdict: nothing is learned from it
    assert method.coef == 0.0


@pytest.mark.parametrize(("entropy", "coef"), [(0.24, 0.03), (0.25, 0.03), (0.26, 0.0)])
def test_adaptive_entropy_is_on_up_to_the_target(entropy: float, coef: float) -> None:
    method = build(AdaptiveEntropy, initial=0.03, target=0.25)
    rows = [replace(row(i), streams={"entropy": np.full(3, entropy, np.float32)}) for i in (0, 1)]
    said = method.knobs(update(rows=rows))
    assert said.scalars["coef"] == coef and said.metrics["active"] == (5 if coef else 0)


def test_aer() -> None:
    method = build(Aer, tau=0.5, eta=0.1, alpha=0.02, alpha_max=0.03)
    groups = with_entropy([group([3, 4], [1, 0])], 2.0)
    method.observe(groups, {})  # H_0 = 2, H* = 1, H above it
    assert method.initial == 2.0 and method.alpha == 0.0
    method.observe(with_entropy(groups, 1.0), {})
    assert method.alpha == 0.0  # H = H*: nothing changes
    method.observe(with_entropy(groups, 0.8), {})
    assert method.alpha == pytest.approx(0.02)
    method.observe(with_entropy(groups, 0.5), {})
    assert method.alpha == 0.03
    assert [difficulty(group([2] * 4, s), rho=0.5) for s in ([0] * 4, [1, 0, 0, 0], [1, 1, 0, 0], [1] * 4)] == [1, 0.5, 0, 0]  # noqa: E501  # fmt: skip
    assert difficulty(group([2, 2, 2], [None, 0, 1]), rho=1.0) == 0.5 and difficulty(group([2], [None]), rho=1.0) == 0


# --- effective rank --------------------------------------------------------------------------------------------------


def test_phi_by_hand() -> None:
    means = (10.0, 2.0, -1.0)
    assert phi(f32(12, 3, -1), means, k=2.0, coef=1.0) == pytest.approx(0.5 * tanh(0.5) + 0.5 * tanh(0.2))  # g = 1/2
    g = 1 / (1 + np.exp(-2 * 5))  # era far above its mean: clipped at 5
    assert phi(f32(12, 3, 90), means, k=2.0, coef=3.0) == pytest.approx(3 * ((1 - g) * tanh(0.5) + g * tanh(0.2)))
    assert phi(f32(nan, 3, 0), means, k=2.0, coef=1.0) == 0.0


def test_effective_rank_shapes() -> None:
    a = f32(1, -1, 0.1, 0)
    np.testing.assert_allclose(shaped(a, 0.3, kappa=2.0), [1.3, -0.7, 0.15, 0.0], atol=1e-7)
    assert shaped(a, -0.5, kappa=2.0).tolist() == shaped(a, 9.0, kappa=1e30).tolist() == a.tolist()


def test_effective_rank_averages() -> None:
    method = build(EffectiveRank, coef=1.0, ema=0.3)
    base = group([3, 4], [1, 0]).with_(advantages=(f32(1, 1, 1), f32(-1, -1, -1)))

    def ranked(*ranks: F32) -> Group:
        rows = zip(base.trajectories, ranks, strict=True)
        return base.with_(trajectories=tuple(replace(t, streams={method.stream: r}) for t, r in rows))

    first = ranked(f32(2, 0, 0), f32(4, 2, 0))
    assert method.advantage([first])[0] is first  # no averages yet
    assert method.observe([first], {})["active"] == 0
    assert method.means == pytest.approx((3.0, 1.0, 0.0))
    second = ranked(f32(8, 1, 0), f32(nan, 1, 0))
    high = method.advantage([second])[0].advantages
    np.testing.assert_allclose(high[0], np.full(3, 1 + 0.5 * tanh(5 / 3)), atol=1e-6)
    assert high[1].tolist() == [-1, -1, -1]
    said = method.observe([second], {})
    assert said["active"] == 3 and said["nonfinite_rows"] == 1
    greedy = replace(second.trajectories[0], weight=np.zeros_like(second.trajectories[0].weight))
    other = build(EffectiveRank, coef=1.0, ema=0.3)
    other.observe([second.with_(trajectories=(greedy, first.trajectories[1]))], {})
    assert other.means == pytest.approx((4.0, 2.0, 0.0))  # a row that is not trained on has no ranks
    assert method.means == pytest.approx((0.7 * 3 + 0.3 * 8, 1.0, 0.0))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adaptive_entropy", {"delta": -1}), ("adaptive_entropy", {"initial": 2.0}), ("aer", {"tau": 0}),
        ("aer", {"rho": 1.1}), ("aer", {"alpha": 0.5}), ("siren", {"p": 0}), ("siren", {"p": 1.1}),
        ("siren", {"q": 1.0}), ("siren", {"beta": -1}), ("entropy_advantage", {"kappa": 0.5}), ("egsw", {"P": 0}),
        ("egsw", {"level": "token"}), ("kl_cov", {"ratio": 1.5}), ("kl_cov", {"beta": -1}), ("lp_reg", {"kappa": 0}),
        ("lp_reg", {"rho": -0.1}), ("forking_tokens", {"rho": 0}), ("effective_rank", {"stride": 0}),
        ("effective_rank", {"ema": 0}), ("effective_rank", {"kappa": 0.9}),
    ],
)  # fmt: skip
def test_coefficients_outside_their_domain_are_refused(kind: str, options: dict) -> None:
    from rlvr.methods import EXPLORE

    with pytest.raises(ValueError):
        make(EXPLORE, kind, options)


SELECTORS = [
    build(KlCov, ratio=1.0), build(LpReg, rho=1.0), build(ForkingTokens, rho=0.99), build(Egsw),
    build(Egsw, level="step"), siren_at(0.3, q=0.0), build(AdaptiveEntropy, initial=0.1, target=9.0),
]  # fmt: skip


@pytest.mark.parametrize("method", SELECTORS, ids=lambda m: m.kind)
@pytest.mark.parametrize("bad", [nan, -inf])
def test_what_is_not_finite_is_left_out_and_masked_rows_are_fine(method: Any, bad: float) -> None:
    names = {"logp", "entropy", "max_prob"} | method.measures | (method.needs - {"old_logp"})
    values = {name: f32(0.4, bad, 0.3) for name in names} | {"max_prob": f32(0.9, 0.9, 0.9)}
    streams = {"old_logp": OLD[0], **values}
    rows = [replace(row(0), advantages=f32(-1, -1, -1), streams=streams), replace(row(0), key="0/9", streams=streams)]
    rows[1] = replace(rows[1], weight=np.zeros(3, np.float32))
    said = method.knobs(update([values, values], rows))
    for mark in (said.marks if said else None) or []:
        assert np.isfinite(mark).all()
    if said and said.marks is not None:
        assert said.marks[0][1] == 0 and not said.marks[1].any()
    assert all(np.isfinite(v) for v in said.metrics.values())
    nothing = method.knobs(update([values], rows[1:]))
    assert nothing is None or nothing.metrics["active"] == 0


def test_shaping_does_not_hide_what_is_not_finite() -> None:
    """A NaN log-prob is still counted after the advantages went through an add-on."""
    blank, one = torch.zeros(1, 2), torch.ones(1, 2)
    logp = torch.tensor([[nan, -1.0]], requires_grad=True)
    view = TokenView(logp, blank - 1, blank - 1, one, torch.tensor([[1.0, nan]]), one, streams={"entropy": one})
    view = shaped_view(view, [build(EntropyAdvantage)], knobs={}, marks={})
    base = Base().built([])
    loss, metrics = token_losses(view, base.surrogate, base.correction, KL())
    assert metrics["nonfinite_tokens"].tolist() == [[1, 1]] and loss.tolist() == [[0, 0]]
