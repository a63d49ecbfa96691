"""A reference that moves, with real DeepSpeed: resets, averages, and what a checkpoint keeps of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engines.test_deepspeed import Seen, run
from tests.engines.tiny import tiny_model

pytestmark = pytest.mark.engines
ONE = ("moving:zero0", "moving:zero1", "moving:bf16_zero2")
TWO = ("moving:zero0", "moving:zero2", "moving:zero3", "moving:zero3_offload", "moving:bf16_zero3", "moving:zero3_kept")
CASES = [(1, name) for name in ONE] + [(2, name) for name in TWO]
every_case = pytest.mark.parametrize(("world", "section"), CASES)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Seen]:
    path: Path = tmp_path_factory.mktemp("references")
    tiny_model(path / "model", vocab=128)
    return {1: run(path, 1, ONE), 2: run(path, 2, TWO)}


@every_case
def test_an_average_is_the_formulas(seen: dict[int, Seen], world: int, section: str) -> None:
    out, exact = seen[world][section], "bf16" not in section
    start, theta = np.array(out["start"]), np.array(out["theta"])
    once = 0.25 * theta + 0.75 * start
    assert np.abs(theta - start).max() > 1e-3
    np.testing.assert_allclose(out["averaged"], once, rtol=0 if exact else 2**-8, atol=1e-6)
    np.testing.assert_allclose(out["averaged_twice"], 0.25 * theta + 0.75 * once, rtol=0 if exact else 2**-8, atol=1e-6)
    assert max(out["moments_kept"]) == 3  # the step count


@every_case
def test_a_reference_that_moved_is_restored_bit_for_bit(seen: dict[int, Seen], world: int, section: str) -> None:
    out = seen[world][section]
    assert out["restored"] == out["averaged"] == out["fresh"] != out["averaged_twice"]
    assert out["restored_and_averaged"] == out["averaged_twice"] == out["fresh_and_averaged"]


@every_case
def test_after_a_reset_policy_and_reference_are_one(seen: dict[int, Seen], world: int, section: str) -> None:
    out = seen[world][section]
    assert out["reset"] == out["theta"]
    assert out["scores"][0] == out["scores"][1]
    assert out["moments"] and set(out["moments"]) == {0.0}


@every_case
def test_after_a_reset_kl_and_its_gradient_are_nothing(seen: dict[int, Seen], world: int, section: str) -> None:
    apart, together = seen[world][section]["apart"], seen[world][section]["together"]
    assert apart["ref_kl"] > 1e-5 and apart["grad_norm"] > 1e-3 and apart["zero_updates"] == 0
    assert together["ref_kl"] < 1e-9 * apart["ref_kl"] + 1e-12
    assert together["grad_norm"] < 1e-3 * apart["grad_norm"]
