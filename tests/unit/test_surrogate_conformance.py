"""What every surrogate and every correction must hold in a whole update. A new one joins by its entry below."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr.methods import CORRECTION, OBJECTIVE, Family, method_class
from rlvr.objectives.loss import token_losses
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL
from tests.unit.conformance import Base, Outcome, learn, make
from tests.unit.toy import GROUP, TASKS

# kind -> options that make it differ from PPO's clip on the toy
SURROGATES: dict[str, dict[str, Any]] = {
    "a_star_po": {"beta2": 0.1},
    "cispo": {},
    "clip": {"high": 0.28, "dual": 3.0},
    "decoupled": {},
    "delta_clip": {"delta": 1.3},
    "gmpo": {},
    "gspo": {},
    "pacs": {},
    "rover": {},
    "rpg": {"beta": 0.1, "style": "differentiable"},  # the other style: tests/unit/test_rpg.py
    "sapo": {},
    "tba": {"beta": 0.5},
}
# kind -> options with which some tokens of the toy are truncated or rejected
CORRECTIONS: dict[str, dict[str, Any]] = {
    "geometric": {"low": 0.99, "high": 1.01},
    "icepop": {"low": 0.99, "high": 1.01},
    "none": {},
    "off_policy_mask": {"delta": 1e-3},
    "sequence_mis": {"cap": 1.001},
    "sequence_tis": {"cap": 0.999},
    "tis": {"cap": 1.01},
    "veto": {"floor": 0.97, "cap": 1.01},
}
ALONE = {"a_star_po", "decoupled", "pacs", "tba"}  # take no correction
GROUPED = {"a_star_po", "pacs", "tba"}
METHODS = [(OBJECTIVE, kind) for kind in OBJECTIVE.kinds] + [(CORRECTION, kind) for kind in CORRECTION.kinds]
ids = [kind for _, kind in METHODS]
each_method = pytest.mark.parametrize(("family", "kind"), METHODS, ids=ids)
each_surrogate = pytest.mark.parametrize("kind", OBJECTIVE.kinds)
each_correction = pytest.mark.parametrize("kind", CORRECTION.kinds)


def base_of(family: Family, kind: str) -> Base:
    if family is CORRECTION:
        return Base(correction=(kind, CORRECTIONS[kind]))
    return Base(objective=(kind, SURROGATES[kind]), correction=("none" if kind in ALONE else "tis", {}))


def same(a: Outcome, b: Outcome) -> None:
    assert a.loss == pytest.approx(b.loss, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower, and on a busy machine far slower, with several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_kind_has_an_example() -> None:
    assert (sorted(SURROGATES), sorted(CORRECTIONS)) == (OBJECTIVE.kinds, CORRECTION.kinds)


@each_method
def test_names_and_documentation(family: Family, kind: str) -> None:
    cls = method_class(family, kind, project=Path())
    module = sys.modules[cls.__module__]
    assert cls.__module__ == f"rlvr.{family.folder}.{kind}", "the file's name is the kind"
    assert cls.Config is module.Config
    assert re.search(r"Fidelity: (exact|close|reconstructed)\.", module.__doc__ or "")
    assert cls.Config()  # every option has a default


@each_method
def test_it_changes_the_gradient_and_keeps_it_finite(family: Family, kind: str) -> None:
    base = base_of(family, kind)
    other = Base(objective=("clip", {}), correction=base.correction if family is OBJECTIVE else ("tis", {}))
    plain, out = learn([], base=other), learn([], base=base)
    assert out.grad.isfinite().all() and out.grad.any()
    assert not torch.allclose(out.grad, plain.grad, rtol=1e-4)
    if kind in GROUPED:
        assert out.active("objective") > 0


@each_method
def test_split_order_and_padding_do_not_matter(family: Family, kind: str) -> None:
    base = base_of(family, kind)
    whole = learn([], base=base)
    shuffled = torch.randperm(GROUP * TASKS, generator=torch.Generator().manual_seed(5)).tolist()
    for changes in ({"micro": 1}, {"order": shuffled, "micro": 7}, {"micro": 4, "extra": 3, "garbage": nan}):
        same(learn([], base=base, **changes), whole)


@each_method
def test_state_and_pickle_round_trip(family: Family, kind: str) -> None:
    base = base_of(family, kind)
    used = base.built([])
    learn([], methods=used)
    fresh = base.built([])
    fresh.surrogate.load_state_dict(json.loads(json.dumps(used.surrogate.state_dict())))
    copied = pickle.loads(pickle.dumps(fresh))
    same(learn([], methods=used, step=1), learn([], methods=copied, step=1))


@each_method
def test_misspelt_and_infinite_options_are_refused(family: Family, kind: str) -> None:
    config = method_class(family, kind, project=Path()).Config
    with pytest.raises(ValueError):
        config(misspelt=1)
    for name, info in config.model_fields.items():
        if info.annotation is float:
            with pytest.raises(ValueError):
                config(**{name: inf})


# --- on one micro-batch -----------------------------------------------------------------------------------------------

MASK = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])


def view(**changes: torch.Tensor) -> TokenView:
    """Ratios near 1, on the side where no clip binds."""
    generator = torch.Generator().manual_seed(3)

    def rand(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(2, 4, generator=generator)

    old, advantages = rand(-2.0, -1.0), torch.tensor([[1.0], [-1.0]]).expand(2, 4).clone()
    tensors = {"old_logp": old, "logp": old - advantages * rand(0.01, 0.1), "behaviour_logp": old + rand(-0.01, 0.01)}
    tensors |= {"ref_logp": rand(-2.0, -1.0), "known": MASK, "weight": MASK, "advantages": advantages}
    streams = {"mean_logp": rand(-9.0, -4.0), "old_mean_logp": rand(-9.0, -4.0)}
    return TokenView(**(tensors | changes), streams=streams, mark=torch.tensor([[0.7], [-0.3]]).expand(2, 4).clone())


def loss_of(family: Family, kind: str, seen: TokenView) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    methods = base_of(family, kind).built([])
    return token_losses(seen, methods.surrogate, methods.correction, KL())


@each_method
def test_no_gradient_but_through_the_current_log_probs(family: Family, kind: str) -> None:
    seen = view()
    names = ("logp", "old_logp", "behaviour_logp", "ref_logp", "advantages")
    seen = replace(seen, **{name: vars(seen)[name].requires_grad_() for name in names})
    loss, metrics = loss_of(family, kind, seen)
    loss.sum().backward()
    assert seen.logp.grad is not None and bool(seen.logp.grad.any())
    assert all(vars(seen)[name].grad is None for name in names[1:])
    assert not any(m.requires_grad for m in metrics.values()) and all(m.shape[0] == 2 for m in metrics.values())


@each_method
@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("where", ["logp", "old_logp", "behaviour_logp", "advantages"])
def test_a_value_that_is_not_finite_is_left_out_and_counted(family: Family, kind: str, where: str, bad: float) -> None:
    seen = view()
    vars(seen)[where][0, 2] = bad
    seen.logp.requires_grad_()
    loss, metrics = loss_of(family, kind, seen)
    (loss * MASK).sum().backward()
    assert loss.isfinite().all() and seen.logp.grad is not None and seen.logp.grad.isfinite().all()
    assert seen.logp.grad[0, 2] == 0 and metrics["nonfinite_tokens"].sum() == 1
    assert all(m.isfinite().all() for m in metrics.values())


@each_method
def test_a_fully_masked_row_gives_nothing_and_changes_no_other(family: Family, kind: str) -> None:
    seen = view()
    alone, _ = loss_of(family, kind, seen)
    weight = MASK.clone()
    weight[1] = 0
    masked, _ = loss_of(family, kind, replace(seen, weight=weight))
    assert torch.equal(masked[0], alone[0]) and not masked[1].any()


@each_surrogate
def test_gradients_against_finite_differences(kind: str) -> None:
    """Where the loss is smooth; detached weights are held still by central differences of a frozen copy."""
    seen = view()
    wide = replace(seen, **{n: v.double() for n, v in vars(seen).items() if isinstance(v, torch.Tensor)})
    wide = replace(wide, streams={n: v.double() for n, v in seen.streams.items()})
    surrogate = base_of(OBJECTIVE, kind).built([]).surrogate
    logp = wide.logp.clone().requires_grad_()

    def value(at: torch.Tensor) -> torch.Tensor:
        return (surrogate.loss(replace(wide, logp=at * MASK, old_logp=wide.old_logp * MASK))[0] * MASK).sum()

    if kind == "cispo":  # its weight is detached on purpose: see the numbers
        return
    value(logp).backward()
    assert logp.grad is not None
    for b, t in MASK.nonzero().tolist():
        step = torch.zeros_like(logp).index_put((torch.tensor(b), torch.tensor(t)), torch.tensor(1e-6).double())
        difference = (value(logp.detach() + step) - value(logp.detach() - step)) / 2e-6
        assert float(logp.grad[b, t]) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


@each_correction
def test_a_correction_is_1_where_sampler_and_trainer_agree_or_nothing_is_known(kind: str) -> None:
    seen = view()
    correction = make(CORRECTION, kind, {} if kind != "sequence_tis" else {"cap": 2.0})
    off = torch.where(MASK > 0, seen.old_logp - 3.0, seen.old_logp)
    for one in (
        replace(seen, behaviour_logp=seen.old_logp, logp=seen.old_logp),
        replace(seen, logp=seen.old_logp, behaviour_logp=off, known=MASK * 0),
    ):
        assert torch.equal(correction.weights(one)[0] * MASK, MASK)
