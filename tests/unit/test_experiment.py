"""benchmarks/experiment.py on hand-made run folders: what is left to do, what is collected, the page."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import experiment as runner
from benchmarks import experiment_report as report
from benchmarks.experiment import STOPPED, Arm, Experiment, Start, State, finished, last_step, words
from rlvr.errors import ConfigError
from rlvr.recipe import SftRecipe

REPOSITORY = Path(__file__).resolve().parents[2]
GRPO, OTHER = Arm(name="plain GRPO", recipe="quickstart"), Arm(name="Clip-Cov", recipe="explore/clip_cov_quickstart")


def made(
    arms: Sequence[Arm] = (GRPO, OTHER), *, tokens: int | None = None, seeds: Sequence[int] = (0, 1)
) -> Experiment:
    return Experiment(
        name="try", title="A try", base=Start(recipe="sft/arithmetic_base"), steps=3, tokens=tokens, seeds=list(seeds),
        fit="plain GRPO", arms=list(arms),
    )  # fmt: skip


def write_run(
    name: str, *, steps: int = 3, tokens: int = 100, scores: Sequence[tuple[int, float]] = ((0, 0.1),)
) -> None:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    rows = [
        {"step": i, "sampled/tokens": float(tokens), "reward/pass_rate": 0.1 * i, "train/entropy": 0.7 - 0.1 * i}
        for i in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evals = [
        {"step": step, "distinct": 4.0}
        | {k: {"value": v, "low": v - 0.02, "high": v + 0.04} for k in ("pass@1", "pass@8")}
        for step, v in scores
    ]
    (folder / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fit_finds_the_curve_that_made_the_points() -> None:
    entropy = np.array([0.0, 0.1, 0.3, 0.7])
    fit = report.fit_entropy(entropy, -0.8 * np.exp(entropy) + 1.5)
    assert fit is not None
    assert (fit.a, fit.b, fit.r2) == pytest.approx((0.8, 1.5, 1.0))


def test_fit_with_noise_by_hand() -> None:
    # exp(H) = 1, 2, 3 and R = 3, 3, 0: slope -3/2, mean 2 at exp(H) = 2, so b = 5; residuals -1/2, 1, -1/2 of 6
    fit = report.fit_entropy(np.log([1.0, 2.0, 3.0]), [3.0, 3.0, 0.0])
    assert fit is not None
    assert (fit.a, fit.b, fit.r2) == pytest.approx((1.5, 5.0, 1 - 1.5 / 6.0))
    assert report.fit_entropy([0.5, 0.5, 0.4], [0.1, 0.2, 0.3]) is None


def test_interval_over_seeds_by_hand() -> None:
    # 1, 2, 3: standard error 1/sqrt(3), Student's 97.5 % quantile with 2 degrees of freedom 4.302653
    value = report.over_seeds([1.0, 2.0, 3.0], [(0.5, 1.5), (1.5, 2.5), (2.5, 4.5)])
    assert value.mean == 2.0
    assert value.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert value.questions == pytest.approx((1.5, 17 / 6))
    assert report.over_seeds([0.5]).half is None
    assert report.Value(0.5, None, (0.4, 0.7)).show() == "0.500 [0.400, 0.700]"


@pytest.mark.parametrize(
    ("state", "tokens", "last", "done"),
    [
        (State(), None, 3, False),
        (State(step=3, tokens=9, evaluated=0), None, 3, False),  # killed in its last evaluation
        (State(step=3, tokens=9, evaluated=3), None, 3, True),
        (State(step=1, tokens=120, evaluated=0), 100, 1, False),  # its tokens are used up: only the evaluation is left
        (State(step=2, tokens=120, evaluated=2), 100, 2, True),
        (State(step=2, tokens=80, evaluated=2), 100, 3, False),
    ],
)
def test_what_is_left_to_do(state: State, tokens: int | None, last: int, done: bool) -> None:
    assert last_step(state, steps=3, tokens=tokens) == last
    assert finished(state, steps=3, tokens=tokens) is done


class Trainer:
    """Stands in for `rlvr`: writes one step, or the evaluation when all steps are there; stops as it is told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, arguments: Sequence[str], log: Path, *, enough: object) -> int:
        self.calls.append(list(arguments))
        given = dict(word.split("=", 1) for word in arguments[2:])
        folder, steps = Path("runs") / given["run"], int(given.get("steps", 0))
        if arguments[0] == "sft":
            (folder / "export").mkdir(parents=True)
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        state = runner.state_of(runner.RunDir(folder))
        if state.step < steps:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.step + 1, "sampled/tokens": 60.0}) + "\n")
            return STOPPED
        (folder / "evals.jsonl").write_text(json.dumps({"step": state.step}) + "\n")
        return 0


