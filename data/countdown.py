"""Generated countdown: `Make 36 from 3, 5, 7 and 50.`, answered by an expression such as `50-(3+5)-7+1`.

Every number is used once, with `+`, `-`, `*`, `/` and brackets. A task has many right answers, so that it shows how
varied a policy is; its verifier is `countdown`, which every task names. Targets come from expressions over the numbers
whose steps are whole and not negative, one of which is the demonstration. Levels are amounts of numbers.

No prompt is in both splits: its hash decides where it belongs, whatever the options. Licence: none needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from rlvr.errors import DataError
from rlvr.seeds import stable_seed
from rlvr.types import Task

EVERY = 4  # one prompt in four is held out
TRIES = 500  # draws without a new prompt after which a level counts as used up


class Config(BaseModel, extra="forbid"):
    numbers: tuple[int, ...] = Field((3, 4), min_length=1)  # amounts of numbers, in turn
    highest: PositiveInt = 50  # numbers are 1..highest
    target: PositiveInt = 100  # targets are 1..target
    size: PositiveInt | None = None  # tasks; null: 4500 for training, 256 held out
    seed: NonNegativeInt = 0


def load(config: Config, *, split: str, path: str | None) -> Iterable[Task]:
    """`size` different tasks, levels in turn while they have new ones; ids are `3,5,7,50=36`."""
    if path is not None:
        raise DataError(f"countdown is generated and reads no file, got data.path={path}; leave it out")
    if min(config.numbers) < 2 or max(config.numbers) > 8:
        raise DataError(f"countdown.numbers is {list(config.numbers)}; expected amounts from 2 to 8")
    size = config.size or (4500 if split == "train" else 256)
    rng = random.Random(stable_seed("countdown", split, config.seed))
    levels, seen = list(config.numbers), set[str]()
    while len(seen) < size:
        amount = levels.pop(0)
        task = next((t for _ in range(TRIES) if (t := _new(config, amount, split, rng)) and t.id not in seen), None)
        if task is not None:
            levels.append(amount)
            seen.add(task.id)
            yield task
        elif not levels:
            raise DataError(f"countdown has too few tasks of {list(config.numbers)} numbers: {len(seen)} of {size}")


def _new(config: Config, amount: int, split: str, rng: random.Random) -> Task | None:
    """A task of the split, or None where the draw had a target out of range or belongs to the other split."""
    numbers = [rng.randint(1, config.highest) for _ in range(amount)]
    text, value = expression(list(numbers), rng)
    numbers.sort()
    key = f"{','.join(map(str, numbers))}={value}"
    if not 1 <= value <= config.target or (stable_seed("countdown", key) % EVERY == 0) != (split == "eval"):
        return None
    prompt = f"Make {value} from {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}."
    return Task(key, prompt, key, verifier="countdown", demos=(f"{text}={value}",), meta={"numbers": amount})


def expression(numbers: list[int], rng: random.Random) -> tuple[str, int]:
    """A random expression over all the numbers, every step whole and not negative, and its value."""
    parts = [(str(number), number) for number in numbers]
    while len(parts) > 1:
        rng.shuffle(parts)
        (a, x), (b, y) = sorted((parts.pop(), parts.pop()), key=lambda part: -part[1])
        whole = y > 0 and x % y == 0
        operator = rng.choice("+-*/" if whole else "+-*")
        value = x + y if operator == "+" else x - y if operator == "-" else x * y if operator == "*" else x // y
        parts.append((f"({a}{operator}{b})", value))
    text, value = parts[0]
    return text[1:-1], value
