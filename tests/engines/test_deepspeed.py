"""The DeepSpeed rank with real DeepSpeed: one process with one rank, two with two; see deepspeed_ranks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlvr.engine.deepspeed_setup import free_port
from tests.engines.deepspeed_ranks import STEPS
from tests.engines.tiny import tiny_model

pytestmark = pytest.mark.engines
ROOT = Path(__file__).parents[2]
ONE = (
    "training:zero0", "training:zero2", "training:zero3", "training:zero2_offload", "training:bf16_zero0",
    "training:bf16_zero2", "training:bf16_zero3", "plain:zero0", "plain:zero3", "state:zero0", "noise:zero0",
    "memory:zero0", "unlearning:zero0", "unlearning:zero2_offload", "unlearning:bf16_zero0",
)  # fmt: skip
TWO = (
    "training:zero0", "training:zero1", "training:zero2", "training:zero3", "training:zero3_offload",
    "training:bf16_zero3", "state:zero0", "state:zero2", "state:zero3", "noise:zero2", "noise:zero3",
    "reference:zero2", "reference:zero3", "memory:zero3", "unlearning:zero0", "unlearning:zero1", "unlearning:zero2",
    "unlearning:zero3", "unlearning:zero3_kept", "unlearning:bf16_zero2", "unlearning:bf16_zero3",
)  # fmt: skip
Seen = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    tiny_model(path / "model", vocab=128)
    for kind in ("tied", "untied"):
        tiny_model(path / kind, tied=kind == "tied", vocab=512, width=32)
    return path


def run(folder: Path, world: int, sections: tuple[str, ...]) -> Seen:
    """What rank 0 saw; every rank must end well."""
    port, path = str(free_port()), {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.engines.deepspeed_ranks"]
    logs = [(folder / f"{world}-{rank}.log").open("wb") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), port, str(folder), *sections],
            cwd=ROOT, env=os.environ | path, stdout=log, stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    try:
        codes = [p.wait(timeout=280) for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    for log in logs:
        log.close()
    assert codes == [0] * world, "\n".join((folder / f"{world}-{r}.log").read_text()[-3000:] for r in range(world))
    return json.loads((folder / f"{world}-0.json").read_text())


@pytest.fixture(scope="module")
def one(folder: Path) -> Seen:
    return run(folder, 1, ONE)


@pytest.fixture(scope="module")
def two(folder: Path) -> Seen:
    return run(folder, 2, TWO)


def same(a: Seen, b: Seen, tolerance: float) -> None:
    """Equal metrics of every update, and equal weights in the end."""
    for mine, theirs in zip(a["metrics"], b["metrics"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name] == pytest.approx(theirs[name], abs=tolerance, rel=tolerance), name
    np.testing.assert_allclose(a["weights"], b["weights"], atol=tolerance)


def test_updates_move_the_weights_and_report_what_they_did(one: Seen) -> None:
    metrics = one["training:zero0"]["whole"]["metrics"]
    assert len(metrics) == STEPS + 1
    assert metrics[0]["tokens"] == metrics[1]["tokens"] > 50
    assert metrics[0]["gap_max"] > metrics[0]["gap_mean"] > 0 and "gap_max" not in metrics[1]
    assert metrics[0]["grad_norm"] > 2.0  # so that clipping is at work
    assert {"clip_low", "clip_high", "ratio", "entropy", "loss", "sft_loss", "nonfinite_tokens"} <= metrics[0].keys()
    assert 0 < metrics[0]["entropy"] < np.log(128) and metrics[2]["sft_loss"] < metrics[0]["sft_loss"]
    assert all(m["skipped_updates"] == 0 for m in metrics)


@pytest.mark.parametrize("stage", ["zero0", "zero3"])
def test_updates_are_those_of_plain_torch(one: Seen, stage: str) -> None:
    seen = one[f"plain:{stage}"]
    assert [m["grad_norm"] for m in seen["metrics"]] == pytest.approx(seen["norms"], rel=1e-5)
    np.testing.assert_allclose(seen["weights"], seen["expected"], atol=1e-5)


@pytest.mark.parametrize("stage", ["zero2", "zero3", "zero2_offload"])
def test_zero_stages_agree(one: Seen, stage: str) -> None:
    same(one["training:zero0"]["whole"], one[f"training:{stage}"]["whole"], 1e-5)


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("split", ["whole", "split"])
def test_two_ranks_are_one(one: Seen, two: Seen, stage: str, split: str) -> None:
    same(one["training:zero0"]["whole"], two[f"training:{stage}"][split], 1e-5)


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3", "zero2_offload"])
def test_micro_batches_add_up(one: Seen, stage: str) -> None:
    same(one[f"training:{stage}"]["whole"], one[f"training:{stage}"]["split"], 1e-5)


@pytest.mark.parametrize("stage", ["bf16_zero0", "bf16_zero2", "bf16_zero3"])
def test_bfloat16_follows_float32(one: Seen, stage: str) -> None:
    exact = one["training:zero0"]["whole"]
    for split in ("whole", "split"):
        rough = one[f"training:{stage}"][split]
        for mine, theirs in zip(rough["metrics"], exact["metrics"], strict=True):
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.03)
            assert mine["sft_loss"] == pytest.approx(theirs["sft_loss"], rel=0.01)
        np.testing.assert_allclose(rough["weights"], exact["weights"], atol=6e-3)


def test_bfloat16_zero_stages_agree(one: Seen, two: Seen) -> None:
    # rotary frequencies rounded to bfloat16 under ZeRO-3 show here
    first = {s: one[f"training:{s}"]["whole"]["metrics"][0]["entropy"] for s in ("bf16_zero2", "bf16_zero3")}
    assert first["bf16_zero2"] == pytest.approx(first["bf16_zero3"], abs=1e-6)
    ranks = two["training:bf16_zero3"]["whole"]["metrics"][0]["entropy"]
    assert ranks == pytest.approx(first["bf16_zero3"], abs=1e-4)


@pytest.mark.parametrize(("world", "stage"), [(1, "zero0"), (2, "zero0"), (2, "zero2"), (2, "zero3")])
def test_resume_is_exact(one: Seen, two: Seen, world: int, stage: str) -> None:
    seen = (one if world == 1 else two)[f"state:{stage}"]
    assert seen["first"] == seen["again"] == seen["fresh"]
    assert seen["weights"] == seen["weights_again"] == seen["weights_fresh"]


@pytest.mark.parametrize(("world", "stage"), [(1, "zero0"), (2, "zero0"), (2, "zero2"), (2, "zero3")])
def test_a_gradient_that_is_not_finite_changes_nothing(one: Seen, two: Seen, world: int, stage: str) -> None:
    seen = (one if world == 1 else two)[f"state:{stage}"]
    assert seen["poison"]["skipped_updates"] == 1 and seen["unpoisoned"]
    assert seen["after_poison"] == seen["first"] and seen["weights_after_poison"] == seen["weights"]


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_exports_load_in_transformers(two: Seen, folder: Path, stage: str) -> None:
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(folder / f"{stage}-2" / "export")
    flat = [x for p in lm.parameters() for x in p.detach().flatten().tolist()]
    assert flat == two[f"state:{stage}"]["weights"]
    assert (folder / f"{stage}-2" / "model" / "model.safetensors").is_file()  # the checkpoint carries one, too


@pytest.mark.parametrize(("world", "stage"), [(1, "zero0"), (2, "zero2"), (2, "zero3")])
def test_perturb_and_back(one: Seen, two: Seen, world: int, stage: str) -> None:
    seen = (one if world == 1 else two)[f"noise:{stage}"]
    assert np.abs(np.subtract(seen["moved"], seen["scores"])).max() > 0.01
    assert seen["exact"] and seen["scores_exact"] and seen["undisturbed"]
    np.testing.assert_allclose(seen["perturbed"], one["noise:zero0"]["perturbed"], atol=1e-5)


UNLEARNING = [s.split(":")[1] for s in (*ONE, *TWO) if s.startswith("unlearning:")]


@pytest.mark.parametrize(("world", "stage"), [(1 if i < 3 else 2, stage) for i, stage in enumerate(UNLEARNING)])
def test_unlearning_leaves_the_trainer_as_it_was(one: Seen, two: Seen, world: int, stage: str) -> None:
    seen, first = (one if world == 1 else two)[f"unlearning:{stage}"], one["unlearning:zero0"]["whole"]
    exact = not stage.startswith("bf16")
    for split in ("whole", "split"):
        step = seen[split]
        assert step["p_after"] < 0.95 * step["p_before"]  # the sign: descent makes the rows less likely
        assert step["p_before"] == pytest.approx(first["p_before"], rel=1e-5 if exact else 0.01)
        assert step["p_after"] == pytest.approx(first["p_after"], rel=1e-5 if exact else 0.05)
        assert np.abs(np.subtract(step["moved"], seen["scores"])).max() > 0.01
        if exact:
            np.testing.assert_allclose(step["weights"], first["weights"], atol=1e-6)
        assert step["exact"] and step["untouched"]
    assert seen["undisturbed"]


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_the_reference_stays(two: Seen, stage: str) -> None:
    seen = two[f"reference:{stage}"]
    np.testing.assert_allclose(seen["reference"], seen["start"], atol=1e-6)
    assert np.abs(np.subtract(seen["policy"], seen["reference"])).max() > 1e-3


@pytest.mark.parametrize(("world", "stage"), [(1, "zero0"), (2, "zero3")])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_only_chunks_of_logits_exist(one: Seen, two: Seen, world: int, stage: str, kind: str) -> None:
    seen = (one if world == 1 else two)[f"memory:{stage}"][kind]
    assert seen["asked"] > 5 * seen["chunk"]
    # the head's own weight (or its gradient) has 32 rows where it is seen transposed
    assert seen["rows_of_logits"] <= max(seen["chunk"], 32)
    assert seen["kept"] <= 32 < seen["asked"]
    assert seen["rows_unchunked"] > 2 * seen["rows_of_logits"]  # the probe can see them
    assert seen["kept_unchunked"] >= seen["asked"] // 2
