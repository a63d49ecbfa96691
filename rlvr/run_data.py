"""What a run reads before an engine starts: model folder, tokenizer, tasks, verifiers, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvr import catalog
from rlvr.errors import DataError
from rlvr.models import load_tokenizer, resolve_model
from rlvr.prompting import Prompter
from rlvr.recipe import Recipe
from rlvr.tasks import TaskStream, load_tasks
from rlvr.track.run_dir import RunDir
from rlvr.types import Task
from rlvr.verify.pool import VerifierPool
