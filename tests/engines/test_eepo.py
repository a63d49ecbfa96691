"""EEPO with real engines: what the samplers serve in mid-step, and a run that is killed and resumed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from rlvr import config
from rlvr.engines import Engines, start_engines
from rlvr.explore.eepo import Eepo
from rlvr.loop import explore
from rlvr.parts import Loop
from rlvr.recipe import Recipe
from rlvr.run import build_loop, shake_hands
from rlvr.run_data import read_data
from rlvr.track.display import make_display
from rlvr.track.run_dir import RunDir
from rlvr.track.tracker import open_tracker
from rlvr.types import F32, Group, Trajectory, aside, is_aside
from tests.engines.project import Project, make_project

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
ETA = 0.5
WORDS = [f"explore=[{{kind: eepo, alpha: 9, eta: {ETA}}}]", "keep=all", "kl.coef=0", "prompts=4", "group=4"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("eepo"))


def scores(lm: torch.nn.Module, row: Trajectory) -> torch.Tensor:
    """[L] log-probs by whole logits."""
    tokens = torch.from_numpy(row.tokens).long()[None]
    logp = lm(input_ids=tokens).logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[0, :, 0]
    return torch.nn.functional.pad(logp, (1, 0))


def by_hand(model: Path, rows: list[Trajectory]) -> tuple[torch.nn.Module, torch.nn.Module, list[float]]:
    """theta, theta' after one step of plain descent, and the mean probability of the rows before and after."""
    from transformers import AutoModelForCausalLM

    theta, moved = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for _ in range(2))

    def mean(lm: torch.nn.Module, of: object) -> torch.Tensor:
        assert callable(of)
        return torch.stack([of(scores(lm, r).exp()[r.weight != 0]).mean() for r in rows]).mean()

    mean(moved, lambda p: -torch.log(1 - p)).backward()
    with torch.no_grad():
        before = float(mean(theta, lambda p: p))
        for p in moved.parameters():
            p -= ETA * p.grad
        return theta, moved, [before, float(mean(moved, lambda p: p))]


def gap(lm: torch.nn.Module, rows: list[Trajectory]) -> float:
    """The largest distance between the sampler's log-probs and those of a model."""
    with torch.no_grad():
        gaps = [np.abs(scores(lm, r).numpy() - r.logprobs)[r.weight != 0].max() for r in rows]
    return float(max(gaps))


async def sampled(loop: Loop, draws: range) -> list[Group]:
    """These draws of a step, which meet."""
    return list(await asyncio.gather(*(explore(loop, draw) for draw in draws)))


def halves(groups: list[Group]) -> tuple[list[Trajectory], list[Trajectory]]:
    return [t for g in groups for t in g.trajectories[:2]], [t for g in groups for t in g.trajectories[2:]]


async def check(loop: Loop, engines: Engines, model: Path) -> None:
    """A step of sampling; a sampler that dies in its second half; the next push; sampling with the gate closed."""
    (addon,) = [a for a in loop.addons if isinstance(a, Eepo)]
    plain = await sampled(loop, range(4))
    assert not any(is_aside(t.version).any() for g in plain for t in g.trajectories)
    addon.entropies = [0.5]
    groups = await sampled(loop, range(4))
    first, second = halves(groups)
    assert {int(v) for t in first for v in t.version[t.weight != 0]} == {0}
    assert {int(v) for t in second for v in t.version[t.weight != 0]} == {aside(0)}
    for old, new in zip(halves(plain)[0], first, strict=True):
        np.testing.assert_array_equal(old.tokens, new.tokens)
        np.testing.assert_array_equal(old.logprobs, new.logprobs)
    theta, moved, (before, after) = by_hand(model, first)
    for group in groups:
        assert group.counts["eepo/p_before"] == pytest.approx(before, rel=1e-4)
        assert group.counts["eepo/p_after"] == pytest.approx(after, rel=1e-4)
    assert after < 0.98 * before
    assert gap(theta, first) < 1e-4 and gap(moved, second) < 1e-4 < 1e-2 < gap(theta, second)
    measured = await engines.policy.measure(loop_batch(groups), ["logp"])  # the trainer is back at theta
    rows = [t for g in groups for t in g.trajectories]
    with torch.no_grad():
        for row, seen in zip(rows, measured, strict=True):
            np.testing.assert_allclose(masked(row, scores(theta, row)), masked(row, seen["logp"]), atol=1e-4)
    ray.kill(engines.pool.replicas[0].handle)
    late = await explore(loop, 4)  # the meeting of this step has been
    assert engines.pool.restarts == 1 and late.counts["eepo/late"] == 1
    assert {int(v) for t in late.trajectories for v in t.version[t.weight != 0]} == {aside(0)}
    assert gap(moved, list(late.trajectories)) < 1e-4
    await engines.sync.push(1)
    addon.entropies = []
    again = await sampled(loop, range(4))
    for old, new in zip(plain, again, strict=True):
        for a, b in zip(old.trajectories, new.trajectories, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.logprobs, b.logprobs)


def masked(row: Trajectory, values: object) -> F32:
    return np.asarray(values)[row.weight != 0]


def loop_batch(groups: list[Group]):
    from rlvr.batching import collate, token_batch

    rows = collate(groups)
    return token_batch(rows, range(len(rows)), scale=np.zeros(len(rows), np.float32))


async def test_the_second_half_comes_from_the_weights_that_plain_torch_makes(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.path)
    words = [*WORDS, "run=inside", "resources.trainers=2", "evaluate.every=0", "data.eval=[]"]
    recipe = config.load(project.path / "r.yaml", overrides=words, project=project.path, tree=Recipe).recipe
    folder = RunDir(project.path / "runs" / "inside")
    data = read_data(recipe, project=project.path)
    with (
        data.verifiers,
        folder.lock(),
        open_tracker(folder, display=make_display(1, title="x"), resume=None, tensorboard=False) as tracker,
    ):
        async with start_engines(
            recipe, model_path=data.model_path, max_len=64, run="inside", resume="", project=project.path
        ) as engines:
            await shake_hands(engines, recipe, vocab=data.prompter.vocab, version=0)
            stop = asyncio.Event()
            loop, _ = build_loop(recipe, folder, tracker, data, engines, stop=stop, project=project.path)
            await check(loop, engines, project.path / "base")


def test_a_run_forgets_and_resumes_bit_for_bit(project: Project) -> None:
    words = ("train", "r.yaml", *WORDS, "steps=5", "evaluate.every=1", "checkpoint.every=2")
    status, out = project.rlvr(*words, "run=whole")
    assert status == 0, out
    metrics = project.lines("whole", "metrics.jsonl")
    assert [line["eepo/active"] > 0 for line in metrics] == [False, True, True, True, True]
    assert all(line["eepo/p_after"] < line["eepo/p_before"] for line in metrics[1:])
    assert max(line["train/gap_max"] for line in metrics) < 1e-3 and max(line["lag/max"] for line in metrics) == 0
    for line in project.lines("whole", "rollouts.jsonl"):
        step = line["step"] - 1
        wanted = [step] * 4 if step == 0 else [step] * 2 + [aside(step)] * 2
        assert [{version for version, _ in r["versions"]} for r in line["responses"]] == [{v} for v in wanted]
    child = project.start(*words, "run=killed")
    project.kill_when(child, lambda: project.recorded("killed", 3))
    child.wait(30)
    status, out = project.rlvr(*words, "run=killed")
    assert status == 0 and "resumed at step 2" in out, out
    for file in ("metrics.jsonl", "rollouts.jsonl", "evals.jsonl"):
        assert project.lines("killed", file) == project.lines("whole", file), file
