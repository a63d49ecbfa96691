"""The whole loop with real engines: a run, killed and resumed, with lag, with two ranks, with parts that die."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import psutil
import pytest

from tests.engines.project import Project, make_project

pytestmark = pytest.mark.timeout(600)  # several starts of all engines in one test
BLOCK = 32  # of the CPU sampler's cache
TIMELESS = ("metrics.jsonl", "rollouts.jsonl", "evals.jsonl")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def whole(project: Project) -> Project:
    """An uninterrupted synchronous run of six steps, `runs/whole`."""
    status, out = project.rlvr("train", "r.yaml")
    assert status == 0, out
    return project


def test_a_run_writes_what_it_promises(whole: Project) -> None:
    metrics = whole.lines("whole", "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert max(line["train/gap_max"] for line in metrics) < 1e-3  # scored by the weights that sampled them
    assert max(line["lag/max"] for line in metrics) == 0
    assert sum(line["clip_cov/active"] for line in metrics) > 0
    assert metrics[-1]["train/ref_kl"] > 0
    rollouts = whole.lines("whole", "rollouts.jsonl")
    assert {line["draw"] for line in rollouts} == set(range(len(rollouts)))  # every group, dropped ones too
    assert sum(line["groups/dropped"] for line in metrics) == sum(bool(line["dropped"]) for line in rollouts)
    assert [line["step"] for line in whole.lines("whole", "evals.jsonl")] == [0, 3, 6]
    folder = whole.path / "runs" / "whole"
    assert (folder / "recipe.yaml").exists() and list((folder / "tensorboard").iterdir())
    assert (folder / "checkpoints" / "step-000006" / "manifest.json").exists()


def test_a_trees_metrics_tell_what_its_samplers_did(project: Project) -> None:
    words = ("run=trees", "steps=3", "evaluate.every=0", "checkpoint.every=0", "sampling.max_tokens=80", "keep=all")
    status, out = project.rlvr("train", "r.yaml", *words, "explore=[{kind: treerl, n: 1, t: 2}]")
    assert status == 0, out
    lines = [json.loads(line) for line in (project.path / "runs/trees/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["time/decoded"] == line["sampled/tokens"] == line["treerl/decoded"]
        assert line["treerl/saved"] > 0
        assert 1 < line["time/running"] <= 8 * 4 * 2  # every prompt's branches at once
        assert 0 < line["time/sampling"] <= line["time/generate"]
        assert 0 <= line["time/prefix_share"] < 1
    rollouts = project.lines("trees", "rollouts.jsonl")
    branches = [row["parent"][1] for line in rollouts for row in line["responses"] if "parent" in row]
    # whole blocks of what a branch shares with its chain, the last token of a prompt being computed in any case
    assert sum(line["time/prefix_hits"] for line in lines) == sum(BLOCK * ((at - 1) // BLOCK) for at in branches) > 0


def test_the_same_command_again_is_cheap(whole: Project) -> None:
    before = (whole.path / "runs/whole/metrics.jsonl").read_bytes()
    status, out = whole.rlvr("train", "r.yaml")
    assert status == 0 and "6 of 6" in out
    assert (whole.path / "runs/whole/metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_killed_twice_and_resumed_is_bit_for_bit_the_same(whole: Project) -> None:
    """SIGKILL in the middle of step 4 (checkpoint at 2), then of the save of step 4 or soon after."""
    child = whole.start("train", "r.yaml", "run=killed")
    whole.kill_when(child, lambda: whole.recorded("killed", 3))
    child.wait(30)
    saving = whole.path / "runs/killed/checkpoints"
    child = whole.start("train", "r.yaml", "run=killed")
    whole.kill_when(child, lambda: bool(list(saving.glob(".step-000004*")) or list(saving.glob("step-000004"))))
    child.wait(30)
    status, out = whole.rlvr("train", "r.yaml", "run=killed")
    assert status == 0 and "resumed at step" in out, out
    for file in TIMELESS:
        assert whole.lines("killed", file) == whole.lines("whole", file), file


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(whole: Project) -> None:
    status, out = whole.rlvr("train", "r.yaml", "run=ranks", "resources.trainers=2", "steps=3")
    assert status == 0, out
    pairs = zip(whole.lines("ranks", "metrics.jsonl"), whole.lines("whole", "metrics.jsonl"), strict=False)
    for two, one in pairs:
        for key in ("train/loss", "train/entropy", "train/grad_norm", "train/ref_kl", "reward/mean"):
            assert two[key] == pytest.approx(one[key], abs=1e-5), key


@pytest.mark.slow
def test_lag_survives_a_dead_sampler_and_a_stop(project: Project) -> None:
    """max_lag 1: the sampler is killed (restarted, given current weights), then SIGTERM saves, then it resumes."""
    words = ("train", "r.yaml", "run=lagged", "max_lag=1", "steps=12", "checkpoint.every=100", "evaluate.every=0")
    child = project.start(*words)
    project.kill_when(child, lambda: project.recorded("lagged", 2), sig=signal.SIGCONT)
    [sampler] = actors(child.pid, "SamplerActor")
    os.kill(sampler, signal.SIGKILL)
    project.kill_when(child, lambda: project.recorded("lagged", 5), sig=signal.SIGTERM)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 130 and "the same command resumes" in out, out
    stopped = len(project.lines("lagged", "metrics.jsonl"))
    assert 5 <= stopped < 12
    status, out = project.rlvr(*words)
    assert status == 0 and f"resumed at step {stopped}" in out, out
    metrics = project.lines("lagged", "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert max(line["lag/max"] for line in metrics) == 1
    rollouts = project.lines("lagged", "rollouts.jsonl")
    recorded = [line["draw"] for line in rollouts]
    assert len(recorded) == len(set(recorded))  # nothing twice
    last = max(line["draw"] for line in rollouts if not line["dropped"])
    assert set(range(last)) <= set(recorded)  # nothing lost: the oldest are trained first


@pytest.mark.slow
def test_a_reference_that_moves_on_plateaus_survives_a_stop(project: Project) -> None:
    """Stopped by SIGTERM while a step's evaluation may still run: the same resets, the same KL, the same everything."""
    words = ["train", "r.yaml", "steps=6", "evaluate.every=1", "checkpoint.every=4"]
    words += ["reference.update=plateau", "reference.patience=1"]
    status, out = project.rlvr(*words, "run=plateau")
    assert status == 0, out
    whole = project.lines("plateau", "metrics.jsonl")
    moved = [line["step"] for line in whole if line["reference/moved"]]
    assert moved and all(line["train/ref_kl"] >= 0 for line in whole)
    child = project.start(*words, "run=stopped")
    project.kill_when(child, lambda: project.recorded("stopped", moved[0]), sig=signal.SIGTERM)
    child.communicate(timeout=120)
    status, out = project.rlvr(*words, "run=stopped")
    assert status == 0 and "resumed at step" in out, out
    for file in TIMELESS:
        assert project.lines("stopped", file) == project.lines("plateau", file), file


