"""Objectives against hand-worked numbers: two rows of three tokens, the second one token shorter."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch

from rlvr.methods import build_objective
from rlvr.objectives.entropy import entropy
from rlvr.objectives.importance import mismatch
from rlvr.objectives.kl import KL_IN_LOSS, kl_penalty
from rlvr.objectives.loss import compose, guard, means, sums
from rlvr.objectives.loss import token_losses as _token_losses
from rlvr.objectives.ratio import clip_loss, log_ratio
from rlvr.objectives.reduce import row_scales, scaled_sum
from rlvr.objectives.schedule import learning_rate
from rlvr.objectives.shaping import overlong_penalty
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL, Correction, Objective

OLD = [[0.5, 0.2, 0.8], [0.4, 0.1, 1.0]]
NEW = [[0.75, 0.18, 0.8], [0.2, 0.4, 1.0]]
ROLLOUT = [[0.5, 0.05, 0.8], [0.5, 0.4, 1.0]]
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
A = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
PLAIN = Objective(correction=Correction(kind="none"))


def token_losses(view: TokenView, objective: Objective, kl: KL) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return _token_losses(view, *build_objective(objective, seed=0, project=Path()), kl)


def logs(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def f1(**changes: torch.Tensor) -> TokenView:
    old = logs(OLD)
    fields = {"logp": logs(NEW), "old_logp": old, "behaviour_logp": old, "known": MASK, "advantages": A, "weight": MASK}
    return TokenView(**(fields | changes))


def total(loss: torch.Tensor, view: TokenView, reduction: str = "token", constant: int | None = None) -> torch.Tensor:
    scale = row_scales(view.weight.sum(1).numpy(), reduction=reduction, constant=constant)
    return scaled_sum(loss, weight=view.weight, scale=torch.from_numpy(scale))


def close(got: torch.Tensor | float, expected: object, tol: float = 1e-6) -> None:
    torch.testing.assert_close(torch.as_tensor(got).double(), torch.tensor(expected).double(), atol=tol, rtol=0)


# --- reductions and surrogates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "constant", "expected"),
    [("token", None, 0.34), ("sequence", None, 0.683333), ("constant", 3, 0.283333), ("sum", None, 0.85)],
)
def test_reductions_of_the_ppo_loss(reduction: str, constant: int | None, expected: float) -> None:
    view = f1()
    loss, _ = token_losses(view, PLAIN, KL())
    close(loss, [[-1.2, -0.9, -1.0], [0.8, 4.0, 0.0]])
    close(total(loss, view, reduction, constant), expected)


@pytest.mark.parametrize(
    ("reduction", "constant"), [("token", None), ("sequence", None), ("constant", 7), ("sum", None)]
)
def test_fully_masked_rows_change_no_scale(reduction: str, constant: int | None) -> None:
    plain = row_scales([3, 2], reduction=reduction, constant=constant)
    padded = row_scales([0, 3, 0, 2], reduction=reduction, constant=constant)
    assert padded.dtype == np.float32
    assert padded.tolist() == [0.0, plain[0], 0.0, plain[1]]
    assert row_scales([0, 0], reduction=reduction, constant=constant).tolist() == [0.0, 0.0]


def test_constant_reduction_needs_its_constant() -> None:
    with pytest.raises(ValueError, match="constant=None"):
        row_scales([1], reduction="constant")


@pytest.mark.parametrize(
    ("low", "high", "dual", "losses", "mean"),
    [
        (0.2, 0.28, None, [[-1.28, -0.9, -1.0], [0.8, 4.0, 0.0]], 0.324),
        (0.2, 0.2, 3.0, [[-1.2, -0.9, -1.0], [0.8, 3.0, 0.0]], 0.14),
    ],
)
def test_clip_higher_and_dual_clip(low: float, high: float, dual: float | None, losses: list, mean: float) -> None:
    view = f1()
    loss, _ = token_losses(view, Objective(low=low, high=high, dual=dual, correction=PLAIN.correction), KL())
    close(loss, losses)
    close(total(loss, view), mean)


def test_infinite_dual_bound_is_ppo_bit_for_bit() -> None:
    args = (log_ratio(logs(NEW), logs(OLD)).exp(), A)
    assert torch.equal(
        clip_loss(*args, low=0.2, high=0.2, dual=inf).loss, clip_loss(*args, low=0.2, high=0.2, dual=None).loss
    )


def test_dual_clip_never_touches_positive_advantages_and_stops_the_gradient_where_it_binds() -> None:
    logp = logs(NEW).requires_grad_()
    out = clip_loss(log_ratio(logp, logs(OLD)).exp(), A, low=0.2, high=0.2, dual=3.0)
    out.loss.sum().backward()
    close(out.dual, [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # r 1.5 is above 1.2 and r .5 below .8: no gradient; else -A r
    close(logp.grad, [[0.0, -0.9, -1.0], [0.0, 0.0, 1.0]])
    positive = clip_loss(log_ratio(logp, logs(OLD)).exp(), A.abs(), low=0.2, high=9.0, dual=1.01)
    assert not positive.dual.any()


def test_log_ratio_is_clamped() -> None:
    close(log_ratio(torch.tensor([[0.0, -1000.0]]), torch.tensor([[-1000.0, 0.0]])), [[20.0, -20.0]])


@pytest.mark.parametrize("dual", [None, 3.0])
def test_on_policy_gradient_is_reinforce(dual: float | None) -> None:
    logp = logs(OLD).requires_grad_()
    view = f1(logp=logp)
    loss, _ = token_losses(view, Objective(dual=dual, correction=PLAIN.correction), KL())
    total(loss, view).backward()
    close(logp.grad, (-A * MASK / 5).tolist())


def test_clip_metrics() -> None:
    view = f1()
    loss, metrics = token_losses(view, Objective(dual=3.0, correction=PLAIN.correction), KL())
    report = means({name: float(value) for name, value in sums(metrics, view.mask).items()})
    assert report["tokens"] == 5
    assert report["clip_low"] == pytest.approx(1 / 5)
    assert report["clip_high"] == pytest.approx(1 / 5)
    assert report["clip_dual"] == pytest.approx(1 / 5)
    assert report["ratio"] == pytest.approx((1.5 + 0.9 + 1.0 + 0.5 + 4.0) / 5)
    assert report["ratio_max"] == pytest.approx(4.0)
    # k3 of old against new: r - 1 - log r
    ratios = np.array([1.5, 0.9, 1.0, 0.5, 4.0])
    assert report["approx_kl"] == pytest.approx(float((ratios - 1 - np.log(ratios)).mean()))
    assert report["nonfinite_tokens"] == 0
    assert not any(value.requires_grad for value in metrics.values())
    assert loss.shape == (2, 3)


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_values() -> None:
    logp, ref = logs([[0.75, 0.18, 0.8]]), logs([[0.6, 0.3, 0.5]])
    close(kl_penalty(logp, ref, estimator="k1"), [[0.223144, -0.510826, 0.470004]])
    close(kl_penalty(logp, ref, estimator="k2"), [[0.024897, 0.130471, 0.110452]])
    close(kl_penalty(logp, ref, estimator="k3"), [[0.023144, 0.155841, 0.095004]])
    assert kl_penalty(torch.tensor(-500.0), torch.tensor(0.0), estimator="k3").isfinite()


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [("k1", 0.192745, 0.0), ("k2", 0.172320, 0.221807), ("k3", 0.192745, 0.300000)],
)
def test_expected_value_and_gradient_on_two_actions(estimator: str, value: float, gradient: float) -> None:
    """q = (.8, .2), ref = (.5, .5): d KL(q||ref)/dz = .221807 (k2), d KL(ref||q)/dz = .3 (k3), 0 for k1."""
    z = torch.tensor([np.log(4.0), 0.0], dtype=torch.float64, requires_grad=True)
    logp = z.log_softmax(0)
    tokens = kl_penalty(logp, torch.tensor([0.5, 0.5]).double().log(), estimator=estimator)
    q = logp.detach().exp()
    close((q * tokens).sum().detach(), value)
    (q * tokens).sum().backward()  # the samples' distribution is fixed: only the estimator is differentiated
    close(z.grad[0], gradient)


def test_kl_in_the_loss_is_added_after_the_correction() -> None:
    ref = logs([[0.6, 0.3, 0.5], [0.4, 0.4, 1.0]])
    view = f1(ref_logp=ref, behaviour_logp=logs(ROLLOUT))
    bare, _ = token_losses(view, Objective(), KL())
    loss, metrics = token_losses(view, Objective(), KL(coef=0.5, estimator="k3"))
    close(loss - bare, (0.5 * kl_penalty(logs(NEW), ref, estimator="k3") * MASK).tolist())
    close(metrics["ref_kl"] * MASK, (kl_penalty(logs(NEW), ref, estimator="k3") * MASK).tolist())
    in_reward, _ = token_losses(view, Objective(), KL(coef=0.5, where="reward"))
    assert torch.equal(in_reward, bare)


def test_kl_in_the_loss_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="ref_logp"):
        token_losses(f1(), PLAIN, KL(coef=0.1))
    with pytest.raises(ValueError, match="k1"):
        token_losses(f1(ref_logp=logs(OLD)), PLAIN, KL(coef=0.1, estimator="k1"))
    assert {"k2", "k3"} == KL_IN_LOSS


# --- correction ------------------------------------------------------------------------------------------------------


def test_truncated_importance_sampling() -> None:
    view = f1(behaviour_logp=logs(ROLLOUT))
    close(mismatch(view).exp() * MASK, [[1.0, 4.0, 1.0], [0.8, 0.25, 0.0]])
    loss, metrics = token_losses(view, Objective(), KL())
    close(loss, [[-1.2, -1.8, -1.0], [0.64, 1.0, 0.0]])
    close(total(loss, view), -0.472)
    report = means({name: float(value) for name, value in sums(metrics, view.mask).items()})
    assert report["correction"] == pytest.approx((1 + 2 + 1 + 0.8 + 0.25) / 5)
    assert report["correction_truncated"] == pytest.approx(1 / 5)


def test_correction_is_identity_where_sampler_and_trainer_agree_or_nothing_is_known() -> None:
    bare, _ = token_losses(f1(), PLAIN, KL())
    agreeing, _ = token_losses(f1(), Objective(), KL())
    unknown, _ = token_losses(f1(behaviour_logp=logs(ROLLOUT), known=torch.zeros(2, 3)), Objective(), KL())
    assert torch.equal(agreeing, bare)
    assert torch.equal(unknown, bare)


def test_no_gradient_through_detached_inputs() -> None:
    names = ("old_logp", "behaviour_logp", "advantages", "ref_logp")
    values = (logs(OLD), logs(ROLLOUT), A.clone(), logs(OLD))
    inputs = {name: value.clone().requires_grad_() for name, value in zip(names, values, strict=True)}
    logp = logs(NEW).requires_grad_()
    loss, _ = token_losses(f1(logp=logp, **inputs), Objective(), KL(coef=0.1))
    loss.sum().backward()
    assert logp.grad is not None and bool(logp.grad.any())
    assert all(value.grad is None for value in inputs.values())


# --- invariances and guards ------------------------------------------------------------------------------------------


def rows_of(view: TokenView, index: list[int], width: int, garbage: float) -> TokenView:
    """The rows `index`, padded to `width` with garbage where the weight is 0."""

    def cut(value: torch.Tensor, fill: float) -> torch.Tensor:
        out = torch.nn.functional.pad(value[index], (0, width - value.shape[1]), value=fill)
        mask = torch.nn.functional.pad(view.weight[index], (0, width - value.shape[1]))
        return torch.where(mask != 0, out, torch.full_like(out, fill))

    tensors = {n: cut(v, garbage) for n, v in vars(view).items() if isinstance(v, torch.Tensor) and n != "weight"}
    return replace(view, **tensors, weight=cut(view.weight, 0.0))


@pytest.mark.parametrize("garbage", [0.0, 77.0, -1e30, inf, nan])
@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_split_order_and_padding_do_not_matter(reduction: str, garbage: float) -> None:
    def view(logp: torch.Tensor) -> TokenView:
        return f1(logp=logp, behaviour_logp=logs(ROLLOUT), ref_logp=logs(OLD))

    scale = torch.from_numpy(row_scales([3, 2], reduction=reduction, constant=5))
    results = []
    for split in ([[0, 1]], [[0], [1]], [[1], [0]], [[1, 0]]):
        logp = logs(NEW).requires_grad_()
        value = torch.zeros(())
        for index in split:
            part = rows_of(view(logp), index, 3 + len(split), garbage)
            loss, _ = token_losses(part, Objective(), KL(coef=0.1))
            value = value + scaled_sum(loss, weight=part.weight, scale=scale[index])
        value.backward()
        results.append((float(value.detach()), logp.grad))
    for value, grad in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-6)
        close(grad, results[0][1].tolist(), tol=1e-7)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("where", ["logp", "old_logp", "behaviour_logp", "advantages", "ref_logp"])
def test_a_value_that_is_not_finite_is_left_out_and_counted(where: str, bad: float) -> None:
    base = {"logp": logs(NEW), "old_logp": logs(OLD), "behaviour_logp": logs(OLD), "advantages": A.clone()}
    base["ref_logp"] = logs(OLD)
    base[where][0, 1] = bad
    base["logp"].requires_grad_()
    view = f1(**base)
    loss, metrics = token_losses(view, Objective(), KL(coef=0.1))
    value = total(loss, view)
    value.backward()
    assert value.isfinite() and base["logp"].grad.isfinite().all()
    assert base["logp"].grad[0, 1] == 0
    assert base["logp"].grad[0, 2] != 0
    report = means({name: float(v) for name, v in sums(metrics, view.mask).items()})
    assert report["nonfinite_tokens"] == 1
    assert report["tokens"] == 5
    assert all(np.isfinite(v) for v in report.values())


def test_guard_covers_streams_and_addons_get_finite_values_their_knobs_and_marks() -> None:
    class Probe:
        def __init__(self, name: str, factor: float) -> None:
            self.name, self.factor = name, factor

        def token_loss(self, view: TokenView, loss: torch.Tensor) -> torch.Tensor:
            assert view.streams["entropy"].isfinite().all()
            assert view.knobs == ({"x": 1.0} if self.name == "a" else {})
            assert (view.mark is None) == (self.name != "b")
            return loss * self.factor + view.streams["entropy"]

    view = f1(streams={"entropy": torch.tensor([[1.0, nan, 2.0], [3.0, 4.0, inf]])})
    assert guard(view).weight.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    probes = [Probe("a", 2.0), Probe("b", 3.0)]
    out = compose(view, torch.ones(2, 3), probes, knobs={"a": {"x": 1.0}}, marks={"b": MASK})
    close(out, [[10.0, 0.0, 14.0], [18.0, 22.0, 0.0]])  # (1*2 + h)*3 + h: in order
    assert compose(view, torch.ones(2, 3), [], knobs={}, marks={}).tolist() == guard(view).weight.tolist()


def test_totals_merge_by_sum_and_maximum() -> None:
    view = f1()
    _, metrics = token_losses(view, Objective(), KL())
    whole = sums(metrics, view.mask)
    parts = []
    for index in ([0], [1]):
        part = rows_of(view, index, 3, 0.0)
        parts.append(sums(token_losses(part, Objective(), KL())[1], part.mask))
    for name, value in whole.items():
        merged = max(p[name] for p in parts) if name.endswith("_max") else sum(p[name] for p in parts)
        assert float(merged) == pytest.approx(float(value), abs=1e-6), name


# --- shaping, schedule, entropy --------------------------------------------------------------------------------------


def test_overlong_penalty() -> None:
    def at(length: int, factor: float = 1.0) -> float:
        return overlong_penalty(length, max_len=20480, buffer=4096, factor=factor)

    assert [at(n) for n in (0, 16384, 18432, 20480, 40000)] == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert at(18432, factor=0.5) == -0.25
    assert at(20480, factor=0.0) == 0.0


def test_learning_rates() -> None:
    def rates(schedule: str, warmup: int = 0, total: int = 4) -> list[float]:
        return [learning_rate(u, lr=1.0, schedule=schedule, warmup=warmup, total=total) for u in range(total + 2)]

    assert rates("constant") == [1.0] * 6
    assert rates("constant", warmup=2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert rates("linear", warmup=2) == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert rates("cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 37, 600])
def test_one_cycle_is_torchs(total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=max(total, 4))
    for update in range(max(total, 4)):
        ours = learning_rate(update, lr=0.5, schedule="one_cycle", warmup=0, total=max(total, 4))
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        if update + 1 < max(total, 4):
            theirs.step()
    rates = [learning_rate(u, lr=1.0, schedule="one_cycle", warmup=0, total=total) for u in range(total + 1)]
    assert all(0 < rate <= 1 for rate in rates)


def test_one_cycle_peaks_at_the_end_of_its_warmup() -> None:
    rates = [learning_rate(u, lr=1.0, schedule="one_cycle", warmup=5, total=50) for u in range(50)]
    assert int(np.argmax(rates)) == 4
    assert rates[0] == pytest.approx(1 / 25)


def test_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -inf, -inf]], requires_grad=True)
    h = entropy(logits.log_softmax(-1))
    close(h.detach(), [np.log(4), np.log(2)])
    h.sum().backward()
    assert logits.grad.isfinite().all()
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    close(entropy(probabilities.log()), 1.207974)
    assert torch.autograd.gradcheck(entropy, torch.tensor([[0.3, -1.2, -0.1]], dtype=torch.float64, requires_grad=True))
