"""KL terms on two actions: q = (.8, .2), ref = (.5, .5); d KL(q||ref)/dz = .221807, d KL(ref||q)/dz = .3."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlvr.objectives.kl import KL_CORRECTED, KL_IN_LOSS, corrected_kl, kl_penalty, straight_through
from rlvr.objectives.loss import token_losses
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL

REF = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
OLD = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
Q = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
Term = Callable[[torch.Tensor], torch.Tensor]  # log q [2] -> the loss of each action [2]


def over(samples: torch.Tensor, term: Term, z: float = float(np.log(4.0))) -> tuple[float, float]:
    """Value and gradient, with respect to the logit of action 0, of E_samples[term]."""
    logits = torch.tensor([z, 0.0], dtype=torch.float64, requires_grad=True)
    value = (samples.exp() * term(logits.log_softmax(0))).sum()
    value.backward()
    assert logits.grad is not None
    return float(value.detach()), float(logits.grad[0])


def policy(z: float) -> torch.Tensor:
    return torch.tensor([z, 0.0], dtype=torch.float64).log_softmax(0)


def true_kl(z: float) -> float:
    return float((policy(z).exp() * (policy(z) - REF)).sum())


def finite_difference(f: Callable[[float], float], at: float = float(np.log(4.0)), h: float = 1e-5) -> float:
    return (f(at + h) - f(at - h)) / (2 * h)


def test_the_facts_of_the_plain_estimators() -> None:
    found = {k: over(Q, lambda logp, k=k: kl_penalty(logp, REF, estimator=k)) for k in ("k1", "k2", "k3")}
    assert found["k1"] == pytest.approx((0.192745, 0.0), abs=1e-6)
    assert found["k2"] == pytest.approx((0.172320, 0.221807), abs=1e-6)
    assert found["k3"] == pytest.approx((0.192745, 0.300000), abs=1e-6)
    assert finite_difference(true_kl) == pytest.approx(0.221807, abs=1e-6)
    forward = finite_difference(lambda z: float((REF.exp() * (REF - policy(z))).sum()))
    assert forward == pytest.approx(0.3, abs=1e-6)
    assert frozenset({"k2", "k3"}) == KL_IN_LOSS


@pytest.mark.parametrize(("value", "expected"), [("k1", 0.192745), ("k3", 0.192745), ("k2", 0.172320)])
def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other(value: str, expected: float) -> None:
    mixed = over(Q, lambda logp: straight_through(logp, REF, value=value, gradient="k2"))
    assert mixed == pytest.approx((expected, 0.221807), abs=1e-6)


def test_straight_through_token_by_token() -> None:
    logp = torch.tensor([0.75, 0.18, 0.8]).log().requires_grad_()
    ref = torch.tensor([0.6, 0.3, 0.5]).log()
    out = straight_through(logp, ref, value="k3", gradient="k2")
    torch.testing.assert_close(out.detach(), torch.tensor([0.023144, 0.155841, 0.095004]), atol=1e-6, rtol=0)
    out.sum().backward()
    torch.testing.assert_close(logp.grad, (logp.detach() - ref))  # dk2/dx = x
    plain = straight_through(logp, ref, value="k3", gradient="k3")
    assert torch.equal(plain, kl_penalty(logp, ref, estimator="k3"))


@pytest.mark.parametrize("estimator", sorted(KL_CORRECTED))
@pytest.mark.parametrize("samples", [Q, OLD], ids=["on policy", "off policy"])
def test_the_corrected_form_is_exact_wherever_the_samples_come_from(estimator: str, samples: torch.Tensor) -> None:
    found = over(samples, lambda logp: corrected_kl(logp, REF, samples, estimator=estimator))
    assert found == pytest.approx((0.192745, finite_difference(true_kl)), abs=1e-6)


def test_without_the_correction_off_policy_samples_give_another_gradient() -> None:
    for estimator in ("k1", "k2", "k3"):
        _, gradient = over(OLD, lambda logp, e=estimator: kl_penalty(logp, REF, estimator=e))
        assert abs(gradient - 0.221807) > 0.01
    # and r k2 is not exact even on policy: its value is biased, and the gradient goes through r
    _, gradient = over(Q, lambda logp: (logp - Q).exp() * kl_penalty(logp, REF, estimator="k2"))
    assert abs(gradient - 0.221807) > 0.01


@given(st.floats(-4, 4), st.floats(-3, 3))
def test_corrected_k3_at_one_token_is_r_times_the_gradient_of_k2(x: float, log_r: float) -> None:
    logp = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    ref, old = logp.detach() - x, logp.detach() - log_r
    corrected_kl(logp, ref, old, estimator="k3").backward()
    assert float(logp.grad) == pytest.approx(float(np.exp(log_r)) * x, rel=1e-9, abs=1e-9)


@given(st.floats(-700, 0), st.floats(-700, 0), st.sampled_from(["k1", "k2", "k3"]))
def test_every_form_stays_finite(logp: float, ref: float, estimator: str) -> None:
    here = torch.tensor(logp, requires_grad=True)
    there = torch.tensor(ref)
    out = corrected_kl(here, there, torch.tensor(0.0), estimator="k3")
    out = out + straight_through(here, there, value=estimator, gradient="k2")
    out.backward()
    assert out.isfinite() and here.grad is not None and here.grad.isfinite()


@pytest.mark.parametrize("form", ["straight", "corrected"])
def test_reference_and_old_carry_no_weight_of_their_own_at_the_reference(form: str) -> None:
    """Where the policy is the reference, value and gradient are exactly 0."""
    logp = torch.tensor([-0.3, -5.0, -0.01], requires_grad=True)
    same = logp.detach().clone()
    old = same - 0.5
    if form == "straight":
        out = straight_through(logp, same, value="k3", gradient="k2")
    else:
        out = corrected_kl(logp, same, old, estimator="k3")
    out.sum().backward()
    assert not out.any() and logp.grad is not None and not logp.grad.any()


class Nothing:
    """A surrogate and a correction: loss 0, weight 3 everywhere."""

    def loss(self, view: TokenView) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.zeros_like(view.logp), {}

    def weights(self, view: TokenView) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.full_like(view.logp, 3.0), {}


def in_loss(kl: KL) -> torch.Tensor:
    logp, old, ref = (torch.tensor([p]).log() for p in ([0.75, 0.18], [0.5, 0.36], [0.6, 0.3]))
    ones = torch.ones(1, 2)
    view = TokenView(logp, old, old, known=ones, advantages=ones, weight=ones, ref_logp=ref)
    return token_losses(view, Nothing(), Nothing(), kl)[0]


def test_where_the_forms_stand_in_the_loss() -> None:
    k3 = torch.tensor([[0.023144, 0.155841]])
    torch.testing.assert_close(in_loss(KL(coef=2.0)), 2 * k3, atol=1e-6, rtol=0)
    torch.testing.assert_close(in_loss(KL(coef=2.0, gradient="k2")), 2 * k3, atol=1e-6, rtol=0)
    ratio = torch.tensor([[1.5, 0.5]])  # about the samples, so the correction's weight applies
    torch.testing.assert_close(in_loss(KL(coef=2.0, importance=True)), 3 * 2 * ratio * k3, atol=1e-5, rtol=0)
    assert not in_loss(KL(coef=2.0, where="reward")).any()


def test_forms_without_a_meaning_are_refused() -> None:
    for wrong in (KL(coef=1.0, importance=True, estimator="k2"), KL(coef=1.0, importance=True, gradient="k2")):
        with pytest.raises(ValueError, match="unbiased"):
            in_loss(wrong)