def test_an_arm_goes_on_until_it_is_finished_and_stops_at_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "follow", trainer := Trainer())
    assert runner.advance(made(tokens=100), GRPO, 1, deadline=time.monotonic() + 60) == 0
    assert [word for call in trainer.calls for word in call if word.startswith("steps=")] == ["steps=3"] * 2 + [
        "steps=2"
    ]
    assert trainer.calls[0][:2] == ["train", "quickstart"]
    assert {"run=try-plain-grpo-s1", "seed=1"} <= set(trainer.calls[0])
    assert runner.advance(made(tokens=100), GRPO, 1, deadline=time.monotonic() + 60) == 0
    assert len(trainer.calls) == 3  # a finished run is not started again


def test_runs_come_seed_by_seed_after_the_base_and_stop_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "follow", trainer := Trainer())
    assert runner.run_all(made(), [GRPO, OTHER], deadline=0.0, project=REPOSITORY) == STOPPED
    assert trainer.calls == []
    assert runner.run_all(made(), [GRPO, OTHER], deadline=time.monotonic() + 60, project=REPOSITORY) == 0
    assert trainer.calls[0][:2] == ["sft", "sft/arithmetic_base"]
    order = list(dict.fromkeys(word for call in trainer.calls[1:] for word in call if word.startswith("run=")))
    assert order == [f"run=try-{arm}-s{seed}" for seed in (0, 1) for arm in ("plain-grpo", "clip-cov")]


def test_an_arm_with_a_start_trains_from_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "follow", trainer := Trainer())
    arm = Arm(name="SFT then RL", recipe="quickstart", start=Start(recipe="sft/arithmetic_base"))
    assert runner.advance(made([arm]), arm, 0, deadline=time.monotonic() + 60) == 0
    assert [call[0] for call in trainer.calls] == ["sft"] + ["train"] * 4
    assert "model.path=runs/try-sft-then-rl-start-s0/export" in trainer.calls[1]


def test_a_failed_run_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer()

    def failing(arguments: Sequence[str], log: Path, *, enough: object) -> int:
        return 1 if "run=try-plain-grpo-s0" in arguments else trainer(arguments, log, enough=enough)

    monkeypatch.setattr(runner, "follow", failing)
    assert runner.run_all(made(), [GRPO, OTHER], deadline=time.monotonic() + 60, project=REPOSITORY) == 1
    assert finished(runner.state_of(made().run(OTHER, 1)), steps=3, tokens=None)


def test_a_command_is_told_to_stop_by_the_signal_that_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = (
        "import signal, sys, time\nsignal.signal(2, lambda *_: sys.exit(130))\nprint('up', flush=True)\ntime.sleep(60)"
    )
    popen = runner.subprocess.Popen
    monkeypatch.setattr(runner.subprocess, "Popen", lambda _, **kw: popen([sys.executable, "-c", stand_in], **kw))
    monkeypatch.setattr(runner, "POLL", 0.02)
    log = Path("log")
    assert runner.follow(["train"], log, enough=lambda: log.read_text() == "up\n") == STOPPED


