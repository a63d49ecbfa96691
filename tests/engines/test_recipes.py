"""Every recipe that trains runs two steps at tiny scale: one sampler and one rank process serve them all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rlvr import config
from rlvr.engines import Engines, rank_specs, start_engines
from rlvr.loop import train
from rlvr.methods import build_addons
from rlvr.recipe import Recipe
from rlvr.run import build_loop, shake_hands
from rlvr.run_data import read_data
from rlvr.track.display import make_display
from rlvr.track.journal import read
from rlvr.track.run_dir import RunDir
from rlvr.track.tracker import open_tracker
from tests.engines.project import ROOT, make_project

RECIPES = sorted(
    path
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.name != "base.yaml" and config.tree_of(path, project=ROOT) is Recipe
)
TINY = [
    "steps=2", "prompts=4", "group=4", "minibatches=2", "epochs=1", "keep=all", "checkpoint.every=0",
    "evaluate.every=0", "model={path: base, dtype: float32}", "data.eval=[]",
    "data.train={name: arithmetic, numbers: [2], highest: 9, size: 40, demos: 2, hints: true}",
    "prompt={chat: false, max_tokens: 48}",
    "prompt.system=null", "verifier=easy.py:verify", "sampling.max_tokens=8", "optimizer.lr=1e-3",
    "resources={device: cpu, trainers: 1, samplers: 1, tensor_parallel: 1, colocate: false, threads: 1}",
    "resources.verifiers=1", "resources.token_budget=512",
]  # fmt: skip
# so few tokens, and a base of high entropy: options with which an add-on finds something to do
MORE = {
    "adaptive_entropy": ("target=9",),
    "cde": ("alpha=0.01",),
    "clip_cov": ("ratio=0.1", "low=-9", "high=9"),
    "critical_tokens": ("coef=1.0", "power=1.0"),  # the base is certain of nothing
    "eepo": ("alpha=9",),
    "effective_rank": ("stride=2",),
    "fr3e": ("spacing=1",),
    "exgrpo": ("start=0",),
    "hapo": ("initial=4",),  # no question comes back to its own history
    "kl_cov": ("ratio=0.1",),
    "latr": ("tau_abs=0.01", "tau_rel=1", "tau_ed=0", "steps=[1]"),
    "lp_reg": ("rho=1.0", "kappa=0.3"),
    "outcome_bonus": ("form=batch",),  # the others need a question to come back
    "repo": ("k=2",),  # a demonstration may have taken the place of a response
    "siren": ("beta=50",),
    "spear": ("size=1", "rise=1"),
    "spo_tree": ("segment=2",),
}


FEW = "data.train={name: arithmetic, numbers: [2], highest: 9, size: 4}"  # every task in every step
RETURNING = {"repo"}  # methods that do nothing until a task returns

RESCUES = {"ampo", "critique_grpo", "ghpo"}  # act on groups that failed, and two steps may have none


def tiny(path: Path, *, project: Path) -> Recipe:
    """A recipe with its method kept and its scale replaced."""
    own = config.load(path, project=ROOT).recipe
    words = [*TINY, f"run={path.stem}"]
    if own.overlong.kind == "shape":
        words.append("overlong.buffer=4")
    if own.objective.constant is not None:
        words.append("objective.constant=8")
    if own.advantage.kind == "pass_at_k":  # k must be below `group`
        words.append("advantage.k=2")
    if any(spec.kind in RETURNING for spec in own.explore):
        words.append(FEW)
    for i, spec in enumerate(own.explore):
        words += [f"explore.{i}.{word}" for word in MORE.get(spec.kind, ())]
    return config.load(path, overrides=words, project=project).recipe.model_copy(update={"deepspeed": {}, "vllm": {}})


async def run(recipe: Recipe, engines: Engines, project: Path) -> list[dict[str, float]]:
    """Two steps of a recipe on engines that are there already; its lines of metrics."""
    folder = RunDir(project / "runs" / recipe.run)
    data = read_data(recipe, project=project)
    display = make_display(2, title=recipe.run)
    with (
        data.verifiers,
        folder.lock(),
        open_tracker(folder, display=display, resume=None, tensorboard=False) as tracker,
    ):
        specs = rank_specs(recipe, model_path=data.model_path, project=project)
        await engines.policy.start(specs, limit=120)
        await engines.sync.connect()
        await shake_hands(engines, recipe, vocab=data.prompter.vocab, version=0)
        loop, _ = build_loop(recipe, folder, tracker, data, engines, stop=asyncio.Event(), project=project)
        for addon in loop.addons:
            await addon.prepare(loop.context)
        await train(loop)
    return list(read(folder.metrics))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # some five seconds a recipe, and there are many
async def test_every_recipe_runs_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path).path
    monkeypatch.chdir(project)
    recipes = {str(p.relative_to(ROOT)): tiny(p, project=project) for p in RECIPES}
    first = next(iter(recipes.values()))
    async with start_engines(
        first, model_path=str(project / "base"), max_len=64, run="matrix", resume="", project=project
    ) as engines:
        losses, problems = {}, []
        for name, recipe in recipes.items():
            lines = await run(recipe, engines, project)
            problems += [f"{name}: {problem}" for problem in complaints(recipe, lines, project=project)]
            losses[name] = lines[-1]["train/loss"]
    plain = losses["recipes/quickstart.yaml"]
    for name, loss in losses.items():
        if {spec.kind for spec in recipes[name].explore} & RESCUES:
            continue
        own = name.startswith(("recipes/explore/", "recipes/advantages/"))
        if own or recipes[name].objective.kind not in ("clip", "delta_clip"):  # its bound is reached by no tiny step
            problems += [] if loss != plain else [f"{name}: changes nothing"]
    assert problems == []


def complaints(recipe: Recipe, lines: list[dict[str, float]], *, project: Path) -> list[str]:
    """What is wrong with two steps of a recipe."""
    found = [] if [line["step"] for line in lines] == [1, 2] else [f"steps {[line['step'] for line in lines]}"]
    if any(line["train/skipped_updates"] for line in lines):
        found.append("an update was skipped")
    addons = build_addons(recipe.explore, seed=0, project=project)
    names = [addon.name for addon in addons if addon.kind not in RESCUES]
    names += ["advantage"] + (["objective"] if "objective/active" in lines[0] else [])  # an objective over groups
    return found + [f"{name} was not active" for name in names if not sum(line[f"{name}/active"] for line in lines)]