@pytest.mark.slow
def test_one_of_two_samplers_may_die(project: Project) -> None:
    words = ("train", "r.yaml", "run=pair", "resources.samplers=2", "max_lag=1", "steps=8", "evaluate.every=0")
    child = project.start(*words)
    project.kill_when(child, lambda: project.recorded("pair", 2), sig=signal.SIGCONT)
    os.kill(actors(child.pid, "SamplerActor")[0], signal.SIGKILL)
    out, _ = child.communicate(timeout=200)
    assert child.returncode == 0, out
    assert [line["step"] for line in project.lines("pair", "metrics.jsonl")] == list(range(1, 9))
    gaps = [line["train/gap_max"] for line in project.lines("pair", "metrics.jsonl") if "train/gap_max" in line]
    assert max(gaps) < 1e-3


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_with_the_command_that_resumes(project: Project) -> None:
    child = project.start("train", "r.yaml", "run=dead", "steps=50", "evaluate.every=0")
    project.kill_when(child, lambda: project.recorded("dead", 2), sig=signal.SIGCONT)
    [rank] = actors(child.pid, "RankActor")
    os.kill(rank, signal.SIGKILL)
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 1, out
    said = re.sub(r"\s+", " ", out)
    assert "trainer rank 0" in said and "is gone" in said and "rlvr train runs/dead/recipe.yaml" in said, out


def actors(driver: int, name: str) -> list[int]:
    """Process ids of a kind of actor below a driver."""
    children = psutil.Process(driver).children(recursive=True)
    return [p.pid for p in children if p.cmdline() and p.cmdline()[0].startswith(f"ray::{name}")]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("optimiser.lr=1e-4",), "did you mean 'optimizer'"),
        (("steps=many",), "steps"),
        (("model.path=nowhere/at/all", "data.train=nonesuch"), "nonesuch"),
        (("data.train=jsonl", "data.path=missing.jsonl"), "no such file"),
        (("prompt.max_tokens=2",), "the prompt has"),
        (("minibatches=9",), "minibatches"),
        (("resources.colocate=true",), "colocate"),
    ],
)
def test_bad_input_is_one_clear_error(project: Project, words: tuple[str, ...], says: str) -> None:
    status, out = project.rlvr("train", "r.yaml", "run=bad", *words)
    assert status == 2, out
    assert says in re.sub(r"\s+", " ", out) and "Traceback" not in out


def test_another_recipe_is_refused_on_resume(whole: Project) -> None:
    status, out = whole.rlvr("train", "r.yaml", "group=8", "steps=9")
    said = re.sub(r"\s+", " ", out)
    assert status == 2 and "group: this run was started with 4, got 8" in said and "start_from" in said


def test_a_damaged_checkpoint_is_named(whole: Project) -> None:
    shutil.copytree(whole.path / "runs/whole", whole.path / "runs/damaged")
    weights = next((whole.path / "runs/damaged/checkpoints/step-000006").rglob("*.pt"))
    weights.write_bytes(weights.read_bytes()[:-100])
    status, out = whole.rlvr("train", "r.yaml", "run=damaged", "steps=9")
    assert status == 1 and "is damaged" in out and weights.name in out
