"""An experiment from one small file: its arms one after the other, in pieces that resume, and a page of results.

    python benchmarks/experiment.py benchmarks/experiments/entropy.yaml --minutes 8     (again and again, until done)
    python benchmarks/experiment.py benchmarks/experiments/entropy.yaml --report        (the page alone)

The file lists arms (a recipe and overrides each), seeds and a budget: `steps` alone gives every arm the same number of
samples, `tokens` the same number of generated tokens (an arm is stopped at the first step that reaches it). Every pair
of arm and seed is a run of `rlvr train` in runs/. The same command goes on where it was stopped, however that was; an
arm whose recipe is not here is left out and the page says so. `--arms`, `--seeds` and `--steps` run a part; what is
run of it counts for the whole.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from rlvr import config
from rlvr.errors import ConfigError
from rlvr.track.journal import read
from rlvr.track.run_dir import ROOT, RunDir

POLL, PATIENCE = 2.0, 600.0  # seconds: between two looks at a run; for a run to save after it was told to stop
STOPPED = 130  # exit status of a command that was stopped and resumes


class Start(BaseModel, extra="forbid"):
    """A model made by `rlvr sft`."""

    recipe: str
    overrides: dict[str, Any] = {}


class Arm(BaseModel, extra="forbid"):
    """One method: a recipe with overrides, perhaps from a model of its own; or what another arm scored at its start."""

    name: str
    recipe: str | None = None
    overrides: dict[str, Any] = {}
    start: Start | None = None  # fine-tuned with the arm's seed before its run
    before: str | None = None  # no run: what the arm of this name scored before its first step


class Experiment(BaseModel, extra="forbid"):
    """What is run; `name` begins the names of its runs and names its page."""

    name: str
    title: str
    base: Start  # the model that arms begin with, made when it is missing
    steps: PositiveInt  # of every run; with `tokens` the most that it may take
    tokens: PositiveInt | None = None  # generated tokens of a run
    seeds: list[NonNegativeInt] = Field(min_length=1)
    scores: list[str] = ["pass@1", "pass@8"]
    fit: str | None = None  # the arm whose reward is fitted against its entropy
    overrides: dict[str, Any] = {}  # of every arm
    arms: list[Arm] = Field(min_length=1)

    def arm(self, name: str) -> Arm:
        """The arm of this name. Raises ConfigError when there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ConfigError(f"no arm {name!r}; there are {', '.join(arm.name for arm in self.arms)}")

    def run(self, arm: Arm, seed: int) -> RunDir:
        """Where the run of an arm and a seed lies."""
        name = self.arm(arm.before).name if arm.before else arm.name
        return RunDir(ROOT / f"{self.name}-{slug(name)}-s{seed}")


@dataclass(frozen=True)
class State:
    """How far a run is, read from its files."""

    step: int = 0
    tokens: int = 0  # generated up to `step`
    evaluated: int = -1  # the last step that was evaluated


def slug(name: str) -> str:
    """`SFT -> RL` becomes `sft-rl`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def words(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as `rlvr` takes them; JSON is YAML too."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def load(path: Path) -> Experiment:
    """Read an experiment. Raises ConfigError for a name that is used twice or stands for nothing."""
    experiment = Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    names = [slug(arm.name) for arm in experiment.arms]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two arms share a name: {', '.join(names)}")
    for arm in experiment.arms:
        if (arm.recipe is None) == (arm.before is None):
            raise ConfigError(f"{path}: arm {arm.name!r} needs either `recipe` or `before`")
        if arm.before is not None:
            experiment.arm(arm.before)
    return experiment


def missing(experiment: Experiment, *, project: Path) -> dict[str, str]:
    """Arms whose recipe is not here, with the recipe that they lack."""
    lacking: dict[str, str] = {}
    for arm in experiment.arms:
        source = experiment.arm(arm.before) if arm.before else arm
        try:
            config.locate(source.recipe or "", project=project)
        except ConfigError:
            lacking[arm.name] = source.recipe or ""
    return lacking


def same_samples(experiment: Experiment, arms: Sequence[Arm], *, project: Path) -> int:
    """Samples of a step. Raises ConfigError where arms that share a budget of steps differ in them."""
    sizes = {}
    for arm in arms:
        overrides = words(experiment.overrides | arm.overrides)
        recipe = config.load(arm.recipe or "", overrides=overrides, project=project).recipe
        sizes[arm.name] = recipe.prompts * recipe.group
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"arms draw different numbers of samples a step: {sizes}. Give `tokens`, or make them equal.")
    return next(iter(sizes.values()))


def state_of(run: RunDir) -> State:
    """Read a run's files; zeros where there are none."""
    steps = list(read(run.metrics))
    evaluated = max((record["step"] for record in read(run.evals)), default=-1)
    tokens = int(sum(record["sampled/tokens"] for record in steps))
    return State(steps[-1]["step"] if steps else 0, tokens, evaluated)


def last_step(state: State, *, steps: int, tokens: int | None) -> int:
    """The step that a run has to reach: the one that it is at when its tokens are used up."""
    return min(state.step, steps) if tokens is not None and state.tokens >= tokens else steps


def finished(state: State, *, steps: int, tokens: int | None) -> bool:
    """Whether a run has trained to its last step and was evaluated there."""
    last = last_step(state, steps=steps, tokens=tokens)
    return state.step >= last and state.evaluated >= last


def train_command(experiment: Experiment, arm: Arm, seed: int, *, steps: int) -> list[str]:
    """`rlvr train` with what the experiment asks of the arm; the same again resumes."""
    made = {"run": experiment.run(arm, seed).name, "seed": seed, "steps": steps}
    if arm.start is not None:
        made["model.path"] = str(start_run(experiment, arm, seed).path / "export")
    return ["train", arm.recipe or "", *words(experiment.overrides | arm.overrides | made)]


