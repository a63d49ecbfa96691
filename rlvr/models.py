"""Which folder a model name means, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlvr.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_model(path: str, *, project: Path, key: str = "model.path") -> str:
    """A Hugging Face folder, the `export/` of a run of ours, or a Hub name as it is.

    Raises ConfigError for a folder that does not exist or holds no model.
    """
    folder = project / Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "export" / "config.json").is_file():
        return str(folder / "export")
    if (folder / "checkpoints").is_dir():
        raise ConfigError(f"{key}: {path} is a run that was not exported yet: run `rlvr export {path}` first")
    if folder.is_dir():
        raise ConfigError(f"{key}: {folder} has no config.json: it is no Hugging Face model folder")
    if path.startswith((".", "/", "~", "runs/")):
        hint = "Give a Hugging Face folder, a run, or a Hub name (org/name)"
        raise ConfigError(f"{key}: no such folder: {folder}. {hint}")
    return path


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
