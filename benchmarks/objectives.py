"""What a method adds to the trainer's step at V = 32k, T = 1k: a small model from nothing, one DeepSpeed rank on a CPU.

    python -m benchmarks.objectives --repeats 5

Each method has the options of its recipe `recipes/explore/KIND_quickstart.yaml`, all else is the quickstart's. It is
paired with a run without it: both engines live in one process and take turns on the same rows; what is reported is
the median of the paired ratios. Seconds are CPU seconds of the process, with one thread: what else the machine does
hardly changes them. A step is what the controller does (credit, global selection) and one optimizer update.
Forwards without gradient are apart: the one at the start of a batch against the same one without the method, and the
one that a method asks for before an update, as a part of a step without it (the first update of a batch does without).
Then the forward with each stream is compared with the one that reduces log-probs alone. At last every method takes a
step with small chunks under a probe that fails where more logits exist than a chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvr import catalog, config
from rlvr.batching import collate, micro_batches
from rlvr.credit import assign_credit, shape_rewards
from rlvr.engine.deepspeed_policy import RankPolicy
from rlvr.engine.scratch import make_model
from rlvr.engines import rank_specs
from rlvr.methods import EXPLORE, Methods, build_methods
from rlvr.recipe import Recipe, Scratch
from rlvr.types import Group, Metrics, Origin, Plan, Streams, Task, TokenBatch, Trajectory, Verdict
from rlvr.update import make_update, with_streams
from tests.engines.biggest import Biggest

VOCAB, PROMPT, GROUP = 32_768, 16, 2
MODEL = Scratch(layers=4, width=512, heads=8, kv_heads=4, mlp=1536, max_len=4096)
NOT_ENTROPY = frozenset({"length_reward", "temperature_schedule"})
STREAMS = ("entropy", "top_p_entropy(0.8)", "sum_sq", "mean_logp", "max_prob", "log_kept(0.02)", "effective_rank(40)")
SHARPNESS = 12.0  # logits with a standard deviation of about 5.4
CHUNK = 128  # tokens, under the probe


@dataclass
class OneRank:
    """`Policy` over a single rank, with the seconds that each part took."""

    rank: RankPolicy
    budget: int
    seconds: dict[str, float] = field(default_factory=dict)

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: str = "policy") -> Streams:
        with clock(self.seconds, "measure"):
            found = self.rank.measure(batch.rows, self._split(batch), frozenset(needs), model)
        return [found[i] for i in batch.index]

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        scale = dict(zip(batch.index, batch.scale.tolist(), strict=True))
        sft = dict(zip(batch.index, batch.sft_scale.tolist(), strict=True))
        marks = {name: dict(zip(batch.index, rows, strict=True)) for name, rows in plan.marks.items()}
        with clock(self.seconds, "step"):
            metrics = self.rank.step(batch.rows, self._split(batch), scale, sft, replace(plan, marks=marks))
        return {f"train/{name}": value for name, value in metrics.items()}

    def _split(self, batch: TokenBatch) -> list[tuple[int, ...]]:
        lengths = [len(batch.rows[i].tokens) for i in batch.index]
        (share,) = micro_batches(lengths, ranks=1, token_budget=self.budget)
        return [tuple(batch.index[p] for p in micro) for micro in share]


@contextlib.contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to `seconds[name]`."""
    started = time.process_time()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - started


@dataclass(frozen=True)
class Took:
    """Seconds of one step: controller and update together, and the forwards without gradient around them."""

    step: float
    before_batch: float
    before_update: float


@dataclass
class Side:
    """One engine with its methods; `one_step` is what the loop does with the groups of one step."""

    recipe: Recipe
    policy: OneRank
    methods: Methods
    steps: int = 0

    async def one_step(self, groups: Sequence[Group]) -> Took:
        """One update over all rows, as if it were not the first of its batch."""
        recipe, hooks, seconds = self.recipe, self.methods.hooks, self.policy.seconds
        seconds.clear()
        started = time.process_time()
        streamed = await with_streams(groups, self.policy, recipe, hooks)
        before_batch = seconds.pop("measure", 0.0)
        shaped = shape_rewards(
            streamed.groups, hooks, overlong=recipe.overlong, kl=recipe.kl, max_tokens=recipe.sampling.max_tokens
        )
        credited = assign_credit(shaped, hooks)
        rows = collate(credited)
        batch, plan, said = await make_update(
            rows,
            range(len(rows)),
            policy=self.policy,
            recipe=recipe,
            surrogate=self.methods.surrogate,
            addons=hooks,
            old=None,
            step=self.steps,
            update=self.steps,
            first=False,
        )
        metrics = said | await self.policy.step(batch, plan)
        for hook in hooks:
            hook.observe(credited, metrics)
        self.steps += 1
        before_update = seconds.pop("measure", 0.0)
        step = time.process_time() - started - before_batch - before_update
        return Took(step=step, before_batch=before_batch, before_update=before_update)


def main() -> None:
    """Time every method and every stream, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=None, help="kinds; all entropy methods by default")
    parser.add_argument("--streams", nargs="*", default=STREAMS)
    parser.add_argument("--tokens", type=int, default=1024, help="T, of each response")
    parser.add_argument("--prompts", type=int, default=1, help=f"each with {GROUP} responses")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    kinds = args.methods if args.methods is not None else entropy_methods()
    folder = Path(tempfile.mkdtemp(prefix="rlvr-objectives-"))
    try:
        peaked().save_pretrained(folder)
        asyncio.run(compare(kinds, folder, args))
    finally:
        shutil.rmtree(folder)


def peaked() -> Any:
    """A fresh model whose distributions are as peaked as a trained one's (2.4 nats): nuclei are small, as there."""
    model = make_model(MODEL, vocab=VOCAB, pad=0, eos=1, seed=0)
    with torch.no_grad():
        model.model.norm.weight.mul_(SHARPNESS)
    return model


