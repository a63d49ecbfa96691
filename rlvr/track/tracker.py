"""All that is recorded of a run, behind one object: journals first, then the display and the other sinks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rlvr.track.display import Display
from rlvr.track.journal import Journal, read
from rlvr.track.rollouts import group_record
from rlvr.track.run_dir import RunDir
from rlvr.track.sinks import Sink, TensorBoard, Wandb, eval_prefix
from rlvr.types import Group


class Tracker:
    """Writes metrics, rollouts and evaluations of one run. See `open_tracker`."""

    def __init__(
        self,
        *,
        metrics: Journal,
        rollouts: Journal,
        evals: Journal,
        sinks: Sequence[Sink],
        display: Display,
        since: float,
    ) -> None:
        self._metrics, self._rollouts, self._evals = metrics, rollouts, evals
        self._sinks = sinks
        self._since = since
        self.display = display
        self.evaluated = {(record["step"], record["dataset"]) for record in read(evals.path)}

    def step(self, metrics: Mapping[str, float]) -> None:
        """One line of metrics; `step` is in it. Adds `time/elapsed`, the seconds of the run over all its sessions."""
        record = (
            {"step": metrics["step"]} | dict(metrics) | {"time/elapsed": round(time.perf_counter() - self._since, 3)}
        )
        self._metrics.append(record)
        for sink in self._sinks:
            sink.write(record)
        self.display.step(record)

    def group(self, group: Group, *, step: int) -> None:
        """One line of rollouts: before any drop, or with the reason of it."""
        self._rollouts.append(group_record(group, step=step))

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """One line of evaluations: `EvalResult.record(step)`."""
        self._evals.append(record)
        self.evaluated.add((record["step"], record["dataset"]))
        for sink in self._sinks:
            sink.write(record, prefix=eval_prefix(record))
        self.display.note(eval_line(record))


@contextmanager
def open_tracker(
    run: RunDir,
    *,
    display: Display,
    resume: int | None,
    tensorboard: bool = True,
    wandb: str | None = None,
    config: Mapping[str, Any] | None = None,
    since: float | None = None,
) -> Iterator[Tracker]:
    """Track `run` (its lock is the caller's).

    `resume` is the step of the checkpoint that was loaded: everything beyond it is cut; None begins anew.
    `since` is the `perf_counter` at which the command began. Raises ConfigError when wandb is missing.
    """
    run.cut(-1 if resume is None else resume)
    with ExitStack() as stack:
        metrics, rollouts, evals = (
            stack.enter_context(Journal(path)) for path in (run.metrics, run.rollouts, run.evals)
        )
        sinks: list[Sink] = [TensorBoard(run)] if tensorboard else []
        if wandb is not None:
            sinks.append(Wandb(run, project=wandb, config=config or {}))
        for sink in sinks:
            stack.callback(sink.close)
        stack.enter_context(display)
        earlier = max((record.get("time/elapsed") or 0.0 for record in read(run.metrics)), default=0.0)
        started = (time.perf_counter() if since is None else since) - earlier
        yield Tracker(metrics=metrics, rollouts=rollouts, evals=evals, sinks=sinks, display=display, since=started)


def eval_line(record: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    scores = [
        f"{name} {item['value']:.3f} [{item['low']:.3f}, {item['high']:.3f}]"
        for name, item in record.items()
        if name.startswith("pass@")
    ]
    errors = f", {record['errors']} errors" if record.get("errors") else ""
    size = f"{record['tasks']} tasks x {record['n']}{errors}"
    return f"eval step {record['step']} {record['dataset']}: {', '.join(scores)} ({size})"
