"""Corrections against the numbers of two rows of three tokens (F1), worked by hand in `specs`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlvr.methods import CORRECTION
from tests.unit.conformance import make
from tests.unit.test_objectives import OLD, ROLLOUT, A, f1, logs
from tests.unit.test_objectives import close as check_close
from tests.unit.test_surrogate_numbers import loss_of, total

CASES: list[tuple[str, dict, list, float | None]] = [
    ("tis", {}, [[-1.2, -1.8, -1.0], [0.64, 1.0, 0.0]], -0.472),
    ("icepop", {}, [[-1.2, -3.6, -1.0], [0.64, 0.0, 0.0]], -1.032),
    ("sequence_tis", {"cap": 10.0}, [[-4.8, -3.6, -4.0], [0.16, 0.8, 0.0]], None),
    ("sequence_tis", {}, [[-2.4, -1.8, -2.0], [0.16, 0.8, 0.0]], None),
    ("sequence_mis", {}, [[0.0, 0.0, 0.0], [0.16, 0.8, 0.0]], None),
    ("sequence_mis", {"cap": 4.1}, [[-4.8, -3.6, -4.0], [0.16, 0.8, 0.0]], None),
    ("geometric", {"low": 0.4, "high": 1.5}, [[0.0, 0.0, 0.0], [0.64, 1.0, 0.0]], None),
    ("geometric", {"low": 0.5, "high": 1.6}, [[-1.2, -3.6, -1.0], [0.0, 0.0, 0.0]], None),
    ("geometric", {"low": 0.447213, "high": 1.587402}, [[-1.2, -3.6, -1.0], [0.64, 1.0, 0.0]], None),
    ("geometric", {"low": 0.447215, "high": 1.587400}, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], None),
    ("veto", {"floor": 0.3}, [[-1.2, -1.8, -1.0], [0.0, 0.0, 0.0]], None),
    ("veto", {}, [[-1.2, -1.8, -1.0], [0.64, 1.0, 0.0]], -0.472),
]


@pytest.mark.parametrize(("kind", "options", "losses", "mean"), CASES)
def test_corrected_losses(kind: str, options: dict, losses: list, mean: float | None) -> None:
    view = f1(behaviour_logp=logs(ROLLOUT))
    loss = loss_of("clip", view, kind, fix=options)
    check_close(loss, losses, tol=2e-6)
    if mean is not None:  # rejected tokens stay in the denominator: 5 tokens, not 4
        check_close(total(loss, "token"), mean)


def test_off_policy_mask() -> None:
    # row 1 (A < 0): behaviour .5, .4 against the current .2, .4: a mean gap of log(2.5) / 2 = .458
    view = f1(behaviour_logp=logs(ROLLOUT))
    check_close(loss_of("clip", view, "off_policy_mask"), loss_of("clip", view).tolist())
    check_close(loss_of("clip", view, "off_policy_mask", fix={"delta": 0.45}), [[-1.2, -0.9, -1.0], [0.0, 0.0, 0.0]])
    good = replace(view, advantages=-A)
    check_close(loss_of("clip", good, "off_policy_mask", fix={"delta": 0.45})[1], loss_of("clip", good)[1].tolist())


def test_off_policy_mask_looks_at_known_tokens_alone() -> None:
    """Row 1 without its first token has a gap of log(.4 / .4) = 0."""
    view = f1(behaviour_logp=logs(ROLLOUT), known=torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
    check_close(loss_of("clip", view, "off_policy_mask", fix={"delta": 0.1})[1], [0.8, 4.0, 0.0])
    view = replace(view, known=torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))  # and log 2.5 = .916 with it alone
    check_close(loss_of("clip", view, "off_policy_mask", fix={"delta": 0.9})[1], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", [k for k in CORRECTION.kinds if k != "none"])
def test_weights_stay_finite_where_sampler_and_trainer_have_nothing_in_common(kind: str, sign: float) -> None:
    """Log-ratios of 1,000 on every token: products over a row would overflow."""
    view = f1(behaviour_logp=logs(OLD) - sign * 1000.0)
    weights, metrics = make(CORRECTION, kind, {}).weights(view)
    assert weights.isfinite().all() and all(m.isfinite().all() for m in metrics.values())
    assert loss_of("clip", view, kind).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("icepop", {"low": 1.0, "high": 1.0}), ("geometric", {"low": 1.0, "high": 1.0}), ("sequence_mis", {"cap": 1.0})],
)
def test_the_ends_of_a_window_are_in_it(kind: str, options: dict) -> None:
    weights, metrics = make(CORRECTION, kind, options).weights(f1())
    check_close(weights, torch.ones(2, 3).tolist(), tol=0)
    assert not metrics["correction_rejected"].any()


def test_windows_must_hold_1() -> None:
    for kind in ("icepop", "geometric"):
        with pytest.raises(ValueError, match="must hold 1"):
            make(CORRECTION, kind, {"low": 1.5})
