"""`rlvr sft` and `rlvr export` with real DeepSpeed, each command a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines
ROOT = Path(__file__).parents[2]
RECIPE = """
run: base
steps: 30
rows: 8
model: {dtype: float32, scratch: {layers: 1, width: 32, heads: 2, kv_heads: 1, mlp: 64, max_len: 64}}
data: {train: {name: arithmetic, numbers: [2], size: 60, noise: 0.0}}
prompt: {chat: false, max_tokens: 32}
optimizer: {lr: 3e-3, schedule: one_cycle}
checkpoint: {every: 10}
resources: {device: cpu, trainers: 1, threads: 1, token_budget: 4096}
"""


def start(project: Path, *args: str) -> subprocess.Popen[str]:
    """`rlvr ARGS` in a project folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "rlvr", *args], cwd=project, env=env, **pipes)


def rlvr(project: Path, *args: str, code: int = 0) -> str:
    """What it prints; it must end with `code`."""
    process = start(project, *args)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == code, out[-3000:]
    return out


def metrics(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished run."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "sft.yaml").write_text(RECIPE)
    out = rlvr(folder, "sft", "sft.yaml")
    assert "done: 30 of 30 steps, model in runs/base/export" in out
    return folder


def test_it_learns_and_leaves_what_it_should(project: Path) -> None:
    run = project / "runs" / "base"
    seen = metrics(run)
    assert [line["step"] for line in seen] == list(range(1, 31))
    assert seen[-1]["train/sft_loss"] < seen[0]["train/sft_loss"]
    assert (run / "recipe.yaml").is_file() and list((run / "checkpoints").glob("step-*"))


def test_the_export_loads(project: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = project / "runs" / "base" / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("12+3=?")) == "12+3=?"
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_a_finished_run_is_told_quickly(project: Path) -> None:
    began = time.perf_counter()
    assert "done already" in rlvr(project, "sft", "sft.yaml")
    assert time.perf_counter() - began < 15


def test_another_recipe_does_not_resume(project: Path) -> None:
    out = rlvr(project, "sft", "sft.yaml", "rows=9", code=2)
    assert "rows: this run was started with 8, got 9" in out and "run=NAME" in out


def test_export_picks_a_checkpoint(project: Path) -> None:
    out = rlvr(project, "export", "base", "--step", "20", "--out", "early")
    assert "written: early" in out
    early, last = (project / p / "model.safetensors" for p in ("early", "runs/base/export"))
    assert early.stat().st_size == last.stat().st_size and early.read_bytes() != last.read_bytes()
    assert "no checkpoint of step 5; there are: 20, 30" in rlvr(project, "export", "base", "--step", "5", code=1)
    assert "no model folder" in rlvr(project, "export", "base", "--out", "runs", code=2)


def test_killed_and_resumed_is_as_if_never_killed(project: Path) -> None:
    """SIGKILL after the first checkpoint, then the same command to the end."""
    name, run = "run=killed", project / "runs" / "killed"
    process = start(project, "sft", "sft.yaml", name)
    until(lambda: (run / "checkpoints" / "step-000010").is_dir() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert process.returncode == -signal.SIGKILL and not (run / "export").exists()
    rlvr(project, "sft", "sft.yaml", name)
    assert metrics(run) == metrics(project / "runs" / "base")
    one, other = (project / "runs" / n / "export" / "model.safetensors" for n in ("base", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_a_signal_saves_first(project: Path) -> None:
    run = project / "runs" / "stopped"
    process = start(project, "sft", "sft.yaml", "run=stopped", "steps=100000", "checkpoint.every=0")
    until(lambda: ((run / "metrics.jsonl").is_file() and len(metrics(run)) > 1) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command resumes" in out
    (saved,) = (run / "checkpoints").glob("step-*")
    assert metrics(run)[-1]["step"] == int(saved.name.removeprefix("step-"))


def test_data_without_demonstrations_is_refused(project: Path) -> None:
    rows = [{"question": f"{i}+1=?", "answer": str(i + 1)} for i in range(3)]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "data={train: {name: jsonl, prompt: question, answer: answer}, path: rows.jsonl}"
    assert "none of its 3 tasks has a demonstration" in rlvr(project, "sft", "sft.yaml", "run=none", data, code=2)


def until(condition: object, *, limit: float = 120.0) -> None:
    """Wait for a condition, no longer than `limit` seconds."""
    assert callable(condition)
    end = time.perf_counter() + limit
    while not condition():
        assert time.perf_counter() < end, "waited too long"
        time.sleep(0.05)