def test_page_has_what_was_run_and_says_what_was_not() -> None:
    arms = [GRPO, OTHER, Arm(name="SFT", before="plain GRPO"), Arm(name="EAD", recipe="explore/no_such")]
    experiment = made(arms)
    for seed, gain in ((0, 0.0), (1, 0.2)):
        write_run(f"try-plain-grpo-s{seed}", scores=[(0, 0.1), (3, 0.4 + gain)])
    write_run("try-clip-cov-s0", scores=[(0, 0.1)])  # not evaluated at its end
    lacking = runner.missing(experiment, project=REPOSITORY)
    assert lacking == {"EAD": "explore/no_such"}
    page = report.write(experiment, lacking=lacking, folder=Path("out"), command="the command").read_text()
    assert "| plain GRPO | 0, 1 | 3 | 0.500 [0.480, 0.540] ±1.271 |" in page  # 0.1 * 12.706
    assert "| 0.500 ±0.000 | 4.00 ±0.00 | 300 |" in page  # entropy: mean of 0.6, 0.5, 0.4
    assert "| Clip-Cov | not run yet |" in page
    assert "| SFT | 0, 1 | 0 | 0.100 [0.080, 0.140] ±0.000 |" in page
    assert "| EAD | its recipe `explore/no_such` is not here |" in page
    assert "`the command`, budget 3 steps a run, seeds 0, 1" in page
    assert (Path("out") / "try.png").stat().st_size > 1000


def test_prose_around_the_numbers_is_kept() -> None:
    path = report.write(made(), lacking={}, folder=Path("out"), command="first")
    path.write_text(path.read_text().replace("# A try\n", "# A try\n\nWhat it means.\n") + "\nThe end.\n")
    text = report.write(made(), lacking={}, folder=Path("out"), command="second").read_text()
    assert text.startswith("# A try\n\nWhat it means.\n")
    assert text.endswith("\nThe end.\n")
    assert "second" in text
    assert "first" not in text


def test_differences_are_of_equal_seeds() -> None:
    experiment = made()
    for seed, gain in ((0, 0.1), (1, 0.3)):
        write_run(f"try-plain-grpo-s{seed}", scores=[(0, 0.1), (3, 0.2 + seed / 10)])
        write_run(f"try-clip-cov-s{seed}", scores=[(0, 0.1), (3, 0.2 + seed / 10 + gain)])
    found = [report.collect(experiment, arm) for arm in experiment.arms]
    assert report.differences(experiment, found)[-1] == "| Clip-Cov | 2 | 0.200 ±1.271 | 0.200 ±1.271 |"


def test_arms_that_draw_more_samples_are_refused() -> None:
    trees = Arm(name="TreeRL", recipe="explore/treerl_quickstart")
    assert runner.same_samples(made(), [GRPO, OTHER], project=REPOSITORY) == 512
    with pytest.raises(ConfigError, match="96"):
        runner.same_samples(made(), [GRPO, trees], project=REPOSITORY)


@pytest.mark.parametrize("name", ["entropy", "exploration"])
def test_the_experiments_are_valid(name: str) -> None:
    from rlvr import check, config

    experiment = runner.load(REPOSITORY / "benchmarks" / "experiments" / f"{name}.yaml")
    for start in [experiment.base, *(arm.start for arm in experiment.arms if arm.start is not None)]:
        made = config.load(start.recipe, overrides=words(start.overrides), tree=SftRecipe, project=REPOSITORY).recipe
        problems = check.problems(made, project=REPOSITORY)
        assert [problem for problem in problems if problem.key != "model.path"] == []
    lacking = runner.missing(experiment, project=REPOSITORY)
    for arm in experiment.arms:
        if arm.before is None and arm.name not in lacking:
            _, recipe, *overrides = runner.train_command(experiment, arm, 0, steps=experiment.steps)
            changed = [word for word in overrides if not word.startswith("model.path=")]
            resolved = config.load(recipe, overrides=changed, project=REPOSITORY)
            assert resolved.recipe.optimizer.schedule == "constant"  # else `steps` could not change
            problems = check.problems(resolved.recipe, project=REPOSITORY)
            assert [problem for problem in problems if problem.key != "model.path"] == []
