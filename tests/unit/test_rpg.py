"""RPG's four weights: the specification's numbers, and the exact gradient of J on three actions."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.objectives.rpg import penalty, regularised
from rlvr.objectives.view import TokenView
from rlvr.surrogates.rpg import RPG, Config

FORMS = ("fkl", "ufkl", "rkl", "urkl")
OLD = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
A = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
START = (0.4, -0.3, 0.1)  # logits: away from OLD
BETA = 0.3
OFF = {"low": 1.0, "high": 1e9, "dual": None}  # bounds that no ratio reaches


def objective(logits: np.ndarray, form: str) -> float:
    """J = E_pi[A] - beta KL, the KL in the form's direction."""
    logp = torch.from_numpy(logits).log_softmax(0)
    p, old = logp.exp(), OLD.exp()
    kl = (old * (OLD - logp)).sum() if "f" in form else (p * (logp - OLD)).sum()
    return float((p * A).sum() - BETA * kl)


def exact(form: str, h: float = 1e-6) -> list[float]:
    at, steps = np.array(START), np.eye(3) * h
    return [(objective(at + d, form) - objective(at - d, form)) / (2 * h) for d in steps]


def view(logp: torch.Tensor, advantages: torch.Tensor = A, old: torch.Tensor = OLD) -> TokenView:
    def row(values: torch.Tensor) -> torch.Tensor:
        return values[None]

    ones = torch.ones_like(row(old))
    return TokenView(row(logp), row(old), row(old), known=ones, advantages=row(advantages), weight=ones)


def surrogate(**options: Any) -> RPG:
    return RPG(Config(**options), name="objective")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["reinforce", "differentiable"])
def test_expected_gradient_is_that_of_the_regularised_objective(form: str, style: str) -> None:
    logits = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    loss, _ = surrogate(form=form, style=style, beta=BETA, **OFF).loss(view(logits.log_softmax(0)))
    (OLD.exp() * loss[0]).sum().backward()  # every action once, as often as pi_old takes it
    assert logits.grad is not None
    np.testing.assert_allclose((-logits.grad).tolist(), exact(form), atol=1e-6)


@pytest.mark.parametrize(
    ("w", "weights"),
    [
        (1.0, {"urkl": 1.0, "ufkl": 1.0, "rkl": 0.9, "fkl": 1.1}),
        (1.5, {"urkl": 1.439180, "ufkl": 1.45, "rkl": 1.289180, "fkl": 1.6}),
        (0.5, {"urkl": 0.534657, "ufkl": 0.55, "rkl": 0.484657, "fkl": 0.6}),
    ],
)
def test_weights(w: float, weights: dict[str, float]) -> None:
    for form, expected in weights.items():
        one, log_w = torch.ones((), dtype=torch.float64), torch.tensor(log(w), dtype=torch.float64)
        assert w * float(regularised(one, log_w, form=form, beta=0.1)) == pytest.approx(expected, abs=1e-6)
        for style in ("reinforce", "differentiable"):  # and the loss's gradient with respect to logp is minus that
            logp = (log_w + log(0.5))[None].requires_grad_()
            old = torch.tensor([log(0.5)], dtype=torch.float64)
            made = surrogate(form=form, style=style, beta=0.1, **OFF)
            made.loss(view(logp, advantages=one[None], old=old))[0].sum().backward()
            assert logp.grad is not None and float(logp.grad) == pytest.approx(-expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_is_the_kl_and_is_least_at_the_old_policy(form: str) -> None:
    log_w = torch.linspace(-1, 1, 21, dtype=torch.float64)
    logp = torch.tensor(START, dtype=torch.float64).log_softmax(0)
    old = OLD.exp()
    expected = (old * (OLD - logp)).sum() if "f" in form else (logp.exp() * (logp - OLD)).sum()
    assert float((old * penalty(logp - OLD, form=form)).sum()) == pytest.approx(float(expected), abs=1e-12)
    if form.startswith("u"):
        assert float(penalty(log_w, form=form).min()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["reinforce", "differentiable"])
def test_without_beta_it_is_the_clip(form: str, style: str) -> None:
    from rlvr.surrogates.clip import Clip
    from rlvr.surrogates.clip import Config as ClipConfig

    clip = Clip(ClipConfig(low=0.2, high=0.28, dual=10.0))
    logp = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log()
    ours, said = surrogate(form=form, style=style, beta=0.0).loss(view(logp))
    theirs, metrics = clip.loss(view(logp))
    assert torch.equal(ours, theirs)
    assert all(torch.equal(said[name], metrics[name]) for name in metrics)


def test_the_bounds_look_at_the_regularised_advantage_and_take_the_gradient() -> None:
    """A = .1 > 0 at w = 4, but A' = .1 - .1 log 4 < 0: the upper bound does not hold it back, the dual one does."""
    old = torch.tensor([0.2], dtype=torch.float64).log()

    def gradient(a: float, **options: Any) -> tuple[float, dict[str, float]]:
        logp = torch.tensor([0.8], dtype=torch.float64).log().requires_grad_()
        advantages = torch.tensor([a], dtype=torch.float64)
        loss, said = surrogate(form="urkl", beta=0.1, **options).loss(view(logp, advantages=advantages, old=old))
        loss.sum().backward()
        assert logp.grad is not None
        return float(logp.grad), {name: float(value) for name, value in said.items()}

    pushed, said = gradient(0.1)
    assert pushed == pytest.approx(-4 * (0.1 - 0.1 * log(4.0))) and said["clip_high"] == 0
    held, said = gradient(1.0)
    assert held == 0.0 and said["clip_high"] == 1
    dual, said = gradient(0.1, dual=3.0)
    assert dual == 0.0 and said["clip_dual"] == 1
