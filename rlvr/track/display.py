"""What a person sees while a run goes: a live panel in a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_RECENT = 20  # steps that the remaining time is estimated from
_PARTS = ("generate", "verify", "train", "sync")
_SHOWN = (  # label, metric, format
    ("reward", "reward/mean", ".3f"),
    ("pass rate", "reward/pass_rate", ".1%"),
    ("entropy", "train/entropy", ".3f"),
    ("length", "response/length_mean", ".1f"),
    ("truncated", "response/truncated", ".1%"),
    ("gap", "train/gap_max", ".1e"),
    ("lag", "lag/mean", ".2g"),
    ("dropped", "groups/dropped", ".0f"),
    ("errors", "reward/errors", ".0f"),
    ("tokens/s", "time/tokens_per_s", ",.0f"),
)


class Display(Protocol):
    """Used as a context manager around a run."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """Show the step that just ended; `metrics` holds `step` and whatever was measured."""
        ...

    def note(self, text: str) -> None:
        """Show a line that stays (an evaluation, a checkpoint, a warning)."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def make_display(steps: int, *, title: str, stream: TextIO | None = None) -> Display:
    """The live display when `stream` (default: standard output) is a terminal, plain lines elsewhere."""
    out: TextIO = sys.stdout if stream is None else stream
    if out.isatty():
        return LiveDisplay(steps, title=title, console=Console(file=out))
    return PlainDisplay(steps, title=title, stream=out)


class PlainDisplay:
    """One concise line a step."""

    def __init__(self, steps: int, *, title: str, stream: TextIO) -> None:
        self._clock = Clock(steps)
        self._title = title
        self._stream = stream

    def step(self, metrics: Mapping[str, float]) -> None:
        eta = self._clock.tick(metrics)
        numbers = [f"{label} {value}" for label, value in readings(metrics)]
        self.note("  ".join([f"step {self._clock.done}/{self._clock.steps}", *numbers, split(metrics), f"eta {eta}"]))

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        self.note(f"{self._title}: {self._clock.steps} steps")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()


class LiveDisplay:
    """A panel that is redrawn in place; notes and prints scroll above it."""

    def __init__(self, steps: int, *, title: str, console: Console) -> None:
        self._clock = Clock(steps)
        self._title = title
        self._eta = "?"
        self._metrics: Mapping[str, float] = {}
        self._live = Live(get_renderable=self._panel, console=console, refresh_per_second=4)

    def step(self, metrics: Mapping[str, float]) -> None:
        self._eta = self._clock.tick(metrics)
        self._metrics = metrics
        self._live.refresh()

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _panel(self) -> Group:
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self._clock.steps, completed=self._clock.done, width=40)
        head.add_row(
            Text(self._title, style="bold"), bar, Text(f"{self._clock.done}/{self._clock.steps}  eta {self._eta}")
        )
        numbers = Table.grid(padding=(0, 3))
        cells = [Text.assemble((f"{label} ", "dim"), value) for label, value in readings(self._metrics)]
        for start in range(0, len(cells), 5):
            numbers.add_row(*cells[start : start + 5])
        return Group(head, numbers, Text(split(self._metrics), style="cyan") if self._metrics else Text("starting"))


class Clock:
    """Steps done and the time that the rest will take, from the seconds of recent steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def tick(self, metrics: Mapping[str, float]) -> str:
        """Count a step; returns the remaining time as text, "?" while unknown."""
        self.done = int(metrics["step"])
        if "time/step" in metrics:
            self._recent.append(metrics["time/step"])
        return duration(fmean(self._recent) * (self.steps - self.done)) if self._recent else "?"


def readings(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Label and formatted value of every metric that is shown, those that were not measured left out."""
    return [(label, format(metrics[name], form)) for label, name, form in _SHOWN if name in metrics]


def split(metrics: Mapping[str, float]) -> str:
    """How the step's seconds were spent; generation and scoring overlap, so the parts need not add up."""
    parts = [f"{part} {metrics[f'time/{part}']:.2f}" for part in _PARTS if f"time/{part}" in metrics]
    total = f"{metrics['time/step']:.2f} s" if "time/step" in metrics else "? s"
    return f"{total} ({', '.join(parts)})" if parts else total


def duration(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
