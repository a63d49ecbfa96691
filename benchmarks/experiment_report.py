"""The page of an experiment, from the files of its runs alone: intervals, the entropy fit, a table, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from rlvr.track.journal import Record, read
from rlvr.track.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.experiment import Arm, Experiment

PASS_RATE = "reward/pass_rate"  # of the policy's own rows: no demonstration, hinted answer or replayed row
GRID = 40  # points of the mean curve of an arm
LAST = 5  # steps whose mean is the entropy at the end
BEGIN, END = "<!-- numbers: written by benchmarks/experiment.py -->", "<!-- end of the numbers -->"
COLORS = ("#1f6feb", "#d9822b", "#2da44e", "#cf222e", "#8250df", "#6e7781", "#bf3989", "#9a6700", "#0550ae")
READING = (
    "[low, high]: 95 % over questions, the mean over seeds of each run's own interval (the seeds answer the same "
    "questions, so it does not shrink with seeds). ±: half of Student's 95 % interval over seeds; none with one seed. "
    f"Entropy: nats a token in training, mean of the last {LAST} steps. Distinct: different answers a question in the "
    "evaluation. Tokens: generated in training, mean over seeds."
)


@dataclass(frozen=True)
class Run:
    """One finished run."""

    seed: int
    steps: tuple[Record, ...]
    first: Record  # the evaluation before the first step
    last: Record


@dataclass(frozen=True)
class Value:
    """A mean over seeds; `questions`: its interval over questions; `half`: half of the interval over seeds."""

    mean: float
    half: float | None = None
    questions: tuple[float, float] | None = None

    def show(self, digits: int = 3) -> str:
        """`0.644 [0.604, 0.689] ±0.020`, with the parts that there are."""
        inside = "" if self.questions is None else " [{:.{d}f}, {:.{d}f}]".format(*self.questions, d=digits)
        return f"{self.mean:.{digits}f}{inside}" + ("" if self.half is None else f" ±{self.half:.{digits}f}")


@dataclass(frozen=True)
class Fit:
    """R = -a exp(H) + b by least squares; `r2`: share of R's variance that it explains."""

    a: float
    b: float
    r2: float


@dataclass(frozen=True)
class Collected:
    """What the finished runs of one arm came to."""

    arm: str
    runs: tuple[Run, ...]
    scores: Mapping[str, Value] = field(default_factory=dict)
    entropy: Value | None = None
    distinct: Value | None = None
    tokens: float = 0.0


