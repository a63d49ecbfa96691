"""Any dataset of the Hugging Face Hub. Columns are named in the recipe.

`data: {train: {name: hub, dataset: org/name, hub_split: train, prompt: question, revision: COMMIT}}`. Source, licence
and quirks are the dataset's own; pin a `revision`, or its rows may change under a run.
Offline: RLVR_DATA=<folder> with name.jsonl (what follows the `/`), or name_config.jsonl with a `config`.
"""

from __future__ import annotations

from pydantic import Field

from rlvr.cards import Columns
from rlvr.rows import Dataset, build_tasks, read_file, read_hub


class Config(Columns):
    dataset: str
    config: str | None = None  # of the Hub; null: its default
    hub_split: str = Field("train", min_length=1)  # the Hub's name of the split
    revision: str | None = None  # commit, tag or branch; null: the newest


def load(config: Config, *, split: str, path: str | None) -> Dataset:
    """Every row of the Hub's split, whatever ours; of `path` (data.path) where there is one."""
    parts = [config.dataset.rpartition("/")[2], config.config]
    local = "_".join(part for part in parts if part)
    hub = read_hub(config.dataset, config.config, split=config.hub_split, local=local, revision=config.revision)
    return build_tasks(read_file(path) if path else hub, config.task)