def entropy_methods() -> list[str]:
    """Every shipped add-on that acts on the loss or the advantages by entropy, covariance or rank."""
    return [kind for kind in EXPLORE.kinds if kind not in NOT_ENTROPY]


async def compare(kinds: Sequence[str], folder: Path, args: argparse.Namespace) -> None:
    """Both tables; raises AssertionError where logits beyond a chunk were made."""
    groups = sample(args.prompts, args.tokens)
    plain = side(None, folder, args)
    await plain.one_step(groups)
    (row, *_) = collate(groups)
    (entropy,) = (s["entropy"] for s in plain.policy.rank.measure([row], [(0,)], frozenset({"entropy"})).values())
    print(
        f"{args.prompts * GROUP} responses of {args.tokens} tokens; mean entropy {entropy[PROMPT:].mean():.2f} nats\n"
    )
    print("| method | step against none | step, CPU s | forward before a batch | forward before an update |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        method = side(kind, folder, args)
        await method.one_step(groups)  # warm-up
        pairs = [await pair(plain, method, groups, first=i % 2) for i in range(args.repeats)]
        step = statistics.median(b.step / a.step for a, b in pairs)
        batch = statistics.median(b.before_batch / a.before_batch for a, b in pairs)
        update = statistics.median(b.before_update / a.step for a, b in pairs)
        seconds = statistics.median(b.step for _, b in pairs)
        asked = f"{update:.2f} of a step" if update else "none"
        print(f"| `{kind}` | {step:.2f}x | {seconds:.2f} | {batch:.2f}x | {asked} |", flush=True)
        await no_full_logits(method, groups)
        method.policy.rank.close()
    streams(plain, groups, args)


def side(kind: str | None, folder: Path, args: argparse.Namespace) -> Side:
    """An engine on the benchmark's model: the quickstart, with the add-ons of the method's recipe."""
    recipe = read("quickstart.yaml", args)
    if kind is not None:
        recipe = recipe.model_copy(update={"explore": read(f"explore/{kind}_quickstart.yaml", args).explore})
    (spec,) = rank_specs(recipe, model_path=str(folder), project=Path.cwd())
    policy = OneRank(RankPolicy(spec), budget=PROMPT + args.tokens)
    return Side(recipe, policy, build_methods(recipe, project=Path.cwd()))


def read(name: str, args: argparse.Namespace) -> Recipe:
    """A shipped recipe with one rank, and a learning rate at which the model stays what it is."""
    words = ["resources.trainers=1", f"resources.threads={args.threads}", "optimizer.lr=1e-6"]
    path = catalog.shipped("recipes") / name
    return config.load(path, tree=Recipe, overrides=words, project=path.parent).recipe


async def pair(plain: Side, method: Side, groups: Sequence[Group], *, first: int) -> tuple[Took, Took]:
    """One step of each, in turns: (none, method)."""
    sides = [plain, method]
    took = {i: await sides[i].one_step(groups) for i in (first, 1 - first)}
    return took[0], took[1]


async def no_full_logits(method: Side, groups: Sequence[Group]) -> None:
    """One step with small chunks, in which no tensor may hold more rows of logits than the chunk or the head."""
    rank = method.policy.rank
    chunk, rank.chunk = rank.chunk, CHUNK
    with Biggest(vocab=VOCAB) as seen:
        await method.one_step(groups)
    most = max(CHUNK, MODEL.width)
    assert seen.rows <= most, f"{seen.rows} rows of logits at once, with chunks of {CHUNK} and a head of {MODEL.width}"
    rank.chunk = chunk


def streams(plain: Side, groups: Sequence[Group], args: argparse.Namespace) -> None:
    """The forward without gradient with each stream beside log-probs, against log-probs alone."""
    rows = collate(groups)
    micro = [(i,) for i in range(len(rows))]
    print("\n| stream | forward against log-probs alone |\n|---|---|")
    for name in args.streams:
        ratios = []
        for _ in range(args.repeats):
            seconds: dict[str, float] = {}
            for label, needs in (("one", {"logp"}), ("two", {"logp", name})):
                with clock(seconds, label):
                    plain.policy.rank.measure(rows, micro, frozenset(needs))
            ratios.append(seconds["two"] / seconds["one"])
        print(f"| `{name}` | {statistics.median(ratios):.2f}x |", flush=True)


def sample(prompts: int, tokens: int) -> list[Group]:
    """Random responses, half of each group right; behaviour log-probs near those of a fresh model."""
    rng = np.random.default_rng(0)
    return [
        Group(
            task=Task(id=str(p), prompt="?", answer="!"),
            draw=p,
            trajectories=tuple(response(rng, tokens, right=g % 2 == 0) for g in range(GROUP)),
            prompt_len=PROMPT,
        )
        for p in range(prompts)
    ]


def response(rng: np.random.Generator, tokens: int, *, right: bool) -> Trajectory:
    """One row of `tokens` sampled tokens."""
    length = PROMPT + tokens
    sampled = np.arange(length) >= PROMPT
    return Trajectory(
        tokens=rng.integers(3, VOCAB, length).astype(np.int32),
        origin=np.where(sampled, Origin.SAMPLED, Origin.PROMPT).astype(np.int8),
        weight=sampled.astype(np.float32),
        logprobs=np.where(sampled, -np.log(VOCAB), 0.0).astype(np.float32),
        version=np.where(sampled, 0, -1).astype(np.int32),
        temperature=np.ones(length, np.float32),
        verdict=Verdict(score=float(right), correct=right),
    )


if __name__ == "__main__":
    main()
