"""What bad input gets, for every estimator, objective, correction and method of entropy control alike.

Known when the recipe is read: an error. Known later: the row or the token is left out and counted, all numbers stay
finite, and what the others learn goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from rlvr.explore.base import AddOn
from rlvr.methods import ADVANTAGE, CORRECTION, EXPLORE, OBJECTIVE, Family, method_class
from rlvr.types import Group, Verdict
from tests.unit import conformance, toy
from tests.unit.conformance import Base, Outcome, learn
from tests.unit.test_advantage_conformance import EXAMPLES as ESTIMATORS
from tests.unit.test_explore_conformance import EXAMPLES as ADDONS
from tests.unit.test_explore_conformance import later
from tests.unit.test_surrogate_conformance import base_of as surrogate_base
from tests.unit.toy import Toy

ENTROPY = [
    "adaptive_entropy", "aer", "clip_cov", "critical_tokens", "effective_rank", "egsw", "entropy_advantage",
    "entropy_bonus", "forking_tokens", "kl_cov", "lp_reg", "siren",
]  # fmt: skip
METHODS = [
    *((ADVANTAGE, kind) for kind in ADVANTAGE.kinds),
    *((OBJECTIVE, kind) for kind in OBJECTIVE.kinds),
    *((CORRECTION, kind) for kind in CORRECTION.kinds),
    *((EXPLORE, kind) for kind in ENTROPY),
]
each_method = pytest.mark.parametrize(("family", "kind"), METHODS, ids=[kind for _, kind in METHODS])

# --- when the recipe is read ------------------------------------------------------------------------------------------

BELOW = -1e-9
# numbers outside the domain of every option that is one: what is not allowed itself, or a hair beyond what is
REFUSED: dict[str, dict[str, Sequence[float]]] = {
    "a_star_po": {"beta1": [BELOW], "beta2": [0.0], "n": [0, 1.5]},
    "adaptive_entropy": {"target": [BELOW], "delta": [BELOW], "initial": [BELOW, 1.001], "max": [BELOW]},
    "aer": {"tau": [0.0], "rho": [0.0, 1.001], "alpha": [BELOW, 0.051], "eta": [BELOW], "alpha_max": [BELOW]},
    "cispo": {"low": [BELOW, 1.001], "high": [BELOW]},
    "clip": {"low": [BELOW, 1.001], "high": [BELOW], "dual": [1.0]},
    "clip_cov": {"ratio": [BELOW, 1.001], "low": [5.001], "high": [0.999]},
    "critical_tokens": {"coef": [BELOW], "power": [BELOW], "temperature": [0.0]},
    "decoupled": {"low": [BELOW, 1.001], "high": [BELOW]},
    "delta_clip": {"low": [BELOW, 1.001], "high": [BELOW], "delta": [0.0]},
    "effective_rank": {"coef": [BELOW], "kappa": [0.999], "k": [0.0], "ema": [0.0, 1.001], "stride": [0, 1.5]},
    "egsw": {"alpha": [BELOW], "P": [0.0]},
    "entropy_advantage": {"alpha": [BELOW], "kappa": [0.999]},
    "entropy_bonus": {"coef": [BELOW]},
    "forking_tokens": {"rho": [0.0, 1.001]},
    "geometric": {"low": [BELOW, 1.001], "high": [0.999]},
    "gmpo": {"eps": [0.0]},
    "grpo": {"eps": [0.0]},
    "gspo": {"low": [BELOW, 1.001], "high": [BELOW]},
    "icepop": {"low": [BELOW, 1.001], "high": [0.999]},
    "kl_cov": {"ratio": [BELOW, 1.001], "beta": [BELOW]},
    "lp_reg": {"kappa": [0.0, 1.001], "rho": [BELOW, 1.001], "beta": [BELOW]},
    "off_policy_mask": {"delta": [0.0]},
    "pacs": {"beta": [0.0]},
    "pass_at_k": {"k": [0, 1.5]},
    "reinforce_plus_plus": {"gamma": [0.0, 1.001], "kl_coef": [BELOW]},
    "rover": {"rho": [0.0]},
    "rpg": {"beta": [BELOW], "low": [BELOW, 1.001], "high": [BELOW], "dual": [1.0]},
    "sapo": {"tau_pos": [0.0], "tau_neg": [0.0]},
    "sequence_mis": {"cap": [0.0]},
    "sequence_tis": {"cap": [0.0]},
    "siren": {"p": [0.0, 1.001], "q": [BELOW, 1.0], "beta": [BELOW]},
    "tba": {"beta": [0.0]},
    "tis": {"cap": [0.0]},
    "veto": {"floor": [0.0], "cap": [0.0]},
}
# the ends that belong to a domain
ALLOWED: dict[str, list[dict[str, float]]] = {
    "a_star_po": [{"beta1": 0.0}],
    "adaptive_entropy": [{"target": 0.0, "delta": 0.0, "max": 0.0}, {"initial": 1.0}],
    "aer": [{"rho": 1.0, "eta": 0.0, "alpha_max": 0.0}, {"alpha": 0.05}],
    "cispo": [{"low": 0.0, "high": 0.0}, {"low": 1.0}],
    "clip": [{"low": 0.0, "high": 0.0}, {"low": 1.0}],
    "clip_cov": [{"ratio": 0.0, "low": 5.0}, {"ratio": 1.0}],
    "critical_tokens": [{"coef": 0.0, "power": 0.0}],
    "effective_rank": [{"coef": 0.0, "kappa": 1.0, "ema": 1.0, "stride": 1}],
    "egsw": [{"alpha": 0.0}],
    "entropy_advantage": [{"alpha": 0.0, "kappa": 1.0}],
    "forking_tokens": [{"rho": 1.0}],
    "geometric": [{"low": 0.0, "high": 1.0}, {"low": 1.0}],
    "icepop": [{"low": 0.0, "high": 1.0}, {"low": 1.0}],
    "kl_cov": [{"ratio": 0.0, "beta": 0.0}, {"ratio": 1.0}],
    "lp_reg": [{"kappa": 1.0, "rho": 0.0, "beta": 0.0}, {"rho": 1.0}],
    "pass_at_k": [{"k": 1}],
    "reinforce_plus_plus": [{"gamma": 1.0, "kl_coef": 0.0}],
    "siren": [{"p": 1.0, "q": 0.0, "beta": 0.0}],
}


@each_method
def test_every_number_has_a_domain_and_outside_it_is_refused(family: Family, kind: str) -> None:
    config = method_class(family, kind, project=Path()).Config
    numbers = {
        name
        for name, field in config.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    refused = REFUSED.get(kind, {})
    assert set(refused) == numbers, "an option without numbers to refuse in REFUSED, or the other way round"
    for name, values in refused.items():
        for value in (*values, inf, -inf, nan):
            with pytest.raises(ValueError):
                config(**{name: value})
    for options in ALLOWED.get(kind, []):
        config(**options)


# --- when the run is on -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower, and on a busy machine far slower, with several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(family: Family, kind: str) -> Outcome:
    """One update of the toy with this method at work."""
    if family is EXPLORE:
        return learn(later((kind, ADDONS[kind][1])))
    return learn(
        [], base=Base(advantage=(kind, ESTIMATORS[kind])) if family is ADVANTAGE else surrogate_base(family, kind)
    )


def sane(out: Outcome) -> None:
    """Something was learned, and every number is one."""
    assert np.isfinite(out.loss) and out.grad.isfinite().all() and out.grad.any()
    assert all(np.isfinite(a).all() for g in out.groups for a in g.advantages or ())
    assert all(np.isfinite(value) for value in out.metrics.values()), out.metrics


def changed(monkeypatch: pytest.MonkeyPatch, draw: int, change: Callable[[Group], Group]) -> None:
    """The toy's steps with one group (of four) as `change` makes it; ReMax's greedy row stays the last."""
    explore = conformance.explore

    def other(addons: Sequence[AddOn], *, step: int = 0) -> list[Group]:
        return [change(g) if g.draw == draw else g for g in explore(addons, step=step)]

    monkeypatch.setattr(conformance, "explore", other)


def scored(group: Group, *scores: float) -> Group:
    """The group with other verdicts on its first rows."""
    rows = list(group.trajectories)
    for i, score in enumerate(scores):
        rows[i] = replace(rows[i], verdict=Verdict(score=score, correct=score == 1))
    return group.with_(trajectories=tuple(rows))


def failed(group: Group, keep: int) -> Group:
    """Errors on all but the first `keep` rows."""
    broken = Verdict(score=0.0, correct=False, error="timeout")
    rows = [t if i < keep else replace(t, verdict=broken) for i, t in enumerate(group.trajectories)]
    return group.with_(trajectories=tuple(rows))


def masked(group: Group, *places: int) -> Group:
    """Rows without a trained token."""
    rows = [replace(t, weight=np.zeros_like(t.weight)) if i in places else t for i, t in enumerate(group.trajectories)]
    return group.with_(trajectories=tuple(rows))


WORLDS: dict[str, Callable[[Group], Group]] = {
    "a group of one": lambda g: failed(g, 1),
    "a group of errors": lambda g: failed(g, 0),
    "an all-equal group": lambda g: scored(g, *[1.0] * len(g)),
    "rewards that are not 0 or 1": lambda g: scored(g, 0.3, -1.0, 7.0, 1.0, 0.0),
    "huge rewards": lambda g: scored(g, 1e30, -1e30),
    "a fully masked row": lambda g: masked(g, 1),
    "a fully masked group": lambda g: masked(g, *range(len(g))),
    "one trained row": lambda g: masked(g, *range(1, len(g))),
}


@each_method
@pytest.mark.parametrize("world", WORLDS)
def test_odd_groups_leave_all_numbers_finite_and_the_others_learning(
    family: Family, kind: str, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, 3, WORLDS[world])
    out = run(family, kind)
    sane(out)
    for group in out.groups:
        rows = zip(group.trajectories, group.advantages or (), group.valid, strict=True)
        assert all(not a[(t.weight == 0) | (not ok)].any() for t, a, ok in rows)


@pytest.mark.parametrize(
    ("family", "kind", "counted"),
    [
        (ADVANTAGE, "pass_at_k", "advantage/masked_groups"),
        (ADVANTAGE, "max_rl", "advantage/masked_groups"),
        (OBJECTIVE, "pacs", "objective/rewards_not_binary"),
    ],
)
def test_rewards_that_a_method_cannot_use_are_counted(
    family: Family, kind: str, counted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(family, kind).metrics[counted]
    changed(monkeypatch, 3, WORLDS["rewards that are not 0 or 1"])
    assert run(family, kind).metrics[counted] > before


@each_method
@pytest.mark.parametrize("bad", [nan, -inf])
@pytest.mark.parametrize("which", ["old and current", "reference"])
def test_a_log_prob_that_is_not_finite_is_one_token_less(
    family: Family, kind: str, which: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stream of the second trained token of one response is broken; what the others learn goes on."""
    plain = run(family, kind)
    victim = plain.groups[3].trajectories[0].tokens
    measure = Toy.measure

    def broken(self: Toy, t: Any, names: Any = toy.PLAIN_STREAMS) -> dict[str, Any]:
        out = measure(self, t, names)
        ours = self is toy.REFERENCE if which == "reference" else self is not toy.REFERENCE
        if ours and np.array_equal(t.tokens, victim):
            for name, values in out.items():
                if len(values) == len(victim) and self is not toy.SAMPLER:
                    out[name] = np.where(np.arange(len(values)) == toy.PROMPT + 1, bad, values)
        return out

    monkeypatch.setattr(Toy, "measure", broken)
    out = run(family, kind)
    sane(out)
    lost = [
        (g.draw, i)
        for g, h in zip(plain.groups, out.groups, strict=True)
        for i, (a, b) in enumerate(zip(g.advantages or (), h.advantages or (), strict=True))
        if a.any() and not b.any()
    ]
    assert not lost
