"""Samples on disk, found again by (model, prompt, sampling, seed).

One append-only file for each pair of a model and a way to sample: `runs/samples/<model>-<sampling>.jsonl`. Its first
line says of what it holds samples, every other line is one sample. A kill loses what was in flight; the next start
cuts a torn last line off and goes on. Scores are not kept: another verifier reads the same samples.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.errors import DataError
from rlvr.evaluate.samples import Draw, Sample, sample_seed
from rlvr.models import EXPORT_NOTE
from rlvr.prompting import messages_of
from rlvr.recipe import Prompt
from rlvr.track.journal import Journal, read
from rlvr.track.run_dir import ROOT, hold
from rlvr.types import Sampling, Task

FORMAT = 1
SAMPLES = ROOT / "samples"
DIGESTS = SAMPLES / "digests.json"  # `memory` of `model_digest`, below the project
HASHED = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt", "*.py")  # what makes a model folder


def model_digest(path: str, *, revision: str | None, memory: Path) -> str:
    """sha256 over the files of a model folder; of a Hub name, the name with its commit.

    `memory` is a JSON file that keeps digests by size and time of change, so that large weights are read once.
    Raises DataError where the Hub does not know the model and no copy is here.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path, revision)}"
    known: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    found: dict[str, str] = {}
    for file in sorted({f for pattern in HASHED for f in folder.glob(pattern)} - {folder / EXPORT_NOTE}):
        stat = file.stat()
        place = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if place not in known:
            with file.open("rb") as content:
                known[place] = hashlib.file_digest(content, "sha256").hexdigest()
        found[file.name] = known[place]
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_name(f".{memory.name}.{os.getpid()}")
    temporary.write_text(json.dumps(known))
    os.replace(temporary, memory)
    return _hash(found)


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"model {name!r}: {str(error).splitlines()[0]} Check the name (org/name) and the network, or give a folder."
        ) from error


def prompt_digest(task: Task, prompt: Prompt) -> str:
    """Digest of the messages that the model is shown; with the model's tokenizer they decide the token ids."""
    return _hash([messages_of(task, prompt), prompt.chat])[:24]


class SampleCache:
    """The samples of one model under one way to sample (the seed left out). Use as a context manager.

    `extra` holds what else changes the samples: the numbers' type, the engine's own settings.
    """

    def __init__(self, root: Path, *, model: str, sampling: Sampling, extra: Mapping[str, Any]) -> None:
        """Raises ConfigError while another process writes the file, DataError where it is of something else."""
        way = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        way |= {"max_tokens": sampling.max_tokens, "stop": list(sampling.stop), **extra}
        self.head = {"format": FORMAT, "model": model, "sampling": way}
        self.path = root / f"{_hash(model)[:12]}-{_hash(way)[:12]}.jsonl"
        self._known: dict[tuple[str, int], Sample] = {}
        self._lock = hold(
            self.path.with_suffix(".lock"),
            taken=f"{self.path}: another evaluation (process {{}}) writes the same samples. Wait for it, or stop it.",
        )

    def __enter__(self) -> SampleCache:
        self._lock.__enter__()
        try:
            self._journal = Journal(self.path)  # cuts a torn last line off
            lines = read(self.path)
            head = next(lines, None)
            if head is None:
                self._journal.append(self.head)
            elif head != json.loads(json.dumps(self.head)):
                raise DataError(
                    f"{self.path} holds samples of another model or another way to sample.\n  there:    {head}\n"
                    f"  expected: {self.head}\nRemove the file: its samples cannot be used here."
                )
            for line in lines:
                self._known[line["prompt"], line["seed"]] = Sample(line["text"], line["tokens"], line["finish"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "_journal" in vars(self):
            self._journal.close()
        self._lock.__exit__(None, None, None)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, prompt: str, seed: int) -> Sample | None:
        """A sample, if it is there."""
        return self._known.get((prompt, seed))

    def put(self, prompt: str, seed: int, sample: Sample) -> None:
        """Write a sample: with the operating system when this returns."""
        line = {"prompt": prompt, "seed": seed, "tokens": sample.tokens, "finish": sample.finish, "text": sample.text}
        self._journal.append(line)
        self._known[prompt, seed] = sample


def missing(cache: SampleCache, tasks: Sequence[Task], *, prompt: Prompt, n: int, seed: int) -> int:
    """How many of n samples a task are not in the cache."""
    keys = [(prompt_digest(task, prompt), task) for task in tasks]
    return sum(cache.get(key, sample_seed(seed, task, i)) is None for key, task in keys for i in range(n))


def cached(cache: SampleCache, draw: Draw | None, *, prompt: Prompt, seed: int) -> Draw:
    """Samples from the cache; what is not there is drawn and kept. `draw` may be None where nothing is missing."""

    async def both(task: Task, indices: Sequence[int]) -> list[Sample]:
        key = prompt_digest(task, prompt)
        seeds = [sample_seed(seed, task, i) for i in indices]
        lacking = [i for i, s in zip(indices, seeds, strict=True) if cache.get(key, s) is None]
        if lacking:
            assert draw is not None, "no sampler, though samples are missing"
            for i, sample in zip(lacking, await draw(task, lacking), strict=True):
                cache.put(key, sample_seed(seed, task, i), sample)
        found = [cache.get(key, s) for s in seeds]
        return [sample for sample in found if sample is not None]

    return both


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