def over_seeds(values: Sequence[float], questions: Sequence[tuple[float, float]] = ()) -> Value:
    """Mean of one number a seed; Student's 95 % interval with n - 1 degrees of freedom where n > 1.

    `questions`, one interval a seed: the questions are the same for all seeds, so the mean of the ends is an interval
    of the mean that is right when the seeds agree on what is hard and too wide, never too narrow, when they do not.
    """
    numbers = np.asarray(values, dtype=np.float64)
    n = numbers.size
    half = float(student.ppf(0.975, n - 1) * numbers.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    ends = np.mean(np.asarray(questions, dtype=np.float64), axis=0) if questions else None
    return Value(float(numbers.mean()), half, None if ends is None else (float(ends[0]), float(ends[1])))


def fit_entropy(entropy: npt.ArrayLike, reward: npt.ArrayLike) -> Fit | None:
    """R = -a exp(H) + b (2505.22617, eq. 3) over the steps of one run; None with fewer than 3 entropies that differ.

    The paper fits the validation score; here R is the pass rate of the step's own samples, of which there are more.
    """
    h, r = np.asarray(entropy, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if np.unique(h).size < 3:
        return None
    design = np.stack([-np.exp(h), np.ones_like(h)], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, r, rcond=None)
    total = float(((r - r.mean()) ** 2).sum())
    left = float(((r - design @ (a, b)) ** 2).sum())
    return Fit(float(a), float(b), 1 - left / total if total else 0.0)


def finished_run(run: RunDir, seed: int, *, steps: int, tokens: int | None) -> Run | None:
    """The run of a seed, None before its last evaluation: at `steps`, or where its tokens are used up."""
    from benchmarks.experiment import finished, state_of

    evals = sorted(read(run.evals), key=lambda record: record["step"])
    if not evals or evals[0]["step"] != 0 or not finished(state_of(run), steps=steps, tokens=tokens):
        return None
    return Run(seed, tuple(read(run.metrics)), evals[0], evals[-1])


def collect(experiment: Experiment, arm: Arm, *, before: bool = False) -> Collected:
    """The finished runs of an arm; `before`: as they were evaluated before their first step."""
    budget = {"steps": experiment.steps, "tokens": experiment.tokens}
    found = [finished_run(experiment.run(arm, seed), seed, **budget) for seed in experiment.seeds]
    runs = tuple(run for run in found if run is not None)
    if not runs:
        return Collected(arm.name, ())
    evals = [run.first if before else run.last for run in runs]
    scores = {
        name: over_seeds([e[name]["value"] for e in evals], [(e[name]["low"], e[name]["high"]) for e in evals])
        for name in experiment.scores
    }
    distinct = over_seeds([e["distinct"] for e in evals])
    if before:
        return Collected(arm.name, runs, scores, None, distinct)
    ends = [series(run.steps, "train/entropy")[-LAST:] for run in runs]
    return Collected(
        arm.name,
        runs,
        scores,
        over_seeds([float(np.mean(end)) for end in ends]) if all(ends) else None,
        distinct,
        float(np.mean([sum(series(run.steps, "sampled/tokens")) for run in runs])),
    )


def series(steps: Sequence[Record], name: str) -> list[float]:
    """A metric over the steps that have it."""
    return [record[name] for record in steps if record.get(name) is not None]


def rows(experiment: Experiment, *, lacking: Mapping[str, str]) -> tuple[list[str], list[Collected]]:
    """The lines of the table, and what was collected of the arms that have runs."""
    heads = ["arm", "seeds", "steps", *experiment.scores, "entropy", "distinct", "tokens"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    arms = [(arm, collect(experiment, arm, before=arm.before is not None)) for arm in experiment.arms]
    plain = collect(experiment, experiment.arms[0], before=True)
    if plain.runs:
        lines.append(_row(Collected("base model, before training", plain.runs, plain.scores, None, plain.distinct), 0))
    for arm, found in arms:
        if found.runs:
            most = 0 if arm.before else max(run.last["step"] for run in found.runs)
            lines.append(_row(found, most))
        else:
            why = f"its recipe `{lacking[arm.name]}` is not here" if arm.name in lacking else "not run yet"
            lines.append(f"| {arm.name} | {why} |" + " |" * (len(heads) - 2))
    return lines, [found for arm, found in arms if found.runs and arm.before is None]


def _row(found: Collected, steps: int) -> str:
    seeds = ", ".join(str(run.seed) for run in found.runs)
    values = [value.show() for value in found.scores.values()]
    entropy = found.entropy.show() if found.entropy else "-"
    distinct = found.distinct.show(2) if found.distinct else "-"
    tokens = f"{found.tokens:,.0f}" if steps else "0"
    return "| " + " | ".join([found.arm, seeds, str(steps), *values, entropy, distinct, tokens]) + " |"


def differences(experiment: Experiment, found: Sequence[Collected]) -> list[str]:
    """Against the first arm, seed by seed; nothing where no arm shares two seeds with it."""
    if not found or found[0].arm != experiment.arms[0].name:
        return []
    lines = []
    first = {run.seed: run for run in found[0].runs}
    for other in found[1:]:
        pairs = [(run, first[run.seed]) for run in other.runs if run.seed in first]
        if len(pairs) < 2:
            continue
        gains = [
            over_seeds([a.last[k]["value"] - b.last[k]["value"] for a, b in pairs]).show() for k in experiment.scores
        ]
        lines.append("| " + " | ".join([other.arm, str(len(pairs)), *gains]) + " |")
    heads = [f"less {found[0].arm}, same seeds", "seeds", *experiment.scores]
    return ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines] if lines else []


def fits(experiment: Experiment, found: Sequence[Collected]) -> list[tuple[Run, Fit]]:
    """The fit of every run of the arm that is to be fitted."""
    mine = [run for one in found if one.arm == experiment.fit for run in one.runs]
    made = [(run, fit_entropy(*_entropy_and_reward(run))) for run in mine]
    return [(run, fit) for run, fit in made if fit is not None]


def _entropy_and_reward(run: Run) -> tuple[list[float], list[float]]:
    steps = [s for s in run.steps if s.get("train/entropy") is not None]
    return [s["train/entropy"] for s in steps], [s[PASS_RATE] for s in steps]


def page(
    experiment: Experiment, *, lacking: Mapping[str, str], command: str, today: str, picture: str
) -> tuple[str, list[Collected]]:
    """The numbers as markdown, and what was collected."""
    table, found = rows(experiment, lacking=lacking)
    what = f"{experiment.tokens:,} generated tokens" if experiment.tokens else f"{experiment.steps} steps"
    seeds = ", ".join(map(str, experiment.seeds))
    lines = [BEGIN, f"Read from the runs on {today}: `{command}`, budget {what} a run, seeds {seeds}.", "", *table]
    lines += [*differences(experiment, found), "", READING, ""]
    made = fits(experiment, found)
    if made:
        lines.append(f"R = -a exp(H) + b over the steps of {experiment.fit} (R: pass rate of the step's samples):")
        lines += ["", "| seed | a | b | R at H = 0 | R² | steps |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {run.seed} | {f.a:.3f} | {f.b:.3f} | {f.b - f.a:.3f} | {f.r2:.2f} | {len(run.steps)} |"
            for run, f in made
        ]
        lines.append("")
    lines += [f"![{experiment.title}]({picture})", ""] if found else []
    return "\n".join([*lines, END]), found


def write(experiment: Experiment, *, lacking: Mapping[str, str], folder: Path, command: str) -> Path:
    """Write or renew the page and its picture; what stands outside the marks of a page is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    path, picture = folder / f"{experiment.name}.md", folder / f"{experiment.name}.png"
    today = date.today().isoformat()
    text, found = page(experiment, lacking=lacking, command=command, today=today, picture=picture.name)
    old = path.read_text(encoding="utf-8") if path.exists() else f"# {experiment.title}\n\n{BEGIN}{END}\n"
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(head + text + tail, encoding="utf-8")
    if found:
        draw(experiment, found, picture)
    return path


def draw(experiment: Experiment, found: Sequence[Collected], out: Path) -> None:
    """Pass rate and entropy over the budget, final scores, and reward against entropy where there is a fit (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = fits(experiment, found)
    figure = Figure(figsize=(16 if made else 12, 4.6), layout="constrained")
    axes = figure.subplots(1, 4 if made else 3)
    by_tokens = experiment.tokens is not None
    for color, one in zip(COLORS, found, strict=False):
        _line(axes[0], one, PASS_RATE, color=color, by_tokens=by_tokens)
        _line(axes[1], one, "train/entropy", color=color, by_tokens=by_tokens)
    axes[0].set_title("pass rate of the policy's own samples")
    axes[1].set_title("entropy (nats a token)")
    _bars(axes[2], found, experiment.scores)
    for color, (run, fit) in zip(COLORS, made, strict=False):
        h, r = _entropy_and_reward(run)
        axes[3].scatter(h, r, s=10, color=color)
        x = np.linspace(0, max(h), 50)
        axes[3].plot(x, fit.b - fit.a * np.exp(x), color=color, label=f"seed {run.seed}: a {fit.a:.2f}, b {fit.b:.2f}")
    if made:
        axes[3].set(title=f"R = -a exp(H) + b, {experiment.fit}", xlabel="entropy H")
        axes[3].legend(frameon=False)
    for one in axes[:2]:
        one.set_xlabel("generated tokens" if by_tokens else "step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found), frameon=False)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.25)
        one.set_axisbelow(True)
    FigureCanvasAgg(figure).print_png(str(out))


def _line(axes: Axes, found: Collected, name: str, *, color: str, by_tokens: bool) -> None:
    """Every seed faintly, their mean as far as all of them go; the legend once an arm."""
    curves = [_curve(run, name, by_tokens=by_tokens) for run in found.runs]
    for x, y in curves:
        axes.plot(x, y, color=color, alpha=0.25, linewidth=0.7)
    grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), GRID)
    mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
    axes.plot(grid, mean, color=color, linewidth=1.8, label=found.arm)


def _curve(run: Run, name: str, *, by_tokens: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A metric over the steps that have it, or over the tokens generated until then."""
    used = np.cumsum([record["sampled/tokens"] for record in run.steps])
    steps = [record for record in run.steps if record.get(name) is not None]
    x = [used[record["step"] - 1] if by_tokens else record["step"] for record in steps]
    return np.asarray(x, dtype=np.float64), np.asarray([record[name] for record in steps], dtype=np.float64)


def _bars(axes: Axes, found: Sequence[Collected], scores: Sequence[str]) -> None:
    width = 0.8 / len(found)
    for i, (one, color) in enumerate(zip(found, COLORS, strict=False)):
        values = [one.scores[name] for name in scores]
        below = [v.mean - v.questions[0] if v.questions else 0.0 for v in values]
        above = [v.questions[1] - v.mean if v.questions else 0.0 for v in values]
        places = [j - 0.4 + (i + 0.5) * width for j in range(len(scores))]
        axes.bar(places, [v.mean for v in values], width, yerr=[below, above], capsize=2, color=color)
    axes.set_xticks(range(len(scores)), scores)
    axes.set(title="after training, 95 % over questions", ylim=(0, 1))
