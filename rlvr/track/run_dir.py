"""What lies where in `runs/NAME/`, who may write it, and how it is cut back on resume."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rlvr.errors import CheckpointError, ConfigError, DataError
from rlvr.track.journal import Journal

ROOT = Path("runs")


class RunDir:
    """The folder of one run.

    recipe.yaml     the resolved recipe          metrics.jsonl   one object a step, `step` first, clock under `time/`
    rollouts.jsonl  every group before any drop  evals.jsonl     one object an evaluation
    tensorboard/    event files                  checkpoints/    atomic directories
    summary.json    what the run came to         curve.png       its picture
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts.jsonl"
        self.evals = self.path / "evals.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self.curve = self.path / "curve.png"

    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.recipe.exists() or self.metrics.exists()

    @contextmanager
    def lock(self) -> Iterator[RunDir]:
        """Own the run while it is written; creates the folder.

        A POSIX record lock: it ends with the process however that dies, and no forked child inherits it.
        Raises ConfigError with the other process's id when the run is taken.
        """
        what = f"run: {self.path} is being written by process {{}}."
        taken = f"{what} Wait for it, stop it, or choose another name with run=NAME."
        with hold(self.path / ".lock", taken=taken):
            yield self

    def cut(self, step: int) -> None:
        """Cut metrics, rollouts and evaluations back to `step`; -1 empties them (a run that starts anew)."""
        for path in (self.metrics, self.rollouts, self.evals):
            with Journal(path) as journal:
                journal.cut(step)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json in one atomic replacement."""
        _replace(self.summary, json.dumps(summary, indent=2) + "\n")

    def write_recipe(self, text: str) -> None:
        """Write recipe.yaml in one atomic replacement: a run without it could not be resumed."""
        _replace(self.recipe, text)


@contextmanager
def hold(path: Path, *, taken: str) -> Iterator[None]:
    """Hold the lock file `path`. Where another process holds it: ConfigError `taken`, with its id in place of {}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 64, 0).decode().strip() or "unknown"
            raise ConfigError(taken.replace("{}", holder)) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}. Free some space or fix the permissions."
        raise CheckpointError(why) from error


def find_run(name: str, *, root: Path = ROOT) -> RunDir:
    """The run that `name` means: a folder, or a name below `root`.

    Raises DataError that lists the runs there are.
    """
    for path in (Path(name), root / name):
        if (run := RunDir(path)).exists():
            return run
    known = sorted(RunDir(path).name for path in root.glob("*") if RunDir(path).exists())
    close = get_close_matches(Path(name).name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(known) if known else "none yet (start one with `rlvr train RECIPE run=NAME`)"
    where = f"neither {Path(name)} nor {root / name} holds one"
    raise DataError(f"no run {name!r}: {where}.{hint} Runs in {root}/: {listing}")
