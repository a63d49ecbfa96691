"""How many requests the samplers of a recipe have in flight, against plain GRPO that decodes as many tokens a step.

    python benchmarks/busy.py --steps 10 [--recipes treerl ghpo]

Each recipe of the quickstart's size runs for a few steps, from the command on; then plain GRPO does with as many
prompts and the group size at which its steps decode as many tokens (`time/decoded`; a size that ran already is not run
again). The first two steps of a run are left out. `in flight` is `time/running`: the mean over the time in which the
sampler has any request. `of generation` is the mean over all of `time/generate`, gaps between a method's waves in it.
Needs the base model of `make quickstart` (`rlvr sft sft/arithmetic_base` builds it).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlvr import config

RECIPES = ("treerl", "ghpo", "luffy", "critique_grpo", "repo")
RUN, WARMUP = Path("runs/bench-busy"), 2
SETTINGS = {"run": RUN.name, "keep": "all", "evaluate.every": 0, "checkpoint.every": 0, "track.tensorboard": "false"}

Steps = list[dict[str, Any]]


def steps_of(recipe: str, steps: int, **changes: int) -> Steps:
    """The metrics of every step of one run, without the warm-up."""
    shutil.rmtree(RUN, ignore_errors=True)
    words = [f"{key}={value}" for key, value in {**SETTINGS, "steps": steps, **changes}.items()]
    subprocess.run([sys.executable, "-m", "rlvr", "train", recipe, *words], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(RUN)
    return rows[WARMUP:]


def median(steps: Steps, key: str) -> float:
    """Of one metric."""
    return statistics.median(step[key] for step in steps)


def of_generation(steps: Steps) -> float:
    """Mean requests in flight from a step's start until its last group is there."""
    return statistics.median(s["time/running"] * s["time/sampling"] / s["time/generate"] for s in steps)


def row(name: str, mine: Steps, plain: Steps, size: str) -> str:
    """One line of the table."""
    tokens = [median(steps, "time/decoded") for steps in (mine, plain)]
    running = [median(steps, "time/running") for steps in (mine, plain)]
    whole = [of_generation(steps) for steps in (mine, plain)]
    return (
        f"| `{name}` | {tokens[0]:.0f} | {size}: {tokens[1]:.0f} | {running[0]:.0f} | {running[1]:.0f} "
        f"| {running[0] / running[1]:.2f} | {whole[0] / whole[1]:.2f} |"
    )


def main() -> None:
    """Run the recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    quickstart = config.load("quickstart", project=Path.cwd()).recipe
    plain = {(quickstart.prompts, quickstart.group): steps_of("quickstart", args.steps)}
    ((prompts, group), first), *_ = plain.items()
    response = median(first, "time/decoded") / prompts / group
    lines = []
    for name in args.recipes:
        recipe = f"explore/{name}_quickstart"
        mine = steps_of(recipe, args.steps)
        prompts = config.load(recipe, project=Path.cwd()).recipe.prompts
        group = round(median(mine, "time/decoded") / prompts / response)
        if (prompts, group) not in plain:
            plain[prompts, group] = steps_of("quickstart", args.steps, prompts=prompts, group=group)
        lines.append(row(name, mine, plain[prompts, group], f"{prompts} x {group}"))
        print(lines[-1], flush=True)
    print("| recipe | tokens | plain: tokens | in flight | plain | ratio | of generation, ratio |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
