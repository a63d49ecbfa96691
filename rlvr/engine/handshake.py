"""The proof, before the first step, that a push reaches every sampler: perturb, push, compare, restore, push, compare.

A comparison after a tiny update could not fail: the noise is scaled up until the trainer's own log-probabilities
moved by ten times the tolerance at the end of every sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlvr.engine.protocols import Policy, Scorer, WeightSync
from rlvr.errors import HandshakeError
from rlvr.types import F32, I32, Metrics, Row, TokenBatch

MOVE = 10.0  # tolerances
FIRST_SCALE = 1e-3
DOUBLINGS = 16


async def handshake(
    policy: Policy,
    sync: WeightSync,
    replicas: Sequence[Scorer],
    *,
    tolerance: float,
    sequences: Sequence[I32],
    version: int,
    seed: int,
) -> Metrics:
    """Compare trainer and every replica on `sequences`, under perturbed and under the real weights.

    Sequences should be longer than two KV blocks: a replica scores their last token through its prefix cache, so a
    cache that outlives a push shows there. All replicas serve `version` afterwards. `tolerance` is in log-probability.

    Raises:
        HandshakeError: naming the replica, the sequence and the first position that differs. The trainer's own
            weights are restored first.
    """
    batch = as_batch(sequences)
    real = await _logp(policy, batch)
    scale, noisy = await _perturb(policy, batch, real, enough=MOVE * tolerance, seed=seed)
    try:
        await sync.push(version)
        gap = await _compare(replicas, sequences, noisy, tolerance=tolerance, phase="perturbed")
    finally:
        await policy.unperturb()
    await sync.push(version)
    gap_restored = await _compare(replicas, sequences, real, tolerance=tolerance, phase="restored")
    return {
        "handshake/gap_perturbed": gap,
        "handshake/gap_restored": gap_restored,
        "handshake/moved": _least_move(noisy, real),
        "handshake/scale": scale,
    }


def random_sequences(n: int, *, length: int, vocab: int, seed: int) -> list[I32]:
    """`n` sequences of uniform token ids below `vocab`."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, length).astype(np.int32) for _ in range(n)]


def as_batch(sequences: Sequence[I32]) -> TokenBatch:
    """Rows to be measured only: every token but the first has weight 1, at temperature 1."""
    rows = []
    for i, tokens in enumerate(sequences):
        zeros, ones = np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.float32)
        weight = ones.copy()
        weight[0] = 0
        row = Row(
            key=f"handshake/{i}", group=i, tokens=tokens, weight=weight, logprobs=zeros, temperature=ones,
            version=np.full(len(tokens), -1, np.int32), advantages=zeros,
        )  # fmt: skip
        rows.append(row)
    none = np.zeros(len(rows), np.float32)
    return TokenBatch(rows=tuple(rows), index=tuple(range(len(rows))), scale=none, sft_scale=none)


async def _logp(policy: Policy, batch: TokenBatch) -> list[F32]:
    return [row["logp"] for row in await policy.measure(batch, ["logp"])]


async def _perturb(
    policy: Policy, batch: TokenBatch, real: list[F32], *, enough: float, seed: int
) -> tuple[float, list[F32]]:
    """Perturb until every sequence's last log-prob moved by `enough`; the scale and the perturbed log-probs."""
    scale, moved = FIRST_SCALE, 0.0
    for _ in range(DOUBLINGS):
        await policy.perturb(scale=scale, seed=seed)
        noisy = await _logp(policy, batch)
        moved = _least_move(noisy, real)
        if moved >= enough:
            return scale, noisy
        await policy.unperturb()
        scale *= 2
    raise HandshakeError(
        f"handshake: noise of scale {scale / 2:g} on the trainer's weights moved its log-probabilities by {moved:.2e} "
        f"only (expected {enough:.2e}); look at whether the policy measures the weights that it perturbs"
    )


def _least_move(noisy: list[F32], real: list[F32]) -> float:
    return min(abs(float(a[-1] - b[-1])) for a, b in zip(noisy, real, strict=True))


async def _compare(
    replicas: Sequence[Scorer], sequences: Sequence[I32], trainer: list[F32], *, tolerance: float, phase: str
) -> float:
    """The largest difference over all replicas, sequences and positions."""
    worst = 0.0
    for replica, scorer in enumerate(replicas):
        for sequence, (got, want) in enumerate(zip(await scorer.score(sequences), trainer, strict=True)):
            gap = np.abs(got - want)
            if not bool((gap <= tolerance).all()):  # NaN fails as well
                raise HandshakeError(_message(replica, sequence, got, want, tolerance=tolerance, phase=phase))
            worst = max(worst, float(gap.max()))
    return worst


def _message(replica: int, sequence: int, sampler: F32, trainer: F32, *, tolerance: float, phase: str) -> str:
    wrong = ~(np.abs(sampler - trainer) <= tolerance)
    at = int(np.flatnonzero(wrong)[0])
    if at == len(trainer) - 1:
        hint = (
            "only the last position differs, the one read through the prefix cache: look for a cache that was not "
            "cleared with the push"
        )
    elif phase == "perturbed":
        hint = "the push changed nothing, or not all: look for a skipped push, a stale tied lm_head, a wrong dtype"
    else:
        hint = "the restoring push was skipped, or a tied lm_head is stale"
    return (
        f"handshake: after the {phase} push, sampler replica {replica} and the trainer disagree on sequence "
        f"{sequence}: at position {at} of {len(trainer)} the sampler has {sampler[at]:.6f}, the trainer "
        f"{trainer[at]:.6f} "
        f"(tolerance {tolerance:g}; {int(wrong.sum())} positions differ, by up to "
        f"{float(np.nanmax(np.abs(sampler - trainer))):.3g}). {hint[0].upper()}{hint[1:]}."
    )
