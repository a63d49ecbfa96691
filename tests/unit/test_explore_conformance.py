"""What every add-on of `rlvr/explore` must hold. A new one joins by its entry in EXAMPLES."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from math import nan
from pathlib import Path

import pytest
import torch

from rlvr.batching import row_table
from rlvr.explore.base import AddOn
from rlvr.methods import EXPLORE, method_class
from rlvr.recipe import Reduction
from rlvr.rollout.tree_method import KINDS as TREES
from tests.unit.conformance import Outcome, learn, replayable, saved, stack

# kind -> (options that do nothing, options that do something on the toy)
EXAMPLES: dict[str, tuple[dict, dict]] = {
    "adaptive_entropy": ({"initial": 0.0, "delta": 0.0}, {"initial": 0.05, "target": 10.0}),
    "aer": ({"alpha": 0.0, "eta": 0.0}, {"alpha": 0.05, "rho": 1.0}),
    "ampo": ({"demos": 0}, {"demos": 2}),
    "cde": ({"w": 0.0}, {"w": 0.6, "alpha": 0.05}),
    "clip_cov": ({"ratio": 0.0}, {"ratio": 0.1, "low": 0.0, "high": 50.0}),
    "cosine_length": ({"coef": 0.0}, {"coef": 0.3, "max_len": 8}),
    "critical_tokens": ({"coef": 0.0}, {"coef": 0.5, "power": 2.0}),
    "critique_grpo": ({"refine": False}, {"gamma": 0.1}),
    "dars": ({"n_max": 6}, {"n_max": 9}),
    "diver": ({"w": 0.0}, {"w": 0.4}),
    "deep_search": ({"depth": 1, "cache": False}, {"depth": 4, "width": 2}),
    "ead": ({"tau_max": 1.0, "tau_min": 1.0}, {"tau_max": 1.5, "d0": 4.0, "c": 1}),
    "eepo": ({"eta": 0.0}, {"alpha": 9.0}),
    "effective_rank": ({"coef": 0.0}, {"coef": 0.3, "stride": 2}),
    "egsw": ({"alpha": 0.0, "P": 1e30}, {"alpha": 0.5}),
    "entropy_advantage": ({"alpha": 0.0}, {"alpha": 0.2}),
    "entropy_bonus": ({"coef": 0.0}, {"coef": 0.05}),
    "exgrpo": ({"ratio": 0.0}, {"ratio": 0.5, "keep": 2}),
    "forking_tokens": ({"rho": 1.0}, {"rho": 0.5}),
    "fr3e": ({"k": 0}, {"k": 1, "m": 2, "spacing": 1}),
    "ghpo": ({"ratios": []}, {"ratios": [0.3, 0.6]}),
    "hapo": ({"w": 0.0, "initial": 4.0}, {"w": 0.3, "initial": 4.0}),
    "kl_cov": ({"ratio": 0.0}, {"ratio": 0.1}),
    "latr": ({"eta": {0: 0.0}}, {"eta": {0: 0.5}, "tau_ed": 0.0, "steps": [1]}),
    "length_reward": ({"coef": 0.0}, {"coef": 0.3}),
    "lp_reg": ({"rho": 0.0}, {"rho": 0.5, "kappa": 0.1}),
    "luffy": ({"demos": 0}, {"demos": 1}),
    "outcome_bonus": ({"coef": 0.0}, {"coef": 0.3, "form": "batch"}),
    "reinforce_ada": ({"n": 6, "rounds": 1}, {"n": 4, "rounds": 2}),
    "repo": ({"coef": 0.0}, {"k": 3}),
    "rep_exp": ({"coef": 0.0}, {"coef": 0.3, "d": 4}),
    "rl_plus": ({"demos": 0}, {"demos": 1}),
    "seele": ({"rounds": 0}, {"rounds": 3, "gamma": 0.05}),
    "siren": ({"beta": 0.0}, {"beta": 0.1, "q": 0.5}),
    "spear": ({"coef": 0.0}, {"size": 3, "rise": 1}),
    "spo_tree": ({"factors": ()}, {"factors": (2,), "segment": 3}),
    "treerl": ({"n": 0}, {"n": 1, "t": 1}),
    "temperature_schedule": ({"start": 1.0, "end": 1.0}, {"start": 1.5, "end": 1.0, "steps": 10}),
}
# kind -> the state after some steps, where the first step only looks
STATES: dict[str, dict] = {
    "eepo": {"entropies": [0.5]},
    "effective_rank": {"means": [1.5, -0.5, 0.0]},
    "exgrpo": {"store": replayable(), "rates": {"2": 0.5, "3": 0.25}, "retired": [], "started": True},
    "repo": {"store": replayable()},
    "siren": {"anchor": 1.0},
    "spear": {"store": replayable(), "history": [0.5], "steps": 1},
}
ROUNDS = {"dars", "eepo", "reinforce_ada", "seele"}  # a draw is sampled in rounds
RESCUES = {"ampo", "ghpo"}  # nothing is left to do where another method put a right answer into a failed group
OWN = {"critique_grpo", "luffy", "rl_plus"}  # act on rows that are the policy's own, and seele shows hints in all
KINDS = EXPLORE.kinds
WORKING = [(kind, EXAMPLES[kind][1]) for kind in KINDS if kind in EXAMPLES]
ALL = [spec for spec in WORKING if spec[0] not in TREES - {"treerl"}]  # a recipe may have one tree
STACKS = {kind: [(kind, options)] for kind, options in WORKING} | {"all": ALL, "all, reversed": ALL[::-1]}


def later(*specs: tuple[str, dict]) -> list[AddOn]:
    """`stack`, some steps into a run."""
    built = stack(*specs)
    for addon in built:
        if addon.kind in STATES:
            addon.load_state_dict(STATES[addon.kind])
    return built


def same(a: Outcome, b: Outcome) -> None:
    assert a.loss == pytest.approx(b.loss, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


def test_every_kind_has_an_example() -> None:
    assert sorted(EXAMPLES) == KINDS, "an add-on without an entry in EXAMPLES, or the other way round"


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_documentation(kind: str) -> None:
    cls = method_class(EXPLORE, kind, project=Path())
    module = sys.modules[cls.__module__]
    assert cls.__module__ == f"rlvr.explore.{kind}", "the file's name is the kind"
    assert cls.Config is module.Config
    assert re.search(r"Fidelity: (exact|close|reconstructed)\.", module.__doc__ or "")
    assert cls.Config()  # every option has a default


@pytest.mark.parametrize("kind", KINDS)
def test_neutral_options_change_no_bit(kind: str) -> None:
    none, neutral = learn([]), learn(stack((kind, EXAMPLES[kind][0])))
    assert neutral.loss == none.loss
    assert torch.equal(neutral.grad, none.grad)
    assert neutral.active(kind) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_working_options_are_active_and_change_the_loss(kind: str) -> None:
    none, working = learn([]), learn(later((kind, EXAMPLES[kind][1])))
    assert working.active(kind) > 0
    assert working.loss != pytest.approx(none.loss, rel=1e-6)
    assert not torch.allclose(working.grad, none.grad, rtol=1e-4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower, and on a busy machine far slower, with several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CASES = [(name, "token") for name in STACKS] + [("all", "sequence"), ("all", "constant")]


@pytest.mark.parametrize(("name", "reduction"), CASES)
def test_split_order_and_padding_do_not_matter(name: str, reduction: Reduction) -> None:
    specs = STACKS[name]
    whole = learn(later(*specs), reduction=reduction)
    rows = sum(map(len, row_table(whole.groups)))  # a method may add some
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(5)).tolist()
    for changes in ({"micro": 1}, {"micro": 5}, {"order": shuffled}, {"order": shuffled, "micro": 7}):
        same(learn(later(*specs), reduction=reduction, **changes), whole)
    for garbage in (3.0, nan):
        same(learn(later(*specs), reduction=reduction, micro=4, extra=3, garbage=garbage), whole)


def test_the_same_kind_twice_keeps_apart() -> None:
    twice = stack(("entropy_bonus", {"coef": 0.02}), ("entropy_bonus", {"coef": 0.03}))
    assert [a.name for a in twice] == ["entropy_bonus", "entropy_bonus#2"]
    same(learn(twice), learn(stack(("entropy_bonus", {"coef": 0.05}))))


# Each pair in one order, every other pair reversed: there are many, and "all" and "all, reversed" are in STACKS.
# Of the methods that sample a draw in their own way a recipe may have one.
PAIRS = [pair[:: 1 if i % 2 else -1] for i, pair in enumerate(combinations(WORKING, 2))]
PAIRS = [pair for pair in PAIRS if not {kind for kind, _ in pair} <= TREES | ROUNDS]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0][0]}-{pair[1][0]}")
def test_every_pair_stacks(pair: tuple) -> None:
    out = learn(later(*pair))
    assert out.grad.isfinite().all()
    quiet = RESCUES | (OWN if "seele" in dict(pair) else set())
    assert all(out.active(kind) > 0 for kind, _ in pair if kind not in quiet)


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_pickle_round_trip(kind: str) -> None:
    spec = (kind, EXAMPLES[kind][1])
    (used,), (fresh,) = later(spec), stack(spec)
    learn([used])
    fresh.load_state_dict(saved(used.state_dict()))
    assert fresh.state_dict() == used.state_dict()
    (copied,) = (pickle.loads(pickle.dumps(fresh)),)
    same(learn([used], step=1), learn([copied], step=1))


@pytest.mark.parametrize("kind", KINDS)
def test_misspelt_and_infinite_options_are_refused(kind: str) -> None:
    config = method_class(EXPLORE, kind, project=Path()).Config
    with pytest.raises(ValueError):
        config(misspelt=1)
    for name, info in config.model_fields.items():
        if info.annotation is float:
            with pytest.raises(ValueError):
                config(**{name: float("inf")})
