"""The seam between the loop and the engines. The loop imports this and never an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from rlvr.types import F32, I32, Completion, Metrics, Plan, Request, Streams, Task, TokenBatch, Verdict

Which = Literal["policy", "reference"]


class Sampler(Protocol):
    """vLLM, one Ray actor per replica. Requests of one call go to one replica (prefix cache)."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample one completion per request, in order."""
        ...


class Verifiers(Protocol):
    """Scores text in killable child processes."""

    async def score(self, task: Task, responses: Sequence[str]) -> list[Verdict]:
        """One verdict per response, in order; never raises for what a response contains."""
        ...


class Policy(Protocol):
    """DeepSpeed, one Ray actor per rank, behind one object that splits rows over ranks."""

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        """Forward without gradient; the named streams for each row of the batch, [L] (or [d]) each."""
        ...

    async def step(self, batch: TokenBatch, plan: Plan) -> Metrics:
        """One optimizer update."""
        ...

    async def move_reference(self, *, alpha: float, reset_optimizer: bool) -> None:
        """ref <- alpha * policy + (1 - alpha) * ref; moments and step count of the optimizer to 0 if asked for."""
        ...

    async def save(self, path: Path) -> None:
        """Write model, optimizer and (if it moves) reference below `path`."""
        ...

    async def restore(self, path: Path) -> None:
        """Read what `save` wrote."""
        ...

    async def perturb(self, *, scale: float, seed: int) -> None:
        """Add seeded noise to the served weights, not to the optimizer's copy; `unperturb` undoes it exactly."""
        ...

    async def unperturb(self) -> None:
        """Restore the weights bit for bit."""
        ...

    async def export(self, path: Path) -> None:
        """Write a Hugging Face folder (safetensors, config; not the tokenizer)."""
        ...


class WeightSync(Protocol):
    """Trainer-driven weight transfer to every sampler replica."""

    async def push(self, version: int) -> Metrics:
        """Send the current weights; every replica serves `version` afterwards and its prefix cache is empty."""
        ...

    async def push_unlearned(self, batch: TokenBatch, *, eta: float, eps: float, version: int) -> Metrics:
        """One plain gradient step against the rows of the batch, on the served weights alone; see `RankPolicy.unlearn`.

        The samplers serve the result as `version`, with an empty prefix cache, until the next push; the policy has its
        own weights back, bit for bit, when this returns. The metrics hold `p_before` and `p_after`.
        """
        ...


class Scorer(Protocol):
    """What the handshake needs of a replica."""

    async def score(self, sequences: Sequence[I32]) -> list[F32]:
        """Log-probabilities [L] of given token sequences at temperature 1; index 0 is 0."""
        ...
