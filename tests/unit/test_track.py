"""Rollout records, the tracker with its sinks and displays, and the report, on hand-worked runs."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlvr.errors import ConfigError, DataError
from rlvr.track.display import LiveDisplay, PlainDisplay, duration, make_display
from rlvr.track.journal import encode, read
from rlvr.track.report import curve, summarise
from rlvr.track.rollouts import group_record
from rlvr.track.run_dir import RunDir
from rlvr.track.sinks import require_wandb
from rlvr.track.tracker import open_tracker
from rlvr.types import Group, Origin, Task, Trajectory, Verdict

METRICS = {
    "step": 3,
    "reward/mean": 0.25,
    "reward/pass_rate": 0.5,
    "reward/errors": 2,
    "train/entropy": 0.8,
    "groups/dropped": 4,
    "lag/mean": 0.0,
    "time/step": 2.0,
    "time/generate": 1.5,
    "time/train": 0.25,
    "time/tokens_per_s": 12345.6,
}


def row(advantage_weights: list[float] | None = None, **changes: Any) -> Trajectory:
    """Two prompt tokens, three response tokens."""
    values: dict[str, Any] = {
        "tokens": np.arange(5, dtype=np.int32),
        "origin": np.array([0, 0, 1, 1, 1], dtype=np.int8),
        "weight": np.array(advantage_weights or [0, 0, 1, 1, 1], dtype=np.float32),
        "logprobs": np.zeros(5, dtype=np.float32),
        "version": np.array([-1, -1, 7, 7, 8], dtype=np.int32),
        "temperature": np.ones(5, dtype=np.float32),
        "text": "4 [bold]",
        "verdict": Verdict(1.0, True, answer_key="4", elapsed=0.3),
    }
    return Trajectory(**(values | changes))


def group(*rows: Trajectory, **changes: Any) -> Group:
    return Group(task=Task("t/1", "2+2=", "4", source="arithmetic"), draw=9, trajectories=rows, prompt_len=2, **changes)


def test_a_group_before_credit() -> None:
    record = group_record(group(row(), row(verdict=None, finish="length"), dropped="all right"), step=5)
    assert {k: record[k] for k in ("step", "draw", "task", "source", "prompt", "answer", "dropped")} == {
        "step": 5,
        "draw": 9,
        "task": "t/1",
        "source": "arithmetic",
        "prompt": "2+2=",
        "answer": "4",
        "dropped": "all right",
    }
    first, second = record["responses"]
    assert first["versions"] == [[7, 2], [8, 1]]
    assert first["tokens"] == 3 and first["reward"] is None and first["advantage"] is None
    assert first["verdict"]["correct"] is True and "elapsed" not in first["verdict"]
    assert second["verdict"] is None and second["finish"] == "length"
    assert "origins" not in first and "parent" not in first


def test_credit_is_one_number_when_constant_over_trained_tokens() -> None:
    constant = np.array([0, 0, 0.1, 0.1, 0.1], dtype=np.float32)
    ragged = np.array([0, 0, 0.1, 0.2, np.nan], dtype=np.float32)
    rewards = np.array([0.7, np.nan, 1, 1], dtype=np.float32)
    rows = (row(), row(), row([0, 0, 1, 0, 0]), row([0, 0, 0, 0, 0.0]))
    made = group_record(group(*rows, rewards=rewards, advantages=(constant, ragged, ragged, ragged)), step=1)
    assert [r["advantage"] for r in made["responses"]] == [0.1, [0.1, 0.2, None], 0.1, None]
    assert [r["reward"] for r in made["responses"]] == [0.7, None, 1.0, 1.0]


def test_guided_rows_say_where_their_tokens_came_from() -> None:
    origin = np.array([Origin.PROMPT, Origin.PROMPT, Origin.DEMO, Origin.DEMO, Origin.SAMPLED], dtype=np.int8)
    made = group_record(group(row(origin=origin, source="guided", parent=(2, 4))), step=1)["responses"][0]
    assert made["origins"] == [["demo", 2], ["sampled", 1]]
    assert made["source"] == "guided" and json.loads(encode(made))["parent"] == [2, 4]


def test_messages_stay_messages() -> None:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    task = Task("t", messages, "4")
    assert group_record(group().with_(task=task), step=1)["prompt"] == [dict(message) for message in messages]


def test_plain_lines_elsewhere_than_in_a_terminal() -> None:
    out = io.StringIO()
    display = make_display(10, title="quick", stream=out)
    assert isinstance(display, PlainDisplay)
    with display:
        display.step(METRICS)
        display.note("saved [bold]x[/]")
    start, line, note = out.getvalue().splitlines()
    assert start == "quick: 10 steps"
    assert line.startswith("step 3/10  reward 0.250  pass rate 50.0%  entropy 0.800  lag 0  dropped 4  errors 2")
    assert line.endswith("tokens/s 12,346  2.00 s (generate 1.50, train 0.25)  eta 0:14")  # 7 steps of 2 s
    assert note == "saved [bold]x[/]"
    assert "\x1b" not in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_panel_in_a_terminal() -> None:
    assert isinstance(make_display(10, title="quick", stream=Terminal()), LiveDisplay)
    out = Terminal()
    display = LiveDisplay(10, title="quick", console=Console(file=out, force_terminal=True, width=120))
    with display:
        display.step(METRICS)
        display.note("saved [bold]x[/]")
    shown = out.getvalue()
    for text in ("quick", "3/10", "eta 0:14", "entropy", "0.800", "generate 1.50", "saved [bold]x[/]"):
        assert text in shown


def test_a_step_without_numbers_is_shown() -> None:
    out = io.StringIO()
    with make_display(2, title="t", stream=out) as display:
        display.step({"step": 1})
    assert out.getvalue().splitlines()[1] == "step 1/2  ? s  eta ?"


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def evaluation(step: int, one: tuple[float, ...], eight: tuple[float, ...], dataset: str = "arithmetic") -> dict:
    scores = {k: dict(zip(("value", "low", "high"), v, strict=True)) for k, v in (("pass@1", one), ("pass@8", eight))}
    return {"step": step, "dataset": dataset, "n": 16, "tasks": 256, **scores, "errors": 0}


def drive(run: RunDir, steps: range, *, resume: int | None, tensorboard: bool = False) -> None:
    """A run whose numbers depend on the step alone."""
    display = PlainDisplay(9, title="t", stream=io.StringIO())
    with run.lock(), open_tracker(run, display=display, resume=resume, tensorboard=tensorboard) as tracker:
        if resume is None:
            tracker.evaluation(evaluation(0, (0.4, 0.35, 0.45), (0.9, 0.87, 0.93)))
        for step in steps:
            tracker.group(group(row()), step=step)
            tracker.step({"step": step, "train/loss": 0.1 * step, "bad": float("nan")})


def without_time(path: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read(path)]


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    straight, resumed = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    drive(straight, range(1, 10), resume=None)
    drive(resumed, range(1, 7), resume=None)
    drive(resumed, range(5, 10), resume=4)
    assert without_time(resumed.metrics) == without_time(straight.metrics)
    assert resumed.rollouts.read_bytes() == straight.rollouts.read_bytes()
    assert resumed.evals.read_bytes() == straight.evals.read_bytes()
    elapsed = [record["time/elapsed"] for record in read(resumed.metrics)]
    assert elapsed == sorted(elapsed)  # seconds of both sessions add up


def test_a_run_without_checkpoint_starts_anew(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a")
    drive(run, range(1, 4), resume=None)
    drive(run, range(1, 3), resume=None)
    assert [record["step"] for record in read(run.metrics)] == [1, 2]
    assert [record["step"] for record in read(run.evals)] == [0]


def test_the_tracker_knows_what_was_evaluated(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a")
    drive(run, range(1, 3), resume=None)
    display = PlainDisplay(9, title="t", stream=(out := io.StringIO()))
    with open_tracker(run, display=display, resume=2, tensorboard=False) as tracker:
        assert tracker.evaluated == {(0, "arithmetic")}
        tracker.evaluation(evaluation(2, (0.5, 0.4, 0.6), (1.0, 0.9, 1.0), "other"))
        assert tracker.evaluated == {(0, "arithmetic"), (2, "other")}
    assert "eval step 2 other: pass@1 0.500 [0.400, 0.600], pass@8 1.000 [0.900, 1.000] (256 tasks x 16)" in (
        out.getvalue()
    )


def test_event_files_are_cut_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDir(tmp_path / "a")
    drive(run, range(1, 7), resume=None, tensorboard=True)
    drive(run, range(5, 8), resume=4, tensorboard=True)
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("train/loss")] == [
        (step, round(0.1 * step, 6)) for step in range(1, 8)
    ]
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("eval/arithmetic/pass@1")] == [(0, 0.4)]
    assert len(list(run.tensorboard.iterdir())) == 1


def test_wandb_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"track\.wandb: 'proj'.*pip install 'rlvr\[wandb\]'"):
        require_wandb("proj")


def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    client = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: None)
    fake.init = lambda **options: calls.append(options["id"]) or client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume, step in ((None, 1), (1, 2)):
        display = PlainDisplay(2, title="t", stream=io.StringIO())
        with open_tracker(RunDir(tmp_path / "r"), display=display, resume=resume, tensorboard=False, wandb="p") as t:
            t.step({"step": step, "x": 0.5})
    first, (one, values), second, (two, _) = calls
    assert first == second and (one, two) == (1, 2) and values["x"] == 0.5


def synthetic(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "quickstart")
    run.path.mkdir()
    steps = [
        {"step": 1, "reward/pass_rate": 0.4, "reward/mean": 0.4, "train/entropy": 0.9, "train/gap_max": 2e-6},
        {"step": 2, "reward/pass_rate": 0.6, "reward/mean": 0.5, "train/entropy": None, "train/gap_max": 5e-6},
        {"step": 3, "reward/pass_rate": 0.7, "reward/mean": 0.6, "train/entropy": 0.5, "train/gap_max": 1e-6},
    ]
    clock = [(12.0, 100.0), (14.0, 500.0), (16.5, 300.0)]
    for record, (elapsed, rate) in zip(steps, clock, strict=True):
        record |= {"time/elapsed": elapsed, "time/completions_per_s": rate}
    run.metrics.write_bytes(b"".join(map(encode, steps)))
    evals = [
        evaluation(3, (0.75, 0.7, 0.8), (0.92, 0.9, 0.94)),
        evaluation(0, (0.5, 0.45, 0.55), (0.9, 0.87, 0.93)),
        evaluation(2, (0.6, 0.5, 0.7), (0.9, 0.87, 0.93)),
        evaluation(3, (0.1, 0.0, 0.2), (0.2, 0.1, 0.3), "other"),
    ]
    run.evals.write_bytes(b"".join(map(encode, evals)))
    return run


def test_summary_by_hand(tmp_path: Path) -> None:
    summary = summarise(synthetic(tmp_path).path)
    assert summary["pass@1"] == {
        "before": {"value": 0.5, "low": 0.45, "high": 0.55},
        "after": {"value": 0.75, "low": 0.7, "high": 0.8},
        "gain": 0.25,
        "apart": True,
    }
    assert summary["pass@8"]["gain"] == pytest.approx(0.02) and summary["pass@8"]["apart"] is False
    others = {"steps": 3, "dataset": "arithmetic", "tasks": 256, "n": 16, "run": "quickstart"}
    timed = {"wall_s": 16.5, "first_step_s": 12.0, "completions_per_s": 300.0, "logp_gap_max": 5e-6}
    assert {k: summary[k] for k in others | timed} == others | timed


def test_summary_without_what_it_needs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.path.mkdir()
    with pytest.raises(DataError, match="no finished step"):
        summarise(run.path)
    run.metrics.write_bytes(encode({"step": 1}))
    run.evals.write_bytes(encode(evaluation(0, (0.5, 0.4, 0.6), (0.9, 0.8, 1.0))))
    with pytest.raises(DataError, match="1 evaluation"):
        summarise(run.path)
    with run.evals.open("ab") as file:
        file.write(encode(evaluation(1, (0.5, 0.4, 0.6), (0.9, 0.8, 1.0))))
    assert summarise(run.path)["logp_gap_max"] is None


def test_curve_is_drawn(tmp_path: Path) -> None:
    run = synthetic(tmp_path)
    assert curve(run.path, run.curve) == run.curve
    assert run.curve.read_bytes().startswith(b"\x89PNG") and run.curve.stat().st_size > 10_000


def test_summary_file_is_whole(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.write_summary({"a": 1})
    assert json.loads(run.summary.read_text()) == {"a": 1}
    assert [p.name for p in run.path.iterdir()] == ["summary.json"]
