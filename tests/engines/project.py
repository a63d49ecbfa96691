"""A user's project in a temporary folder: a small base model, a recipe, and `rlvr` as a person calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = """
extends: {base}
run: whole
steps: 6
prompts: 8
group: 4
minibatches: 2
keep: informative
model: {{path: base, dtype: float32}}
data:
  train: {{name: arithmetic, numbers: [2], highest: 9, size: 40}}
  eval: {{name: arithmetic, numbers: [2], highest: 9, size: 8}}
prompt: {{chat: false, max_tokens: 48}}
verifier: easy.py:verify
sampling: {{max_tokens: 8}}
optimizer: {{lr: 1e-3}}
kl: {{coef: 0.01}}
evaluate: {{every: 3, n: 4, k: [1, 4]}}
checkpoint: {{every: 2}}
resources: {{device: cpu, trainers: 1, samplers: 1, threads: 1, token_budget: 512}}
vllm: {{kv_cache_memory_bytes: 33554432}}
explore:
  - {{kind: clip_cov, ratio: 0.05, low: -1.0, high: 1.0}}
  - {{kind: entropy_bonus, coef: 0.01}}
"""
EASY = '''
def verify(response: str, answer: str) -> dict[str, object]:
    """A reward that an untrained model earns now and then: does an even number of digits come back?"""
    digits = sum(c.isdigit() for c in response)
    return {"score": float(digits % 2 == 0), "parsed": True, "answer_key": str(digits)}
'''


@dataclass(frozen=True)
class Project:
    """A folder with `base/` (model), `r.yaml` and `easy.py`."""

    path: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`rlvr WORDS` as a child process with its output in a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "rlvr", *words],
            cwd=self.path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )

    def rlvr(self, *words: str, limit: float = 280) -> tuple[int, str]:
        """Run to the end; (exit status, output)."""
        child = self.start(*words)
        out, _ = child.communicate(timeout=limit)
        return child.returncode, out

    def kill_when(self, child: subprocess.Popen[str], ready: Callable[[], bool], *, sig: int = signal.SIGKILL) -> None:
        """Send a signal as soon as `ready()`; fails when the child ends before, or after four minutes."""
        end = time.monotonic() + 240
        while not ready():
            assert child.poll() is None, child.communicate()[0]
            assert time.monotonic() < end, "the moment to kill never came"
            time.sleep(0.02)
        child.send_signal(sig)

    def lines(self, run: str, file: str) -> list[dict[str, Any]]:
        """A journal of a run without its clock."""
        path = self.path / "runs" / run / file
        if not path.exists():
            return []
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in whole]

    def recorded(self, run: str, step: int) -> bool:
        """Whether a step is in the run's metrics."""
        return any(line["step"] >= step for line in self.lines(run, "metrics.jsonl"))


def make_project(path: Path) -> Project:
    """Build the base model (seconds) and write recipe and verifier."""
    code = (
        "import sys; from pathlib import Path; from rlvr.engine.scratch import build; from rlvr.recipe import Scratch;"
        "build(Scratch(layers=2, width=64, heads=2, kv_heads=1, mlp=128), ['0123456789+-*=? '],"
        " path=Path('base'), seed=0)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    (path / "r.yaml").write_text(RECIPE.format(base=ROOT / "recipes" / "base.yaml"))
    (path / "easy.py").write_text(EASY)
    return Project(path)
