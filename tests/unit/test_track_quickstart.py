"""The quickstart's report: written once, from the journals of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.cli.quickstart import closing, report, table
from rlvr.track.journal import encode
from rlvr.track.run_dir import RunDir


def interval(value: float, spread: float) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "quickstart")
    run.path.mkdir()
    steps = [{"step": s, "reward/pass_rate": 0.1 * s, "time/elapsed": 20.0 * s, "train/gap_max": 1e-6} for s in (1, 2)]
    run.metrics.write_bytes(b"".join(map(encode, steps)))
    head = {"dataset": "arithmetic", "n": 16, "tasks": 256}
    before = {"step": 0, **head, "pass@1": interval(0.4, 0.03125), "pass@8": interval(0.875, 0.03125)}
    after = {"step": 2, **head, "pass@1": interval(0.75, 0.03125), "pass@8": interval(0.9, 0.03125)}
    run.evals.write_bytes(encode(before) + encode(after))
    return run


def test_summary_and_picture_are_written_once(run: RunDir) -> None:
    summary = report(run.path, wall=100.0)
    assert json.loads(run.summary.read_text()) == summary and run.curve.exists()
    assert (summary["wall_s"], summary["first_step_s"], summary["logp_gap_max"]) == (100.0, 20.0, 1e-6)
    assert report(run.path, wall=1.0) == summary  # the same command again: nothing trained, nothing changed
    os.utime(run.summary, (0, 0))  # the run went on since
    assert report(run.path, wall=1.0)["wall_s"] == 40.0


def test_what_is_printed(run: RunDir) -> None:
    summary = report(run.path, wall=100.0)
    console = Console(width=120, record=True, file=(run.path / "out").open("w"))
    console.print(table(summary))
    title, _, one, eight = (line.rstrip() for line in console.export_text().splitlines())
    assert title == "arithmetic: 256 held-out tasks, 16 samples each"
    assert one.split("  ")[0] == "pass@1" and "40.0 % [36.9, 43.1]" in one and "75.0 % [71.9, 78.1]" in one
    assert one.endswith("+35.0 points, intervals apart") and eight.endswith("+2.5 points")
    numbers, where = closing(summary, run.path)
    assert numbers.startswith(
        "wall time 100 s  first step after 20.0 s  completions/s (median) -  largest log-prob gap"
    )
    assert "curve.png" in where
