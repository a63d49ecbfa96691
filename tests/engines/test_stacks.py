"""Stacks of methods of several families, synchronous and with lag, each killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.project import Project, make_project

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
STEPS = 5
STACKS = {
    "tree": (
        "explore=[{kind: treerl, n: 1, l: 1, t: 1}, {kind: outcome_bonus, form: batch},"
        " {kind: clip_cov, ratio: 0.1, low: -9, high: 9}]",
    ),
    "guided": (  # every task in every step, so that earlier responses come back; with both kinds of replay
        "explore=[{kind: adaptive_entropy, initial: 0.01, target: 9}, {kind: luffy}, {kind: repo, k: 2},"
        " {kind: spear, size: 8, rise: 4}]",
        "data.train={name: arithmetic, numbers: [2], highest: 9, size: 8, demos: 2}",
        "data.eval=[]",
    ),
}
KINDS = {
    "tree": ("treerl", "outcome_bonus", "clip_cov"),
    "guided": ("adaptive_entropy", "luffy", "repo", "spear"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("stacks"))


def words(stack: str, *, run: str, lag: int) -> tuple[str, ...]:
    own = (*STACKS[stack], f"run={run}", f"max_lag={lag}", f"steps={STEPS}", "keep=all")
    return ("train", "r.yaml", *own, "evaluate.every=0", "checkpoint.every=2", "kl.coef=0")


def killed_and_resumed(project: Project, stack: str, *, run: str, lag: int) -> None:
    child = project.start(*words(stack, run=run, lag=lag))
    project.kill_when(child, lambda: project.recorded(run, 3))
    child.wait(30)
    status, out = project.rlvr(*words(stack, run=run, lag=lag))
    assert status == 0 and "resumed at step 2" in out, out


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_a_stack_works_and_resumes_bit_for_bit(project: Project, stack: str) -> None:
    status, out = project.rlvr(*words(stack, run=f"{stack}-whole", lag=0))
    assert status == 0, out
    metrics = project.lines(f"{stack}-whole", "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    for kind in KINDS[stack]:
        assert sum(line[f"{kind}/active"] for line in metrics) > 0, kind
    killed_and_resumed(project, stack, run=f"{stack}-killed", lag=0)
    for file in ("metrics.jsonl", "rollouts.jsonl"):
        assert project.lines(f"{stack}-killed", file) == project.lines(f"{stack}-whole", file), file


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_a_stack_works_with_lag_and_resumes(project: Project, stack: str) -> None:
    run = f"{stack}-lag"
    killed_and_resumed(project, stack, run=run, lag=1)
    metrics = project.lines(run, "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert max(line["lag/max"] for line in metrics) == 1
    draws = [line["draw"] for line in project.lines(run, "rollouts.jsonl")]
    assert len(draws) == len(set(draws))
    assert (Path(project.path) / "runs" / run / "checkpoints").is_dir()
