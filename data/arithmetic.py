"""Generated arithmetic: `3+4*2=?` with worked steps, for a model so small that a CPU trains it from nothing.

A chain of numbers is worked out one operation at a time, products first: `3+4*2=?` is answered `4*2=8,3+8=11`.
The answer is what follows the last `=` (verifier `exact`). A demonstration gets each step wrong with probability
`noise` and goes on from the wrong value, so that a model trained on them is right now and then and has
something to learn. Levels are lengths of chains: `numbers: [2, 3]` is the quickstart's, `[3, 4, 4, 5]` a sparse one.

For guidance by others: `noise: [0.0, 0.2, 0.6]` are three teachers, from one that never errs to a poor one; each gives
`demos` demonstrations, in the order of the list, and `meta["teachers"]` has the error rate behind each demonstration.
With `hints: true` a task has the beginnings of the right solution, shortest first (`4*2=`, `4*2=8,`, `4*2=8,3+8=`),
never its last number.

No prompt is in both splits: its hash decides where it belongs, whatever the options. Licence: none needed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from rlvr.errors import DataError
from rlvr.seeds import stable_seed
from rlvr.types import Task

EVERY = 4  # one prompt in four is held out
FACTOR = 9  # numbers beside a `*` are 1..9
NEAR = 20  # a wrong step is off by 1 to 20
TRIES = 200  # draws without a new prompt after which a level counts as used up
PRODUCT = re.compile(r"(\d+)(\*)(\d+)")
SUM = re.compile(r"(-?\d+)([+-])(\d+)")
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Teachers = Annotated[tuple[Rate, ...], Field(min_length=1)]


class Config(BaseModel, extra="forbid"):
    numbers: tuple[int, ...] = Field((2, 3), min_length=1)  # lengths of chains, in turn (repeat one for more)
    highest: PositiveInt = 9  # numbers are 1..highest
    operators: tuple[Literal["+", "-", "*"], ...] = Field(("+", "-", "*"), min_length=1)
    size: PositiveInt | None = None  # tasks; null: 4500 for training, 256 held out
    seed: NonNegativeInt = 0
    noise: Rate | Teachers = 0.4  # wrong steps in demonstrations; a list: one teacher for each rate
    demos: NonNegativeInt = 4  # of each teacher, per task
    hints: bool = False  # with beginnings of the right solution


def load(config: Config, *, split: str, path: str | None) -> Iterable[Task]:
    """`size` different tasks, levels in turn while they have new chains; ids are the expressions."""
    if path is not None:
        raise DataError(f"arithmetic is generated and reads no file, got data.path={path}; leave it out")
    if min(config.numbers) < 2:
        raise DataError(f"arithmetic.numbers is {list(config.numbers)}; a chain needs 2 numbers or more")
    size = config.size or (4500 if split == "train" else 256)
    rng = random.Random(stable_seed("arithmetic", split, config.seed))
    levels, seen = list(config.numbers), set[str]()
    while len(seen) < size:
        length = levels.pop(0)
        chain = _new_chain(config, length, split=split, seen=seen, rng=rng)
        if chain is not None:
            levels.append(length)
            seen.add(chain)
            yield _task(chain, config=config, rng=rng)
        elif not levels:
            raise DataError(
                f"arithmetic has too few chains of {list(config.numbers)} numbers up to {config.highest}: "
                f"{len(seen)} found, {size} wanted; lower `size`, raise `highest` or allow longer chains in `numbers`"
            )


def _task(chain: str, *, config: Config, rng: random.Random) -> Task:
    steps, answer = worked(chain, noise=0.0, rng=rng)
    rates = config.noise if isinstance(config.noise, tuple) else (config.noise,)
    teachers = tuple(rate for rate in rates for _ in range(config.demos))
    return Task(
        id=chain,
        prompt=f"{chain}=?",
        answer=str(answer),
        demos=tuple(",".join(worked(chain, noise=rate, rng=rng)[0]) for rate in teachers),
        hints=beginnings(steps) if config.hints else (),
        meta={"numbers": len(re.findall(r"\d+", chain)), "teachers": teachers},
    )


def beginnings(steps: Sequence[str]) -> tuple[str, ...]:
    """The right solution cut behind every `=` and every `,`, shortest first."""
    text = ",".join(steps)
    return tuple(text[: i + 1] for i, character in enumerate(text) if character in "=,")


def held_out(chain: str) -> bool:
    """Whether a chain belongs to the eval split; a function of the chain alone."""
    return stable_seed("arithmetic", chain) % EVERY == 0


def _new_chain(config: Config, length: int, *, split: str, seen: set[str], rng: random.Random) -> str | None:
    for _ in range(TRIES):
        chain = _chain(config, length, rng)
        if chain not in seen and held_out(chain) == (split == "eval"):
            return chain
    return None


def _chain(config: Config, length: int, rng: random.Random) -> str:
    operators = [rng.choice(config.operators) for _ in range(length - 1)]
    text = ""
    for i in range(length):
        beside = (*operators[max(i - 1, 0) : i], *operators[i : i + 1])
        top = min(FACTOR, config.highest) if "*" in beside else config.highest
        text += str(rng.randint(1, top)) + "".join(operators[i : i + 1])
    return text


def worked(chain: str, *, noise: float, rng: random.Random) -> tuple[list[str], int]:
    """Steps such as `4*2=8`, products first, and the result; each step is wrong with probability `noise`."""
    steps: list[str] = []
    while (step := PRODUCT.search(chain) or SUM.match(chain)) is not None:
        a, operator, b = int(step[1]), step[2], int(step[3])
        value = a * b if operator == "*" else a + b if operator == "+" else a - b
        if rng.random() < noise:
            value = _wrong(value, rng, positive=operator == "*")
        steps.append(f"{step[0]}={value}")
        chain = f"{chain[: step.start()]}{value}{chain[step.end() :]}"
    return steps, int(chain)


def _wrong(value: int, rng: random.Random, *, positive: bool) -> int:
    """A number near `value`; a product stays positive, since `-` is an operator inside a chain."""
    near = [value + d for d in range(-NEAR, NEAR + 1) if d and (value + d >= 0 or not positive)]
    return rng.choice(near)
