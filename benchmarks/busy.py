"""How many requests the samplers of a recipe have in flight, against plain GRPO that decodes as many tokens a step.

    python benchmarks/busy.py --steps 8 [--recipes treerl ghpo] [--max-lag 1]

Each recipe of the quickstart's size runs for a few steps; then plain GRPO does with as many prompts and the group size
at which its steps decode as many tokens (`time/decoded`; a size that ran already is not run again). One sampler and
one trainer rank serve all runs, one after the other. The first two steps of a run are left out. `in flight` is
`time/running`: the mean over the time in which the sampler has any request. `over all` is the mean over all of the
time for sampling, gaps between a method's waves in it: `time/generate`, with a lag the whole step. Needs the base model
of `make quickstart` (`rlvr sft sft/arithmetic_base` builds it).
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlvr import config
from rlvr.engines import Engines, rank_specs, start_engines
from rlvr.loop import train
from rlvr.models import resolve_model
from rlvr.recipe import Recipe
from rlvr.run import build_loop, shake_hands
from rlvr.run_data import read_data
from rlvr.track.display import make_display
from rlvr.track.journal import read
from rlvr.track.run_dir import RunDir
from rlvr.track.tracker import open_tracker

RECIPES = ("treerl", "ghpo", "luffy", "critique_grpo", "repo")
RUN, WARMUP = Path("runs/bench-busy"), 2
SETTINGS = {"run": RUN.name, "keep": "all", "evaluate.every": 0, "checkpoint.every": 0, "resources.trainers": 1}
LONGEST = 256  # tokens of a prompt and its response

Steps = list[dict[str, Any]]


def loaded(name: str, steps: int, **changes: int) -> Recipe:
    """A recipe of ours at its own size, but for `changes`."""
    words = [f"{key}={value}" for key, value in {**SETTINGS, "steps": steps, **changes}.items()]
    return config.load(name, overrides=words, project=Path.cwd()).recipe


async def steps_of(recipe: Recipe, engines: Engines) -> Steps:
    """The metrics of every step of one run from its base model, without the warm-up."""
    project, folder = Path.cwd(), RunDir(RUN)
    shutil.rmtree(RUN, ignore_errors=True)
    data = read_data(recipe, project=project)
    display = make_display(recipe.steps, title=RUN.name, stream=sys.stderr)
    with (
        data.verifiers,
        folder.lock(),
        open_tracker(folder, display=display, resume=None, tensorboard=False) as tracker,
    ):
        await engines.policy.start(rank_specs(recipe, model_path=data.model_path, project=project), limit=300)
        await engines.sync.connect()
        await shake_hands(engines, recipe, vocab=data.prompter.vocab, version=0)
        loop, _ = build_loop(recipe, folder, tracker, data, engines, stop=asyncio.Event(), project=project)
        for addon in loop.addons:
            await addon.prepare(loop.context)
        await train(loop)
    rows = list(read(folder.metrics))
    shutil.rmtree(RUN)
    return rows[WARMUP:]


def median(steps: Steps, key: str) -> float:
    """Of one metric."""
    return statistics.median(step[key] for step in steps)


def over_all(steps: Steps, time: str) -> float:
    """Mean requests in flight over the whole of a time."""
    return statistics.median(s["time/running"] * s["time/sampling"] / s[time] for s in steps)


def row(name: str, mine: Steps, plain: Steps, size: str, *, time: str) -> str:
    """One line of the table."""
    tokens = [median(steps, "time/decoded") for steps in (mine, plain)]
    running = [median(steps, "time/running") for steps in (mine, plain)]
    whole = [over_all(steps, time) for steps in (mine, plain)]
    return (
        f"| `{name}` | {tokens[0]:.0f} | {size}: {tokens[1]:.0f} | {running[0]:.0f} | {running[1]:.0f} "
        f"| {running[0] / running[1]:.2f} | {whole[0] / whole[1]:.2f} |"
    )


async def compare(names: Sequence[str], steps: int, lag: int) -> list[str]:
    """The rows of the table."""
    first = loaded("quickstart", steps, max_lag=lag)
    model = resolve_model(str(first.model.path), project=Path.cwd(), key="model.path")
    async with start_engines(
        first, model_path=model, max_len=LONGEST, run=RUN.name, resume="", project=Path.cwd()
    ) as engines:
        plain = {(first.prompts, first.group): await steps_of(first, engines)}
        response = median(plain[first.prompts, first.group], "time/decoded") / first.prompts / first.group
        rows = []
        for name in names:
            recipe = loaded(f"explore/{name}_quickstart", steps, max_lag=lag)
            mine = await steps_of(recipe, engines)
            size = (recipe.prompts, round(median(mine, "time/decoded") / recipe.prompts / response))
            if size not in plain:
                same = loaded("quickstart", steps, max_lag=lag, prompts=size[0], group=size[1])
                plain[size] = await steps_of(same, engines)
            rows.append(
                row(name, mine, plain[size], f"{size[0]} x {size[1]}", time="time/step" if lag else "time/generate")
            )
            print(rows[-1], flush=True)
        return rows


def main() -> None:
    """Run the recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--max-lag", type=int, default=0)
    args = parser.parse_args()
    rows = asyncio.run(compare(args.recipes, args.steps, args.max_lag))
    print("| recipe | tokens | plain: tokens | in flight | plain | ratio | over all, ratio |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
