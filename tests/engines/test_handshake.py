"""The handshake on hand-made engines; against a real one see test_vllm_engine.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from rlvr.engine.handshake import as_batch, handshake, random_sequences
from rlvr.engine.protocols import Which
from rlvr.errors import HandshakeError
from rlvr.types import F32, I32, Metrics, Streams, TokenBatch

SEQUENCES = [np.arange(6, dtype=np.int32), np.arange(4, dtype=np.int32)]


class Trainer:
    """Log-probs are -(token + shift); the shift is the weight. Pushes copy it to the replicas."""

    def __init__(self, replicas: Sequence[Sampler], *, stuck: bool = False) -> None:
        self.shift, self.real, self.stuck = 1.0, 1.0, stuck
        self.replicas = replicas
        self.log: list[str] = []
        self.fail_at = 0

    async def measure(self, batch: TokenBatch, needs: Iterable[str], model: Which = "policy") -> Streams:
        return [{"logp": np.where(r.weight > 0, -(r.tokens + self.shift), 0).astype(np.float32)} for r in batch.picked]

    async def perturb(self, *, scale: float, seed: int) -> None:
        assert self.shift == self.real, "perturbed twice"
        self.log.append(f"perturb {scale:g}")
        self.shift = self.real if self.stuck else self.real + scale

    async def unperturb(self) -> None:
        self.log.append("unperturb")
        self.shift = self.real

    async def push(self, version: int) -> Metrics:
        self.log.append(f"push {version}")
        for replica in self.replicas:
            replica.take(self.shift)
        return {}


class Sampler:
    """A replica; `broken` says how."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.shift, self.last = broken, 1.0, 1.0

    def take(self, shift: float) -> None:
        if self.broken == "skips" or (self.broken == "skips second" and shift == 1.0):
            return
        self.last = self.shift if self.broken == "stale cache" else shift
        self.shift = shift

    async def score(self, sequences: Sequence[I32]) -> list[F32]:
        scores = [-(s + self.shift).astype(np.float32) for s in sequences]
        for s in scores:
            s[-1] -= self.last - self.shift
            s[0] = 0
        if self.broken == "nan":
            scores[1][2] = np.nan
        return scores


async def shake(trainer: Trainer) -> Metrics:
    return await handshake(trainer, trainer, trainer.replicas, tolerance=1e-3, sequences=SEQUENCES, version=7, seed=0)


async def test_scale_doubles_until_ten_tolerances_then_restores() -> None:
    trainer = Trainer([Sampler(), Sampler()])
    measured = await shake(trainer)
    scales = ["perturb 0.001", "perturb 0.002", "perturb 0.004", "perturb 0.008", "perturb 0.016"]
    tried = [line for scale in scales for line in (scale, "unperturb")][:-1]
    assert trainer.log == [*tried, "push 7", "unperturb", "push 7"]
    assert measured["handshake/moved"] == pytest.approx(0.016, abs=1e-5)
    assert measured["handshake/gap_perturbed"] == measured["handshake/gap_restored"] == 0
    assert [r.shift for r in trainer.replicas] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("skips", r"perturbed push, sampler replica 1 .* sequence 0: at position 1 of 6 the sampler has -2\.000000, "
                  r"the trainer -2\.016.* \(tolerance 0.001; 5 positions differ, by up to 0.016\).*skipped push"),
        ("skips second", r"restored push, sampler replica 1 .* position 1 of 6 .*restoring push was skipped"),
        ("stale cache", r"perturbed push, sampler replica 1 .* position 5 of 6 .*cache that was not cleared"),
        ("nan", r"perturbed push, sampler replica 1 .* sequence 1: at position 2 of 4 the sampler has nan"),
    ],
)  # fmt: skip
async def test_each_break_is_named_and_the_trainer_is_restored(broken: str, message: str) -> None:
    trainer = Trainer([Sampler(), Sampler(broken)])
    with pytest.raises(HandshakeError, match=message):
        await shake(trainer)
    assert trainer.shift == trainer.real


async def test_a_trainer_that_does_not_measure_its_weights_is_no_proof() -> None:
    with pytest.raises(HandshakeError, match="measures the weights that it perturbs"):
        await shake(Trainer([Sampler()], stuck=True))


def test_random_sequences_are_seeded_and_inside_the_vocabulary() -> None:
    one, two = (random_sequences(3, length=70, vocab=40, seed=5) for _ in range(2))
    assert all((a == b).all() and a.shape == (70,) and a.dtype == np.int32 for a, b in zip(one, two, strict=True))
    assert len({s.tobytes() for s in one}) == 3 and max(s.max() for s in one) < 40
    batch = as_batch(one)
    assert [r.weight.sum() for r in batch.picked] == [69] * 3
