"""`rlvr export RUN [--step N] [--out DIR]`: a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="A run: its name or its folder.")],
    step: Annotated[int | None, typer.Option(help="Of this checkpoint (default: the newest).")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to (default: RUN/export).")] = None,
) -> None:
    """Write a run's model and tokenizer as a Hugging Face folder."""
    from rlvr.export import export_run
    from rlvr.track.run_dir import find_run

    print(f"written: {export_run(find_run(run), step=step, out=out, project=Path.cwd())}")
