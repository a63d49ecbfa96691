"""Surrogates and corrections against the numbers of two rows of three tokens (F1), worked by hand in `specs`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlvr.explore.base import Knobs, Update
from rlvr.methods import CORRECTION, OBJECTIVE
from rlvr.objectives.loss import token_losses
from rlvr.objectives.reduce import row_scales, scaled_sum
from rlvr.objectives.streams import reduction
from rlvr.objectives.view import TokenView
from rlvr.recipe import KL, Reduction
from rlvr.surrogates.a_star_po import optimal_value
from rlvr.types import Row, Task
from tests.unit.conformance import make
from tests.unit.test_objectives import MASK, NEW, ROLLOUT, A, f1, logs
from tests.unit.test_objectives import close as check_close
from tests.unit.toy import ToyContext

OLD = [[0.5, 0.2, 0.8], [0.4, 0.1, 1.0]]


def loss_of(kind: str, view: TokenView, correction: str = "none", **options: Any) -> torch.Tensor:
    fixed = make(CORRECTION, correction, options.pop("fix", {}))
    return token_losses(view, make(OBJECTIVE, kind, options), fixed, KL())[0]


def total(loss: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    return scaled_sum(loss, weight=MASK, scale=torch.from_numpy(row_scales([3, 2], reduction=reduction)))


def gradient(kind: str, view: TokenView | None = None, **options: Any) -> torch.Tensor:
    logp = logs(NEW).requires_grad_()
    loss_of(kind, replace(view or f1(), logp=logp), **options).sum().backward()
    assert logp.grad is not None
    return logp.grad


# --- surrogates -------------------------------------------------------------------------------------------------------


def test_delta_clip_is_the_dual_clip_at_delta_and_below_1_plus_high_bounds_positive_advantages_too() -> None:
    check_close(loss_of("delta_clip", f1(), delta=3.0), [[-1.2, -0.9, -1.0], [0.8, 3.0, 0.0]])
    check_close(gradient("delta_clip", delta=3.0), gradient("clip", dual=3.0).tolist())
    check_close(loss_of("delta_clip", f1(), delta=1.1), [[-1.1, -0.9, -1.0], [0.8, 1.1, 0.0]])


def test_gspo() -> None:
    check_close(loss_of("gspo", f1()), [[-1.0004] * 3, [1.414214, 1.414214, 0.0]])
    check_close(total(loss_of("gspo", f1()), "sequence"), (-1.0004 + 1.414214) / 2)
    s = make(OBJECTIVE, "gspo", {}).loss(f1())[1]["sequence_ratio"]
    check_close(s[:, 0], [1.105209, 1.414214])
    check_close(loss_of("gspo", f1(), token=True), loss_of("gspo", f1()).tolist())


def test_gspo_token_has_each_tokens_own_gradient() -> None:
    advantages = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]])  # s > 1: nothing is clipped
    s = torch.tensor([[1.105209], [1.414214]])
    check_close(gradient("gspo", f1(advantages=advantages), token=True), (-advantages * s * MASK).tolist(), tol=3e-6)
    mean = advantages.mean(1, keepdim=True)
    check_close(gradient("gspo", f1(advantages=advantages)), (-mean * s * MASK).tolist(), tol=2e-6)


def test_gspo_of_one_token_is_ppo() -> None:
    one = f1(weight=torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    check_close(loss_of("gspo", one, low=0.2, high=0.2), loss_of("clip", one).tolist())


def test_cispo_gradients() -> None:
    check_close(gradient("cispo", low=0.2, high=0.2), [[-1.2, -0.9, -1.0], [0.8, 1.2, 0.0]])
    check_close(gradient("cispo"), [[-1.5, -0.9, -1.0], [0.5, 4.0, 0.0]])  # no lower bound, 5 above


def test_sapo() -> None:
    loss = loss_of("sapo", f1())
    check_close(loss, [[-2.489837, -1.900083, -2.0], [1.415938, 3.652986, 0.0]])
    check_close(total(loss, "sequence"), 0.202244)
    gate = make(OBJECTIVE, "sapo", {}).loss(f1())[1]["gate"]
    check_close(gate[0, 0], 0.940015)
    check_close(gate[1], [0.934140, 0.157611, 1.0])
    check_close(gradient("sapo", f1(old_logp=logs(NEW))), (-A * MASK).tolist())  # on-policy: the plain policy gradient


def test_gmpo() -> None:
    loss = loss_of("gmpo", f1())
    check_close(loss, [[-1.103198] * 3, [1.637462, 1.637462, 0.0]])
    check_close(total(loss, "sequence"), (-1.103198 + 1.637462) / 2)
    one = f1(weight=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    bounds = {"low": 1 - np.exp(-0.4), "high": np.exp(0.4) - 1}
    check_close(loss_of("gmpo", one), loss_of("clip", one, **bounds).tolist())


def test_decoupled_ppo_is_the_clip_with_importance_weights_and_ppo_where_behaviour_is_old() -> None:
    view = f1(behaviour_logp=logs(ROLLOUT))
    check_close(loss_of("decoupled", view), [[-1.2, -3.6, -1.0], [0.64, 1.0, 0.0]])
    assert torch.equal(loss_of("decoupled", view), loss_of("clip", view, "tis", fix={"cap": 1e9}))
    assert torch.equal(loss_of("decoupled", f1()), loss_of("clip", f1()))
    first = replace(view, logp=logs(OLD))  # one update: importance-weighted policy gradient
    rho = (logs(OLD) - logs(ROLLOUT)).exp()
    check_close(loss_of("decoupled", first), (-A * rho * MASK).tolist())


def rover(logp: list[float], old: list[float], change: list[float], reward: float) -> TokenView:
    one = torch.ones(1, 2)
    streams = {"mean_logp": torch.tensor([change]), "old_mean_logp": torch.zeros(1, 2)}
    tensors = {"logp": logs([logp]), "old_logp": logs([old]), "behaviour_logp": logs([old])}
    return TokenView(**tensors, known=one, weight=one, advantages=reward * one, streams=streams)


ROVER = ([0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1])


def test_rover() -> None:
    view = rover([0.75, 0.18], [0.5, 0.2], [7.0, -0.1], 0.5)  # the first token's own mean is in no target
    loss = loss_of("rover", view)
    check_close(loss.mean(), 0.183246)
    check_close(loss_of("rover", replace(view, weight=torch.tensor([[1.0, 0.0]])))[0, 0], (log(1.5) - 0.5) ** 2)
    bad = replace(view, streams={**view.streams, "old_mean_logp": torch.tensor([[0.0, float("nan")]])})
    check_close(loss_of("rover", bad)[0], [(log(1.5) - 0.5) ** 2, 0.0])  # the next token is left out: no next value


def test_rovers_next_value() -> None:
    """V = 4: from (.4, .3, .2, .1) to (.7, .1, .1, .1) the mean log-prob falls by .308036."""
    new, old = (float(reduction("mean_logp")(logs([p]), torch.zeros(1, dtype=torch.long))) for p in ROVER)
    assert (new, old) == (pytest.approx(-1.816108, abs=1e-6), pytest.approx(-1.508072, abs=1e-6))
    view = rover([0.75, 0.18], [0.5, 0.2], [0.0, new], 0.5)
    view = replace(view, streams={**view.streams, "old_mean_logp": torch.tensor([[0.0, old]])})
    loss, said = make(OBJECTIVE, "rover", {}).loss(view)
    check_close(said["next_value"], [[-0.308036, 0.0]])
    check_close(loss, [[(log(1.5) - 0.5 + 0.308036) ** 2, (log(0.9) - 0.5) ** 2]])
    twice = make(OBJECTIVE, "rover", {"rho": 2.0}).loss(view)[0]
    check_close(twice[0, 0], (2 * log(1.5) - 0.5 + 2 * 0.308036) ** 2)


def test_rover_at_the_old_weights_is_reinforce_doubled() -> None:
    view = rover([0.5, 0.2], [0.5, 0.2], [0.0, 0.0], 0.7)
    logp = view.logp.clone().requires_grad_()
    loss = loss_of("rover", replace(view, logp=logp))
    loss.sum().backward()
    check_close(loss, [[0.49, 0.49]])
    check_close(logp.grad, [[-1.4, -1.4]])


# --- objectives over groups -------------------------------------------------------------------------------------------


def rows_of(*, rewards: list[float], groups: list[int] | None = None, **streams: list[list[float]]) -> list[Row]:
    """The rows of F1 (or rows of one token) behind a prompt of one token; probabilities by stream."""
    out = []
    for i, reward in enumerate(rewards):
        n = 3 if i == 0 and len(streams["old_logp"][0]) == 3 else len(streams["old_logp"][i])
        n = 2 if len(streams["old_logp"][0]) == 3 and i == 1 else n
        weight = np.array([0.0] + [1.0] * n, np.float32)
        named = {name: np.array([0.0, *np.log(values[i][:n])], np.float32) for name, values in streams.items()}
        zeros = np.zeros(n + 1, np.float32)
        out.append(
            Row(
                key=f"0/{i}",
                group=groups[i] if groups else 0,
                tokens=np.zeros(n + 1, np.int32),
                weight=weight,
                logprobs=zeros,
                version=np.zeros(n + 1, np.int32),
                temperature=zeros + 1,
                advantages=zeros,
                streams=named,
                task="t",
                reward=reward,
            )
        )
    return out


def knobs_of(method: Any, rows: list[Row], logps: list[list[float]]) -> Knobs:
    # what stands on the prompt is in no score
    stats = [
        {"logp": np.array([5.0, *np.log(p[: len(r.weight) - 1])], np.float32)} for r, p in zip(rows, logps, strict=True)
    ]
    return method.knobs(Update(rows=rows, stats=stats, update=0, step=0, seed=0, clip=(0.2, 0.2)))


def slopes(knobs: Knobs) -> list[float]:
    assert knobs.marks is not None
    assert all(len(set(mark.tolist())) == 1 for mark in knobs.marks)
    return [float(mark[-1]) for mark in knobs.marks]


def test_pacs() -> None:
    rows = rows_of(rewards=[1.0, 0.0], old_logp=OLD)
    knobs = knobs_of(make(OBJECTIVE, "pacs", {}), rows, NEW)
    assert knobs.metrics["loss"] == pytest.approx(0.908856, abs=1e-6)
    error = 1 / (1 + np.exp(0.393043))  # sigmoid of psi = -+.393043, less R
    assert slopes(knobs) == pytest.approx([2 * (error - 1), 2 * (1 - error)], abs=1e-6)
    start = knobs_of(make(OBJECTIVE, "pacs", {}), rows, OLD)
    assert start.metrics["loss"] == pytest.approx(log(2), abs=1e-6)
    # dL/dpsi = (.5 - R) and psi = +-(s_0 - s_1): both rows' terms meet in each slope
    assert slopes(start) == pytest.approx([-1.0, 1.0], abs=1e-6)


def test_pacs_balances_classes() -> None:
    rows = rows_of(rewards=[1.0, 0.0, 0.0, 0.0], old_logp=[[0.5]] * 4)
    knobs = knobs_of(make(OBJECTIVE, "pacs", {}), rows, [[0.5]] * 4)
    at = slopes(knobs)
    assert knobs.metrics["loss"] == pytest.approx(log(2), abs=1e-6)  # (2 + 3 * 2/3) / 4; the slopes are blind to a swap
    error = np.array([-0.5 * 2, *[0.5 * 2 / 3] * 3])
    assert at == pytest.approx((error - (error.sum() - error) / 3).tolist(), abs=1e-6)
    two = rows_of(rewards=[1.0, 1.0, 0.0], old_logp=[[0.5]] * 3)
    error = np.array([-0.5 * 3 / 4, -0.5 * 3 / 4, 0.5 * 3 / 2])
    at = slopes(knobs_of(make(OBJECTIVE, "pacs", {}), two, [[0.5]] * 3))
    assert at == pytest.approx((error - (error.sum() - error) / 2).tolist(), abs=1e-6)


def test_pacs_weighs_alike_without_balance_and_where_there_is_one_class() -> None:
    """At the old weights every term is ln 2; a single class would otherwise count half."""
    for options, rewards in (({"balance": False}, [1.0, 0.0, 0.0, 0.0]), ({}, [0.0] * 4), ({}, [1.0] * 4)):
        rows = rows_of(rewards=rewards, old_logp=[[0.5]] * 4)
        knobs = knobs_of(make(OBJECTIVE, "pacs", options), rows, [[0.5]] * 4)
        error = 0.5 - np.array(rewards)
        assert knobs.metrics["loss"] == pytest.approx(log(2), abs=1e-6)
        assert slopes(knobs) == pytest.approx((error - (error.sum() - error) / 3).tolist(), abs=1e-6)


def test_pacs_leaves_out_rewards_that_are_not_binary_and_counts_them() -> None:
    rows = rows_of(rewards=[1.0, 0.0, 0.3], old_logp=[[0.5]] * 3)
    knobs = knobs_of(make(OBJECTIVE, "pacs", {}), rows, [[0.4]] * 3)
    assert slopes(knobs)[2] == 0 and all(slopes(knobs)[:2]) and knobs.metrics["rewards_not_binary"] == 1


def of_ratio(*ratios: float) -> list[list[float]]:
    return [[0.3 * float(np.exp(r))] for r in ratios]


def test_tba() -> None:
    rows = rows_of(rewards=[1.0, 0.0], old_logp=[[0.3]] * 2, ref_logp=[[0.3]] * 2)
    knobs = knobs_of(make(OBJECTIVE, "tba", {"beta": 0.5}), rows, of_ratio(0.4, -0.2))
    assert knobs.metrics["log_z"] == pytest.approx(0.9, abs=1e-6)
    assert knobs.metrics["loss"] == pytest.approx(0.49, abs=1e-6)
    assert [s / 2 for s in slopes(knobs)] == pytest.approx([-0.7, 0.7], abs=1e-6)  # / rows: the reduction's part
    same = rows_of(rewards=[1.0, 1.0], old_logp=[[0.3]] * 2, ref_logp=[[0.3]] * 2)
    assert slopes(knobs_of(make(OBJECTIVE, "tba", {}), same, of_ratio(0.0, 0.0))) == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize(("right", "value"), [(1, 0.293513), (2, 0.477229), (8, 1.0), (0, 0.0)])
def test_optimal_value(right: int, value: float) -> None:
    rewards = [1.0] * right + [0.0] * (8 - right)
    assert optimal_value(rewards, beta=0.5) == pytest.approx(value, abs=1e-6)
    assert optimal_value(rewards, beta=0.0) == pytest.approx(right / 8)
    assert optimal_value([1e4, 0.0], beta=1e-3) == pytest.approx(1e4, rel=1e-6)  # no overflow
    assert optimal_value([], beta=0.5) is None


@pytest.mark.parametrize(
    ("gap", "reward", "loss", "slope"),
    [(0.0, 1.0, 0.499124, -0.00141297), (0.0, 0.0, 0.086150, 0.00058703), (2.0, 1.0, 0.496302, -0.00140897)],
)
def test_a_star_po(gap: float, reward: float, loss: float, slope: float) -> None:
    method = make(OBJECTIVE, "a_star_po", {})
    method.load_state_dict({"values": {"t": 0.293513}})
    rows = rows_of(rewards=[reward], old_logp=[[0.3]], ref_logp=[[0.3]])
    knobs = knobs_of(method, rows, of_ratio(gap))
    assert knobs.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert slopes(knobs) == pytest.approx([slope], abs=1e-8)
    without = make(OBJECTIVE, "a_star_po", {})
    assert slopes(knobs_of(without, rows, of_ratio(0.0))) == [0.0]
    assert knobs_of(without, rows, of_ratio(0.0)).metrics["rows_without_value"] == 1


def test_a_star_po_samples_every_task_before_the_first_step() -> None:
    method = make(OBJECTIVE, "a_star_po", {"n": 3})
    asyncio.run(method.prepare(ToyContext(tasks=[Task(str(i), "?", "!") for i in range(5)])))
    assert sorted(method.values) == list("01234")
    possible = {round(optimal_value([1.0] * k + [0.0] * (3 - k), beta=0.5) or 0.0, 6) for k in range(4)}
    assert {round(v, 6) for v in method.values.values()} <= possible
    assert method.observe([], {})["values"] == 5


GROUPED = [
    ("pacs", {"beta": 0.7}, "old_logp"),
    ("tba", {"beta": 0.5}, "ref_logp"),
    ("a_star_po", {"beta2": 0.3}, "ref_logp"),
]


@pytest.mark.parametrize(("kind", "options", "minus"), GROUPED)
def test_slopes_are_derivatives_of_the_objective(kind: str, options: dict, minus: str) -> None:
    """Two groups, of three and of two rows: c_i / rows is dL/ds_i, by central differences."""
    method = make(OBJECTIVE, kind, options)
    if kind == "a_star_po":
        method.load_state_dict({"values": {"t": 0.2}})
    rng = np.random.default_rng(0)
    given = {"old_logp": rng.uniform(0.2, 0.4, (5, 1)).tolist(), minus: rng.uniform(0.2, 0.4, (5, 1)).tolist()}
    rows = rows_of(rewards=[1.0, 0.0, 0.0, 1.0, 0.0], groups=[0, 0, 0, 1, 1], **given)
    logp = np.log(rng.uniform(0.2, 0.4, 5))

    def value(at: np.ndarray) -> float:
        stats = [{"logp": np.array([0.0, v])} for v in at]
        update = Update(rows=rows, stats=stats, update=0, step=0, seed=0, clip=(0.2, 0.2))
        return method.knobs(update).metrics["loss"]

    at = slopes(knobs_of(method, rows, np.exp(logp)[:, None].tolist()))
    if kind == "tba":  # log Z is detached, but its own derivative sums to 0 over a group: the same gradient
        assert sum(at[:3]) == pytest.approx(0.0, abs=1e-5)
    for i in range(5):
        step = 1e-5 * np.eye(5)[i]
        difference = (value(logp + step) - value(logp - step)) / 2e-5
        assert at[i] / 5 == pytest.approx(difference, rel=1e-4, abs=1e-6)


# --- what a recipe already says ---------------------------------------------------------------------------------------


def told(tmp_path: Path, **changes: Any) -> list[str]:
    from tests.unit.test_check import told

    return [line for line in told(tmp_path, **changes) if line.startswith("error")]


NONE = {"correction": {"kind": "none"}}


@pytest.mark.parametrize("kind", ["decoupled", "pacs", "tba", "a_star_po"])
def test_a_correction_that_would_count_twice_or_mean_nothing_is_refused(kind: str, tmp_path: Path) -> None:
    (line,) = told(tmp_path, objective={"kind": kind})
    assert f"'{kind}' takes no correction: " in line and "set objective.correction.kind: none" in line
    assert told(tmp_path, objective={"kind": kind} | NONE) == []


def test_a_group_objective_refuses_selections_advantages_and_other_reductions(tmp_path: Path) -> None:
    objective = {"kind": "pacs"} | NONE
    for kind in ("clip_cov", "kl_cov", "lp_reg", "forking_tokens", "entropy_advantage", "egsw"):
        (line,) = told(tmp_path, objective=objective, explore=[{"kind": kind}])
        assert line.startswith(f"error explore.0: '{kind}' ") and "objective 'pacs' is over whole groups" in line
    (line,) = told(tmp_path, objective=objective, explore=[{"kind": "effective_rank"}])
    assert line.startswith("error explore.0: 'effective_rank' changes advantages, which objective 'pacs' does not use")
    (line,) = told(tmp_path, objective=objective | {"reduction": "token"})
    assert "remove the line" in line
    (line,) = told(tmp_path, objective=objective, overlong={"kind": "shape", "buffer": 4})
    assert "needs rewards of 0 and 1" in line
    (line,) = told(tmp_path, objective=objective, kl={"coef": 0.1, "where": "reward", "estimator": "k1"})
    assert "needs rewards of 0 and 1" in line
    assert told(tmp_path, objective=objective, kl={"coef": 0.1}) == []


def test_a_group_of_one_is_for_objectives_that_compare_nothing(tmp_path: Path) -> None:
    assert told(tmp_path, objective={"kind": "a_star_po"} | NONE, group=1) == []
    assert told(tmp_path, objective={"kind": "tba"} | NONE, group=2) == []
    (line,) = told(tmp_path, objective={"kind": "tba"} | NONE, group=1)
    assert line.startswith("error objective: 'tba' compares the responses of a group")


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 50}])
def test_a_truncated_sampler_with_an_uncorrected_ratio_is_refused(sampling: dict, tmp_path: Path) -> None:
    (line,) = told(tmp_path, sampling=sampling, objective=NONE)
    assert line.startswith("error objective.correction.kind: got 'none' with a truncated sampler")
    assert told(tmp_path, sampling=sampling) == []
    assert told(tmp_path, sampling=sampling, objective={"kind": "decoupled"} | NONE) == []