def start_run(experiment: Experiment, arm: Arm, seed: int) -> RunDir:
    """Where the model that an arm begins with is made."""
    return RunDir(ROOT / f"{experiment.name}-{slug(arm.name)}-start-s{seed}")


def follow(arguments: Sequence[str], log: Path, *, enough: Callable[[], bool]) -> int:
    """Run `rlvr ARGUMENTS`, tell it to save and stop once there is enough; returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        child = subprocess.Popen([sys.executable, "-m", "rlvr", *arguments], stdout=out, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None and not enough():
                time.sleep(POLL)
        finally:  # on ^C as well, which the child has got too: a second signal would end it unsaved
            if child.poll() is None:
                if sys.exc_info()[0] is None:
                    child.send_signal(signal.SIGINT)
                _wait(child)
    return child.returncode


def _wait(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def advance(experiment: Experiment, arm: Arm, seed: int, *, deadline: float) -> int:
    """Bring one run to its end, or as far as the deadline allows; returns 0, STOPPED or the status of a failure."""
    run = experiment.run(arm, seed)
    log = ROOT / f"{run.name}.log"
    budget = {"steps": experiment.steps, "tokens": experiment.tokens}

    def late() -> bool:
        return time.monotonic() > deadline

    def full() -> bool:
        return experiment.tokens is not None and state_of(run).tokens >= experiment.tokens

    if arm.start is not None:
        path = start_run(experiment, arm, seed)
        made = sft(Start(recipe=arm.start.recipe, overrides=arm.start.overrides | {"seed": seed}), path, late)
        if made:
            return made
    while not finished(state := state_of(run), **budget):
        if late():
            return STOPPED
        steps = last_step(state, **budget)
        spent = steps != experiment.steps  # only the evaluation is left
        status = follow(
            train_command(experiment, arm, seed, steps=steps),
            log,
            enough=late if spent else lambda: late() or full(),
        )
        if status not in (0, STOPPED):
            return status
        if status == 0 and not finished(state_of(run), **budget):
            raise ConfigError(f"{run.path}: the run says that it is done, and lacks steps or evaluations; see {log}")
    return 0


def sft(start: Start, run: RunDir, late: Callable[[], bool]) -> int:
    """Make a model by supervised fine-tuning unless it is there; returns the exit status."""
    if (run.path / "export").exists():
        return 0
    if late():
        return STOPPED
    made = words(start.overrides | {"run": run.name})
    return follow(["sft", start.recipe, *made], ROOT / f"{run.name}.log", enough=late)


def base_run(experiment: Experiment, *, project: Path) -> RunDir:
    """Where the base model lies: the folder that its recipe names."""
    from rlvr.recipe import SftRecipe

    resolved = config.load(
        experiment.base.recipe, overrides=words(experiment.base.overrides), tree=SftRecipe, project=project
    )
    return RunDir(ROOT / resolved.recipe.run)


def run_all(experiment: Experiment, arms: Sequence[Arm], *, deadline: float, project: Path) -> int:
    """All runs, seed by seed, so that what is stopped early has every arm; returns an exit status."""
    status = sft(experiment.base, base_run(experiment, project=project), lambda: time.monotonic() > deadline)
    if status:
        print(f"the base model is not finished (status {status}); the same command goes on")
        return status
    failed = 0
    for seed in experiment.seeds:
        for arm in arms:
            began = time.monotonic()
            status = advance(experiment, arm, seed, deadline=deadline)
            state = state_of(experiment.run(arm, seed))
            said = {0: "done", STOPPED: "stopped, resumes"}.get(status, f"FAILED with status {status}")
            seconds = time.monotonic() - began
            print(f"seed {seed}, {arm.name}: {said} at step {state.step}, {state.tokens} tokens, {seconds:.0f} s")
            if status == STOPPED:
                return STOPPED
            failed = failed or status
    return failed


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; the same again resumes"
    )
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--steps", type=int, help="fewer steps: a pilot")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    return parser.parse_args(arguments)


def command(args: argparse.Namespace) -> str:
    """The command that runs the same part, for the page."""
    chosen = {"--arms": args.arms, "--seeds": args.seeds, "--steps": None if args.steps is None else [args.steps]}
    options = [str(word) for key, values in chosen.items() if values for word in (key, *values)]
    return shlex.join(
        ["python", "benchmarks/experiment.py", f"benchmarks/experiments/{args.experiment.name}", *options]
    )


def main() -> int:
    """Run what is left, then write the page."""
    from benchmarks.experiment_report import write

    args, project = parsed(), Path.cwd()
    deadline = time.monotonic() + 60 * args.minutes
    experiment = load(args.experiment)
    changed = {"seeds": args.seeds, "steps": args.steps}
    experiment = experiment.model_copy(update={key: value for key, value in changed.items() if value is not None})
    wanted = [experiment.arm(name) for name in args.arms] if args.arms else experiment.arms
    lacking = missing(experiment, project=project)
    arms = [arm for arm in wanted if arm.before is None and arm.name not in lacking]
    if experiment.tokens is None:
        same_samples(experiment, arms, project=project)
    for name, recipe in lacking.items():
        print(f"{name}: left out, as recipe {recipe} is not here")
    status = 0 if args.report else run_all(experiment, arms, deadline=deadline, project=project)
    print(write(experiment, lacking=lacking, folder=args.out, command=command(args)))
    return status


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks.experiment_report
    sys.exit(main())
