"""The policy loss of one micro-batch, token by token: surrogate, correction, KL, then the add-ons.

    view = guard(view)                                        # optional: the functions below guard themselves
    view = shaped(view, addons, knobs=plan.knobs, marks=marks)
    loss, metrics = token_losses(view, surrogate, correction, kl)
    loss = compose(view, loss, addons, knobs=plan.knobs, marks=marks)
    scaled_sum(loss, weight=view.weight, scale=scale).backward()
    totals = sums(metrics, view.mask)                         # add these over micro-batches and ranks ...
    report = means(totals)                                    # ... then divide once

Totals whose name ends in `_max` are merged by maximum, all others by sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlvr.objectives.kl import corrected_kl, kl_penalty, straight_through
from rlvr.objectives.ratio import log_ratio
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL

COUNTS = frozenset({"nonfinite_tokens", "tokens"})  # reported as totals, not as means over tokens


class PolicyLoss(Protocol):
    """What the loss needs of a surrogate (`rlvr.surrogates.base`)."""

    name: str

    def loss(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [B,T], and detached metrics [B,T] by name."""
        ...


class Weights(Protocol):
    """What the loss needs of a correction (`rlvr.corrections.base`)."""

    def weights(self, view: TokenView) -> tuple[Tensor, dict[str, Tensor]]:
        """Detached weights [B,T], and detached metrics [B,T] by name."""
        ...


class LossTerm(Protocol):
    """What the loss needs of an add-on."""

    name: str

    def token_advantage(self, view: TokenView) -> Tensor:
        """The advantages [B,T] that the surrogate sees."""
        ...

    def token_loss(self, view: TokenView, loss: Tensor) -> Tensor:
        """[B,T] in, [B,T] out."""
        ...


def token_losses(
    view: TokenView, surrogate: PolicyLoss, correction: Weights, kl: KL
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token loss [B,T] (weight and scale not applied) and detached per-token metrics [B,T] each.

    l = w * surrogate + coef * KL, with w the detached correction: the KL is a property of the current policy and is
    not reweighted. With `kl.importance` it is an expectation over the samples: l = w * (surrogate + coef * r KL).
    `view` holds the surrogate's own knobs and mark. Where a token is not trained on, or has a value that is not
    finite, l is 0 (see `guard`).
    Raises ValueError when a KL in the loss has no `view.ref_logp`, or a form without a meaning.
    """
    clean = guard(view)
    loss, metrics = surrogate.loss(clean)
    weight, said = correction.weights(clean)
    kl_here = kl.coef > 0 and kl.where == "loss"
    if kl_here and kl.importance:
        loss = loss + kl.coef * _kl_in_loss(clean, kl)
    loss = weight.detach() * loss
    metrics = _metrics(clean) | metrics | said | {"nonfinite_tokens": view.mask - clean.mask}
    if kl_here and not kl.importance:
        loss = loss + kl.coef * _kl_in_loss(clean, kl)
    return _only(loss, clean), metrics


def shaped(
    view: TokenView,
    addons: Sequence[LossTerm],
    *,
    knobs: Mapping[str, Mapping[str, float]],
    marks: Mapping[str, Tensor],
) -> TokenView:
    """The view whose advantages went through every add-on's `token_advantage`, in order, detached after each.

    Not guarded, so that what is not finite is still counted by `token_losses`.
    """
    if not addons:
        return view
    clean = guard(view)
    for addon in addons:
        own = replace(clean, knobs=knobs.get(addon.name, {}), mark=marks.get(addon.name))
        clean = replace(clean, advantages=addon.token_advantage(own).detach())
    return replace(view, advantages=torch.where(view.advantages.isfinite(), clean.advantages, view.advantages))


def compose(
    view: TokenView,
    loss: Tensor,
    addons: Sequence[LossTerm],
    *,
    knobs: Mapping[str, Mapping[str, float]],
    marks: Mapping[str, Tensor],
) -> Tensor:
    """`loss` [B,T] through every add-on's `token_loss` in order, each with its own knobs and mark ([B,T]), by name.

    Later add-ons act on what earlier ones returned.
    """
    clean = guard(view)
    for addon in addons:
        own = replace(clean, knobs=knobs.get(addon.name, {}), mark=marks.get(addon.name))
        loss = addon.token_loss(own, loss)
    return _only(loss, clean)


def guard(view: TokenView) -> TokenView:
    """The view with weight 0, and 0 for every value, at tokens that are not trained on or not finite.

    So whatever stands in padding, and a *given* log-prob of -inf or NaN, adds nothing to loss or gradient. A NaN
    that the model computes still reaches the gradient (the engine then skips the update and counts it)
    (the denominators stay). All but `logp` and `streams` comes back detached.
    """
    fixed = {"old_logp": view.old_logp, "behaviour_logp": view.behaviour_logp, "ref_logp": view.ref_logp}
    fixed |= {"advantages": view.advantages, "weight": view.weight}
    tensors = {"logp": view.logp} | {name: t.detach() for name, t in fixed.items() if t is not None}
    keep = view.weight != 0
    for value in (*tensors.values(), *view.streams.values()):
        keep = keep & value.detach().isfinite()

    def kept(value: Tensor) -> Tensor:
        return torch.where(keep, value, torch.zeros_like(value))

    streams = {name: kept(value) for name, value in view.streams.items()}
    return replace(view, **{name: kept(value) for name, value in tensors.items()}, streams=streams)


def sums(metrics: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Scalar totals of per-token metrics over `mask` [B,T], and "tokens"; maxima for names in `_max`."""
    totals = {"tokens": mask.sum()}
    for name, value in metrics.items():
        at = torch.where(mask > 0, value, torch.zeros_like(value)) * mask
        totals[name] = at.max() if name.endswith("_max") else at.sum()
    return totals


def means(totals: Mapping[str, float]) -> dict[str, float]:
    """Merged totals of an update -> reported numbers: counts and maxima as they are, all else per token."""
    tokens = max(totals["tokens"], 1.0)
    whole = {name for name in totals if name in COUNTS or name.endswith("_max")}
    return {name: value if name in whole else value / tokens for name, value in totals.items()}


def _kl_in_loss(view: TokenView, kl: KL) -> Tensor:
    if view.ref_logp is None:
        raise ValueError("kl.coef > 0 with where=loss needs the reference's log-probs: got a view without ref_logp")
    if kl.importance and kl.estimator != "k2" and kl.gradient is None:
        return corrected_kl(view.logp, view.ref_logp, view.old_logp, estimator=kl.estimator)
    if kl.importance:
        raise ValueError("kl.importance needs an unbiased value (estimator k1 or k3) and its own gradient")
    gradient = kl.gradient or kl.estimator
    if gradient == "k1":
        raise ValueError("kl.estimator k1 has a gradient of mean zero in the loss: use k2 or k3, or where=reward")
    return straight_through(view.logp, view.ref_logp, value=kl.estimator, gradient=gradient)


def _metrics(view: TokenView) -> dict[str, Tensor]:
    logp = view.logp.detach()
    ratio = log_ratio(logp, view.old_logp).exp()
    metrics = {"ratio": ratio, "ratio_max": ratio, "approx_kl": kl_penalty(view.old_logp, logp, estimator="k3")}
    if view.ref_logp is not None:
        metrics["ref_kl"] = kl_penalty(logp, view.ref_logp, estimator="k3")
    return metrics


def _only(loss: Tensor, view: TokenView) -> Tensor:
    return torch.where(view.weight != 0, loss, torch.zeros_like(loss))
