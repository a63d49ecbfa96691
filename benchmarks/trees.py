"""EPTree (6 chains, 2 places, 2 branches: 30 leaves) against 30 independent responses to the same number of prompts.

    python benchmarks/trees.py --tokens 32 64 128 --prompts 1 16 32 --repeats 7
    python benchmarks/trees.py --tokens 512 --prompts 8 --repeats 3
    python benchmarks/trees.py --base --prompts 1 16 32 --repeats 7

Both are sampled by the parts of a run: one vLLM replica behind Ray, the add-on's sampler around the flat one, verifiers
in processes of their own. They take turns in one session, all prompts at once, no draw twice; a ratio is of one turn.
CPU time is that of all these processes: what else the machine does hardly changes it.
With `--tokens` the model has the size of the quickstart's and random weights, and its end token is none that it can
sample: every response has that many tokens. With `--base` it is the quickstart's base model
(`rlvr sft sft/arithmetic_base` builds it), whose responses end by themselves after some 21 tokens.
Tokens are those that the samplers count for a run's metrics, checked against the add-on's own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from rlvr import config
from rlvr.cluster_samplers import SamplerPool
from rlvr.engine.scratch import VOCAB_MULTIPLE, build
from rlvr.engines import sampler_only
from rlvr.explore.base import Draw, Sample
from rlvr.loop import sampling_of
from rlvr.methods import build_methods
from rlvr.models import load_tokenizer
from rlvr.recipe import Recipe, Scratch
from rlvr.rollout.barrier import Barrier
from rlvr.rollout.groups import flat_groups
from rlvr.rollout.meter import Meter
from rlvr.run import RunContext, compose
from rlvr.run_data import RunData, read_data
from rlvr.types import Group, Metrics

RECIPE, BASE = "explore/treerl_quickstart", "runs/quickstart-base/export"
LEAVES = 30
MODEL = Scratch(layers=4, width=128, heads=4, kv_heads=2, mlp=256, max_len=1024)
SETTINGS = {"vllm.max_num_seqs": 1024, "vllm.kv_cache_memory_bytes": 1 << 29}  # nobody waits, nothing is evicted
LIMIT = 60.0


@dataclass(frozen=True)
class Turn:
    """Both ways once, on the same number of prompts: seconds, and what the samplers counted."""

    seconds: dict[str, float]
    cpu: dict[str, float]
    counted: dict[str, Metrics]
    saved_share: float

    def ratio(self, key: str) -> float:
        """The tree's against the independent responses'."""
        return self.counted["tree"][key] / self.counted["flat"][key]


@dataclass
class Bench:
    """The samplers of one recipe, and both ways to use them."""

    pool: SamplerPool
    recipe: Recipe
    data: RunData
    ways: dict[str, tuple[Sample, int]]
    draws: itertools.count[int]

    async def turn(self, prompts: int, tokens: int, order: Sequence[str]) -> Turn:
        """One after the other."""
        seconds: dict[str, float] = {}
        cpu: dict[str, float] = {}
        counted: dict[str, Metrics] = {}
        saved = 0.0
        for way in order:
            sample, group = self.ways[way]
            draws = [self._draw(group, tokens) for _ in range(prompts)]
            await self.pool.usage(limit=LIMIT)
            started, spent = time.perf_counter(), cpu_seconds()
            groups = await asyncio.gather(*(sample(draw) for draw in draws))
            seconds[way], cpu[way] = time.perf_counter() - started, cpu_seconds() - spent
            counted[way] = await self.pool.usage(limit=LIMIT)
            saved = self._checked(groups, counted[way]) if way == "tree" else saved
        return Turn(seconds, cpu, counted, saved)

    def _draw(self, group: int, tokens: int) -> Draw:
        index = next(self.draws)
        sampling = replace(sampling_of(self.recipe), max_tokens=tokens)
        return Draw(self.data.stream.draw(index), index, 0, group, sampling, ctx=self.context)

    @property
    def context(self) -> RunContext:
        """The run as the add-on sees it."""
        data, recipe = self.data, self.recipe
        tasks = data.stream.tasks
        return RunContext(
            recipe.seed,
            Meter(self.pool),
            data.verifiers,
            data.prompter,
            tasks,
            sampling_of(recipe),
            sync=None,
            barrier=Barrier(1),
            settled=partial(asyncio.sleep, 0),
        )

    def _checked(self, groups: Sequence[Group], counted: Metrics) -> float:
        """The share of tokens that the tree did not decode; every tree must be whole."""
        (method,) = [hook for hook in build_methods(self.recipe, project=Path.cwd()).hooks if hook.kind == "treerl"]
        said = method.observe(groups, {})
        if {len(g) for g in groups} != {LEAVES} or said["failed"] or said["decoded"] != counted["time/decoded"]:
            raise SystemExit(f"trees of {sorted({len(g) for g in groups})} leaves; add-on {said}, samplers {counted}")
        return said["saved_share"]


def cpu_seconds() -> float:
    """Of this process and all below it: samplers, verifiers, Ray."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)] if p.is_running())


