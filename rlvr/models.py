"""Which folder a model name means, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlvr.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXPORT_NOTE = "rlvr_export.json"  # in an exported folder: which checkpoint it was made from


def resolve_model(path: str, *, project: Path, key: str = "model.path") -> str:
    """A Hugging Face folder, the `export/` of a run of ours, or a Hub name as it is.

    Raises ConfigError for a folder that does not exist or holds no model, and for a run that was trained on since
    it was exported (naming `RUN/export` itself takes it as it is).
    """
    folder = project / Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    export = folder / "export"
    if (export / "config.json").is_file():
        if late := _later(folder):
            raise ConfigError(
                f"{key}: {export} was written before {late.name}, the newest checkpoint of this run: run "
                f"`rlvr export {path}` for that one, or name {path}/export to take it as it is"
            )
        return str(export)
    if (folder / "checkpoints").is_dir():
        raise ConfigError(f"{key}: {path} is a run that was not exported yet: run `rlvr export {path}` first")
    if folder.is_dir():
        raise ConfigError(f"{key}: {folder} has no config.json: it is no Hugging Face model folder")
    if path.startswith((".", "/", "~", "runs/")):
        hint = "Give a Hugging Face folder, a run, or a Hub name (org/name)"
        raise ConfigError(f"{key}: no such folder: {folder}. {hint}")
    return path


def _later(run: Path) -> Path | None:
    """The newest checkpoint of a run, where its export is of an earlier step."""
    newest = max((run / "checkpoints").glob("step-*"), default=None)
    if newest is None:
        return None
    note = run / "export" / EXPORT_NOTE
    if note.is_file():
        return newest if json.loads(note.read_text(encoding="utf-8"))["checkpoint"] != newest.name else None
    return newest if newest.stat().st_mtime > (run / "export").stat().st_mtime else None


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub name.

    Raises ConfigError when there is none, or the Hub cannot be reached.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: no tokenizer can be loaded from {path!r}: {str(error).splitlines()[0]} "
            "Check the name (org/name on the Hub, or a folder with tokenizer.json) and the network."
        ) from error
