"""Where metrics go besides the journals: TensorBoard event files and Weights & Biases."""

from __future__ import annotations

import importlib.util
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rlvr.errors import ConfigError
from rlvr.track.journal import read
from rlvr.track.run_dir import RunDir


class Sink(Protocol):
    """Takes what a step or an evaluation measured."""

    def write(self, record: Mapping[str, Any], *, prefix: str = "") -> None:
        """One record with its `step`; what is not a number is left out."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `tensorboard/`, written anew from the journals when a run is opened.

    Event files cannot be cut in place, and a kill may lose their last seconds; the journals are the truth.
    """

    def __init__(self, run: RunDir) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if run.tensorboard.exists():
            shutil.rmtree(run.tensorboard)
        self._writer = SummaryWriter(str(run.tensorboard), flush_secs=10)
        for record in read(run.metrics):
            self.write(record)
        for record in read(run.evals):
            self.write(record, prefix=eval_prefix(record))

    def write(self, record: Mapping[str, Any], *, prefix: str = "") -> None:
        for name, value in scalars(record, prefix=prefix):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One Weights & Biases run for one run of ours; a resumed run continues it.

    Steps that a resumed run repeats are ignored there: a synchronous run repeats the same numbers.
    Raises ConfigError when wandb is not installed.
    """

    def __init__(self, run: RunDir, *, project: str, config: Mapping[str, Any]) -> None:
        require_wandb(project)
        import wandb  # type: ignore[import-not-found]

        mark = run.path / ".wandb_id"
        if not mark.exists():
            mark.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=project, name=run.name, id=mark.read_text(), resume="allow", dir=str(run.path), config=dict(config)
        )

    def write(self, record: Mapping[str, Any], *, prefix: str = "") -> None:
        self._run.log(dict(scalars(record, prefix=prefix)), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def require_wandb(project: str) -> None:
    """Raises ConfigError when `track.wandb` is asked for and wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"track.wandb: {project!r} asks for Weights & Biases, which is not installed. Install it with "
            "`pip install 'rlvr[wandb]'`, or leave the key out: metrics.jsonl and TensorBoard need nothing."
        )


def eval_prefix(record: Mapping[str, Any]) -> str:
    """What an evaluation's numbers are filed under."""
    return f"eval/{record['dataset']}/"


def scalars(record: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record by name, `step` left out; of an interval its value."""
    for name, item in record.items():
        value = item.get("value") if isinstance(item, Mapping) else item
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)
