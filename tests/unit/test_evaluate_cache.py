"""Samples on disk: nothing is sampled twice, a kill loses nothing that was written, another model's are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlvr.errors import ConfigError, DataError
from rlvr.evaluate.cache import SampleCache, cached, missing, model_digest, prompt_digest
from rlvr.evaluate.run import evaluate
from rlvr.evaluate.samples import Draw, Sample, sample_seed
from rlvr.recipe import Prompt
from rlvr.types import Sampling, Task, Verdict

TASKS = [Task(f"t{i}", f"q{i}", str(i)) for i in range(3)]
SAMPLING = Sampling(temperature=0.7, max_tokens=5)
PROMPT = Prompt()


def opened(folder: Path, *, model: str = "m", sampling: Sampling = SAMPLING) -> SampleCache:
    return SampleCache(folder, model=model, sampling=sampling, extra={"dtype": "float32"})


def counting(asked: list[tuple[str, int]], *, stop_at: int | None = None) -> Draw:
    """Answers with its own number; fails when it has given `stop_at` samples."""

    async def draw(task: Task, indices: Sequence[int]) -> list[Sample]:
        for i in indices:
            if stop_at is not None and len(asked) >= stop_at:
                raise RuntimeError("killed")
            asked.append((task.id, i))
        return [Sample(f"{task.id}/{i} \ud800 \n", i, "stop") for i in indices]

    return draw


def through(cache: SampleCache, draw: Draw | None, *, n: int, seed: int = 0, prompt: Prompt = PROMPT) -> list[Sample]:
    both = cached(cache, draw, prompt=prompt, seed=seed)

    async def every() -> list[Sample]:
        return [sample for task in TASKS for sample in await both(task, range(n))]

    return asyncio.run(every())


def test_nothing_is_sampled_twice_and_more_samples_keep_the_first(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    with opened(tmp_path) as cache:
        first = through(cache, counting(asked), n=2)
        assert len(asked) == 6 and missing(cache, TASKS, prompt=PROMPT, n=4, seed=0) == 6
    with opened(tmp_path) as cache:
        assert through(cache, None, n=2) == first
        more = through(cache, counting(asked), n=4)
        assert asked[6:] == [(t.id, i) for t in TASKS for i in (2, 3)]
        assert [s for i, s in enumerate(more) if i % 4 < 2] == first


def test_model_prompt_sampling_and_seed_are_the_key(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        through(cache, counting([]), n=2)
        assert missing(cache, TASKS, prompt=PROMPT, n=2, seed=0) == 0
        assert missing(cache, TASKS, prompt=PROMPT, n=2, seed=1) == 6
        assert missing(cache, TASKS, prompt=Prompt(system="Be brief."), n=2, seed=0) == 6
        assert missing(cache, TASKS, prompt=Prompt(template="Q: {prompt}"), n=2, seed=0) == 6
        assert missing(cache, [replace(TASKS[0], answer="9")], prompt=PROMPT, n=2, seed=0) == 0
    for other in (opened(tmp_path, model="m2"), opened(tmp_path, sampling=replace(SAMPLING, top_p=0.9))):
        assert other.path != cache.path
        with other:
            assert len(other) == 0


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    with pytest.raises(RuntimeError), opened(tmp_path) as cache:
        through(cache, counting(asked, stop_at=5), n=2)
    assert len(asked) == 5  # the fifth is lost with its call
    torn = cache.path.read_bytes()
    cache.path.write_bytes(torn + b'{"prompt": "half a li')
    with opened(tmp_path) as cache:
        assert len(cache) == 4
        again: list[tuple[str, int]] = []
        through(cache, counting(again), n=2)
        assert again == [("t2", 0), ("t2", 1)]
    assert all(json.loads(line) for line in cache.path.read_text().splitlines())


def test_another_verifier_reads_the_same_samples(tmp_path: Path) -> None:
    class Says:
        def __init__(self, right: bool) -> None:
            self.right = right

        async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
            return [Verdict(float(self.right), self.right, answer_key="x") for _ in responses]

    def scored(cache: SampleCache, draw: Draw | None, verifier: Says, k: int) -> float:
        source = cached(cache, draw, prompt=PROMPT, seed=0)
        job = evaluate(TASKS, dataset="toy", draw=source, verifiers=verifier, n=4, ks=(k,), seed=0, max_tokens=5)
        return asyncio.run(job).scores[f"pass@{k}"].value

    with opened(tmp_path) as cache:
        assert scored(cache, counting([]), Says(True), 1) == 1.0
        assert scored(cache, None, Says(False), 1) == 0.0
        assert scored(cache, None, Says(True), 4) == 1.0


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        through(cache, counting([]), n=1)
    lines = cache.path.read_text().splitlines(keepends=True)
    cache.path.write_text(lines[0].replace('"m"', '"other"') + "".join(lines[1:]))
    with (
        pytest.raises(DataError, match=r"(?s)another model or another way to sample.*'other'.*Remove the file"),
        opened(tmp_path),
    ):
        raise AssertionError("it was opened")


def test_two_writers_are_told_apart(tmp_path: Path) -> None:
    import multiprocessing

    with opened(tmp_path), multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "another evaluation (process" in pool.apply(try_to_open, (tmp_path,))
    assert try_to_open(tmp_path) == ""


def try_to_open(folder: Path) -> str:
    try:
        with opened(folder):
            return ""
    except ConfigError as error:
        return str(error)


def test_the_digest_is_of_what_makes_the_model(tmp_path: Path) -> None:
    model, memory = tmp_path / "model", tmp_path / "digests.json"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    first = model_digest(str(model), revision=None, memory=memory)
    (model / "README.md").write_text("x")
    (model / "rlvr_export.json").write_text("{}")
    assert model_digest(str(model), revision=None, memory=memory) == first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert model_digest(str(model), revision=None, memory=memory) != first


def test_seeds_do_not_depend_on_n_or_dataset() -> None:
    assert (
        sample_seed(3, TASKS[0], 1) == sample_seed(3, replace(TASKS[0], source="x"), 1) != sample_seed(4, TASKS[0], 1)
    )
    assert prompt_digest(TASKS[0], PROMPT) != prompt_digest(TASKS[1], PROMPT)
