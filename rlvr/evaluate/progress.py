"""How far an evaluation is: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rlvr.evaluate.run import Scored

EVERY = 10.0  # seconds between two lines


class Counter:
    """Counts scored samples. Use as a context manager around the sampling."""

    def __init__(self, console: Console, *, total: int, cached: int) -> None:
        """`total` samples are scored in all, of which `cached` were sampled before."""
        self._console, self._total, self._new = console, total, total - cached
        self._done = self._right = self._tokens = 0
        self._began = self._said = time.perf_counter()
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
            TextColumn("eta"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("samples", total=total, facts="") if self._bar else None

    def scored(self, rows: Sequence[Scored]) -> None:
        """Samples that have their verdicts."""
        self._done += len(rows)
        self._right += sum(row.verdict.correct for row in rows)
        self._tokens += sum(row.sample.tokens for row in rows)
        now = time.perf_counter()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, facts=self._facts(now))
        elif now - self._said >= EVERY or self._done == self._total:
            self._said = now
            self._console.print(Text(f"{self._done}/{self._total} samples  {self._facts(now)}"), soft_wrap=True)

    def _facts(self, now: float) -> str:
        seconds = max(now - self._began, 1e-9)
        return f"right {self._right / self._done:.1%}  {self._done / seconds:,.0f}/s" if self._done else ""

    def __enter__(self) -> Counter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
