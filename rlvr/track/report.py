"""What a run came to: numbers and a picture from its journals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rlvr.errors import DataError
from rlvr.track.journal import Record, read
from rlvr.track.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER = "#9aa5b1", "#1f6feb"
_SMOOTH = 5  # steps on either side in the picture's moving average


def summarise(path: str | Path) -> dict[str, Any]:
    """The summary of a run with evaluations before and after.

    `pass@k`: {"before", "after"} with 95 % intervals, `gain` and whether the intervals are `apart`;
    `wall_s` (seconds from the command to the end of the last step, resumed sessions added up), `first_step_s`
    (the same to the end of the first step), `completions_per_s` (median over steps), `logp_gap_max` (the largest
    gap over steps; tokens scored by the weights that sampled them). What was never measured is None.
    Raises DataError without metrics or with fewer than two evaluations of one dataset.
    """
    run = RunDir(path)
    steps = list(read(run.metrics))
    if not steps:
        raise DataError(f"{run.metrics}: no finished step to report on. Train the run first.")
    before, after = first_and_last(run)
    gaps, rates = _series(steps, "train/gap_max"), _series(steps, "time/completions_per_s")
    return {
        "run": run.name,
        "steps": steps[-1]["step"],
        "dataset": after["dataset"],
        "tasks": after["tasks"],
        "n": after["n"],
        **{name: _change(before[name], after[name]) for name in scores(before) if name in after},
        "wall_s": steps[-1].get("time/elapsed"),
        "first_step_s": steps[0].get("time/elapsed"),
        "completions_per_s": median(rates) if rates else None,
        "logp_gap_max": max(gaps) if gaps else None,
    }


def first_and_last(run: RunDir) -> tuple[Record, Record]:
    """The first and the last evaluation of the dataset that was evaluated first."""
    evals = list(read(run.evals))
    same = [record for record in evals if record["dataset"] == evals[0]["dataset"]]
    if len(same) < 2:
        raise DataError(f"{run.evals}: {len(same)} evaluations, expected one before and one after training.")
    by_step = sorted(same, key=lambda record: record["step"])
    return by_step[0], by_step[-1]


def scores(record: Mapping[str, Any]) -> list[str]:
    """Names of the estimates of an evaluation, pass@k in growing k."""
    return [name for name, item in record.items() if isinstance(item, Mapping) and "low" in item]


def curve(path: str | Path, out: Path) -> Path:
    """Draw reward, pass rate and entropy over steps, and the scores before and after, into `out` (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    run = RunDir(path)
    steps, (before, after) = list(read(run.metrics)), first_and_last(run)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1.0, 1.0])
    _line(left, steps, "reward/pass_rate", label="pass rate", color=_AFTER)
    if _series(steps, "reward/mean") != _series(steps, "reward/pass_rate"):
        _line(left, steps, "reward/mean", label="mean reward", color="#d9822b")
    left.set(title="training batches", xlabel="step")
    left.legend(loc="lower right", frameon=False)
    _line(middle, steps, "train/entropy", label="entropy", color="#8250df")
    middle.set(title="entropy (nats per token)", xlabel="step")
    middle.set_ylim(bottom=0)
    _bars(right, before, after)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    figure.suptitle(run.name)
    FigureCanvasAgg(figure).print_png(str(out))
    return out


def _line(axes: Axes, steps: Sequence[Record], name: str, *, label: str, color: str) -> None:
    """A metric faintly, and its moving average over it."""
    points = [(record["step"], record[name]) for record in steps if record.get(name) is not None]
    if not points:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color="grey")
        return
    x, y = zip(*points, strict=True)
    smooth = [sum(window) / len(window) for window in (y[max(0, i - _SMOOTH) : i + _SMOOTH + 1] for i in range(len(y)))]
    axes.plot(x, y, color=color, alpha=0.25, linewidth=1)
    axes.plot(x, smooth, color=color, linewidth=2, label=label)


def _bars(axes: Axes, before: Record, after: Record) -> None:
    names = [name for name in scores(before) if name in after]
    for offset, record, label, color in ((-0.2, before, "before", _BEFORE), (0.2, after, "after", _AFTER)):
        values = [record[name]["value"] for name in names]
        below = [record[name]["value"] - record[name]["low"] for name in names]
        above = [record[name]["high"] - record[name]["value"] for name in names]
        places = [i + offset for i in range(len(names))]
        bars = axes.bar(places, values, 0.38, yerr=[below, above], capsize=3, color=color, label=label)
        axes.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.18)
    axes.set_title(f"{after['dataset']}: {after['tasks']} held-out tasks x {after['n']}")
    axes.legend(loc="upper left", ncols=2, frameon=False)


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    apart = after["low"] > before["high"] or after["high"] < before["low"]
    return {
        "before": dict(before),
        "after": dict(after),
        "gain": after["value"] - before["value"],
        "apart": apart,
    }


def _series(steps: Sequence[Record], name: str) -> list[float]:
    return [record[name] for record in steps if record.get(name) is not None]
