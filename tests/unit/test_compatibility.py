"""What `rlvr check` says of methods that cannot stand together, or that do nothing as the recipe has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr.update import merge
from tests.unit.test_check import told

PLAIN = {"objective": {"correction": {"kind": "none"}}}
SEVERAL = {"minibatches": 4}


def said(tmp_path: Path, **changes: Any) -> str:
    return "\n".join(told(tmp_path, **changes))


@pytest.mark.parametrize("objective", [{"kind": "clip"}, {"kind": "pacs", "correction": {"kind": "none"}}])
def test_a_group_of_one_says_nothing_unless_an_add_on_lets_it_grow(tmp_path: Path, objective: dict[str, Any]) -> None:
    one: dict[str, Any] = {"group": 1, "keep": "all", "objective": objective} | SEVERAL
    assert "group >= 2, got 1" in said(tmp_path, **one)
    assert "group >= 2, got 1" in said(tmp_path, **one, explore=[{"kind": "entropy_bonus"}])
    assert "group >= 2, got 1" not in said(tmp_path, **one, explore=[{"kind": "treerl"}])


@pytest.mark.parametrize("kind", ["gspo", "gmpo", "sapo", "cispo", "delta_clip"])
def test_an_objective_on_ratios_says_that_one_update_is_not_enough(tmp_path: Path, kind: str) -> None:
    assert f"warning objective: {kind!r} does nothing of its own" in said(tmp_path, objective={"kind": kind})
    assert said(tmp_path, objective={"kind": kind}, **SEVERAL) == ""
    assert said(tmp_path, objective={"kind": kind}, epochs=2) == ""


def test_kl_cov_says_that_one_update_is_not_enough(tmp_path: Path) -> None:
    cov = [{"kind": "kl_cov"}]
    assert "warning explore.0: 'kl_cov' does nothing of its own with one update a step" in said(tmp_path, explore=cov)
    assert said(tmp_path, explore=cov, **SEVERAL) == ""


@pytest.mark.parametrize("addon", ["clip_cov", "forking_tokens", "entropy_advantage"])
def test_tokens_picked_under_a_ratio_of_the_response_are_warned_of(tmp_path: Path, addon: str) -> None:
    for objective in ({"kind": "gspo"}, {"kind": "gmpo"}):
        found = said(tmp_path, objective=objective, explore=[{"kind": addon}], **SEVERAL)
        assert f"warning explore.0: {addon!r} acts on single tokens" in found
    token = {"kind": "gspo", "token": True}
    assert said(tmp_path, objective=token, explore=[{"kind": addon}], **SEVERAL) == ""


@pytest.mark.parametrize("addon", ["forking_tokens", "egsw"])
def test_an_advantage_of_zero_is_a_target_for_rover(tmp_path: Path, addon: str) -> None:
    found = said(tmp_path, objective={"kind": "rover"}, explore=[{"kind": addon}], **SEVERAL)
    assert "error objective: 'rover' regresses on the advantage" in found
    assert said(tmp_path, objective={"kind": "rover"}, explore=[{"kind": "clip_cov"}], **SEVERAL) == ""


@pytest.mark.parametrize("kind", ["none", "off_policy_mask"])
def test_a_truncated_sampler_wants_a_ratio(tmp_path: Path, kind: str) -> None:
    cut = {"top_p": 0.9}
    assert "with a truncated sampler" in said(tmp_path, sampling=cut, objective={"correction": {"kind": kind}})
    assert "with a truncated sampler" not in said(tmp_path, sampling=cut, objective={"correction": {"kind": "tis"}})


@pytest.mark.parametrize(
    "changes",
    [
        {"overlong": {"kind": "shape", "buffer": 64}},
        {"kl": {"coef": 0.1, "where": "reward", "estimator": "k1"}},
        {"kl": {"coef": 0.0}, "reference": {"update": "every", "steps": 5}},
    ],
)
def test_a_star_po_compares_with_values_of_raw_scores_of_a_reference_that_stands(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    base: dict[str, Any] = {"objective": {"kind": "a_star_po", "correction": {"kind": "none"}}} | SEVERAL
    assert "'a_star_po'" not in said(tmp_path, **base)
    assert "error objective: 'a_star_po' compares" in said(tmp_path, **base | changes)


def test_rows_that_an_update_left_out_are_counted_over_the_step() -> None:
    key = "objective/rewards_not_binary"
    assert merge([{key: 2.0}, {key: 1.0}]) == {key: 3.0}
    key = "train/sft_tokens"
    assert merge([{key: 3.0, "train/tokens": 9.0}, {key: 1.0, "train/tokens": 1.0}])[key] == 4.0
    key = "objective/rows_without_value"
    assert merge([{key: 0.0}, {key: 4.0}]) == {key: 4.0}
