"""How often the 95 % intervals of `rlvr eval` hold the truth, on simulated models and benchmarks.

    python benchmarks/eval_coverage.py [--rounds 2000]

A population says how likely a question is to be answered right. Over questions: Q questions are drawn from it and n
samples of each; the truth is pass@k of the whole population. Over samples: the same draws; the truth is pass@k of
these Q questions. The quick version of this is in tests/unit/test_evaluate_interval.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlvr.evaluate.interval import estimate, over_samples
from rlvr.evaluate.pass_at_k import pass_at_k

F64 = npt.NDArray[np.float64]
Population = Callable[[np.random.Generator, int], F64]
MANY = 400_000  # questions that stand for a whole population
THIRTY = np.array([1.0] * 9 + [0.75] * 3 + [0.5] * 4 + [0.25] * 4 + [0.0] * 10)


def _hard(rng: np.random.Generator, size: int) -> F64:
    return np.where(rng.random(size) < 0.8, 0.0, rng.beta(0.5, 2, size))


POPULATIONS: dict[str, Population] = {
    "aime": lambda rng, size: rng.choice(THIRTY, size),  # many never, many always
    "middle": lambda rng, size: rng.beta(2, 3, size),
    "sparse": lambda rng, size: rng.beta(0.2, 2, size),  # most nearly never
    "hard": _hard,  # four in five never
}


@dataclass(frozen=True)
class Coverage:
    """Shares of rounds in which the interval held the truth."""

    over_questions: float
    over_samples: float  # NaN where there is no such interval
    percentiles: float  # over questions, if the interval were the resampled means' percentiles


def coverage(
    population: Population, *, questions: int, n: int, k: int, rounds: int, resamples: int, seed: int
) -> Coverage:
    """Simulate `rounds` evaluations with a seed."""
    rng = np.random.default_rng(seed)
    truth = float((1 - (1 - population(rng, MANY)) ** k).mean())
    held = np.zeros((rounds, 3))
    for i in range(rounds):
        chances = population(rng, questions)
        correct = rng.binomial(n, chances)
        values = pass_at_k(n, correct, k)
        found = estimate(values, seed=i, resamples=resamples)
        means = values[np.random.default_rng(i).integers(0, questions, (resamples, questions))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        noise = over_samples(pass_at_k, np.full(questions, n), correct, k)
        here = float((1 - (1 - chances) ** k).mean())
        again = np.nan if noise is None else noise[0] <= here <= noise[1]
        held[i] = found.low <= truth <= found.high, again, low <= truth <= high
    return Coverage(*(float(share) for share in held.mean(axis=0)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    print(f"{rounds} rounds: shares between {0.95 - 1.96 * (0.0475 / rounds) ** 0.5:.3f} and "
          f"{0.95 + 1.96 * (0.0475 / rounds) ** 0.5:.3f} are 0.95 within the simulation's own noise")  # fmt: skip
    print(f"{'population':<12}{'Q':>5}{'n':>5}{'k':>5}{'over questions':>16}{'over samples':>14}{'percentiles':>13}")
    for questions, n, ks in ((30, 32, (1, 4, 16)), (100, 32, (1, 4, 16)), (256, 64, (1, 8, 32)), (500, 4, (1, 2))):
        for name, population in POPULATIONS.items():
            for k in ks:
                found = coverage(population, questions=questions, n=n, k=k, rounds=rounds, resamples=1000, seed=0)
                shares = f"{found.over_questions:>16.3f}{found.over_samples:>14.3f}{found.percentiles:>13.3f}"
                print(f"{name:<12}{questions:>5}{n:>5}{k:>5}{shares}", flush=True)


if __name__ == "__main__":
    main()