def endless(path: Path) -> Path:
    """A random model of the quickstart's size that never ends a response: its end token stands beyond its head."""
    build(MODEL, ["0123456789+-*=? "], path=path, seed=0)
    tokenizer = load_tokenizer(str(path), revision=None, trust_remote_code=False)
    tokenizer.add_tokens([f"<{i}>" for i in range(VOCAB_MULTIPLE - len(tokenizer))])
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(path)
    about = path / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"eos_token_id": None}))
    (path / "generation_config.json").unlink()  # it names the old end token as well
    return path


async def measure(model: str, lengths: Sequence[int], prompts: Sequence[int], repeats: int) -> list[str]:
    """Rows of the table for one model."""
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    words = [*settings, f"model.path={model}", f"sampling.max_tokens={max(lengths)}"]
    recipe = config.load(RECIPE, overrides=words, project=Path.cwd()).recipe
    assert isinstance(recipe, Recipe)
    data = read_data(recipe, project=Path.cwd())
    async with AsyncExitStack() as stack:
        stack.enter_context(data.verifiers)
        pool = await stack.enter_async_context(
            sampler_only(
                model_path=data.model_path,
                dtype=recipe.model.dtype,
                max_len=data.longest_prompt + max(lengths),
                seed=recipe.seed,
                resources=recipe.resources,
                limits=recipe.limits,
                overrides=recipe.vllm,
            )
        )
        flat = flat_groups(pool, data.verifiers, data.prompter, seed=recipe.seed)
        tree = compose(build_methods(recipe, project=Path.cwd()).hooks, flat)
        bench = Bench(pool, recipe, data, {"tree": (tree, recipe.group), "flat": (flat, LEAVES)}, itertools.count())
        rows = []
        for tokens, number in itertools.product(lengths, prompts):
            turns = []
            for repeat in range(repeats + 1):
                turn = await bench.turn(number, tokens, ("tree", "flat") if repeat % 2 else ("flat", "tree"))
                turns += [turn] if repeat else []  # the first is a warm-up
                print(f"{tokens} x {number}: {turn.seconds}, CPU {turn.cpu}", flush=True)
            rows.append(row(number, turns))
            print(rows[-1], flush=True)
        return rows


def row(prompts: int, turns: Sequence[Turn]) -> str:
    """One line of the table."""
    length = statistics.median(t.counted["flat"]["time/decoded"] / prompts / LEAVES for t in turns)
    times = {way: statistics.median(t.seconds[way] for t in turns) for way in ("flat", "tree")}
    running = statistics.median(t.ratio("time/running") for t in turns)
    share = statistics.median(t.counted["tree"]["time/prefix_share"] for t in turns)
    saved = statistics.median(t.saved_share for t in turns)
    seconds, cpu = (
        [took["tree"] / took["flat"] for took in kind] for kind in ([t.seconds for t in turns], [t.cpu for t in turns])
    )
    return (
        f"| {length:.0f} | {prompts} | {spread([t.ratio('time/decoded') for t in turns])} | {saved:.2f} | {share:.2f} "
        f"| {times['flat']:.2f} | {times['tree']:.2f} | {spread(seconds)} | {spread(cpu)} "
        f"| {running:.2f} |"
    )


def spread(values: Sequence[float]) -> str:
    """The median with its quartiles."""
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{mid:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[])
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.tokens:
            rows += asyncio.run(measure(str(endless(Path(folder))), args.tokens, args.prompts, args.repeats))
    if args.base:
        rows += asyncio.run(measure(BASE, [48], args.prompts, args.repeats))
    print("| response | prompts | decoded | shared | from cache | flat, s | tree, s | time | CPU time | running |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
