"""Per-token streams against a plain forward, on a tiny model without any engine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlvr.engine.deepspeed_loss import Losses, MicroBatch, Totals, filler, make_view, pick
from rlvr.engine.forward import TokenStreams, forward, pad, pad_values
from rlvr.engine.scratch import make_model
from rlvr.errors import EngineError
from rlvr.methods import build_objective
from rlvr.recipe import KL, Correction, Objective, Scratch
from rlvr.types import Plan, Row
from tests.engines.biggest import Biggest

VOCAB, PAD = 64, 0
BOTH = frozenset({"logp", "entropy"})
LOGP = frozenset({"logp"})


def make(*, tied: bool = True, width: int = 16, layers: int = 1) -> TokenStreams:
    spec = Scratch(layers=layers, width=width, heads=2, kv_heads=1, mlp=32, max_len=64, tied=tied)
    model = make_model(spec, vocab=VOCAB, pad=PAD, eos=1, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5.0) if p.dim() > 1 else None  # log-probs that differ
    return TokenStreams(model)


@pytest.fixture(scope="module")
def net() -> TokenStreams:
    return make()


def row(length: int, *, seed: int = 0, prompt: int = 2, **changes: object) -> Row:
    rng = np.random.default_rng([seed, length])
    base = Row(
        key=f"{seed}/0", group=seed, tokens=rng.integers(0, VOCAB, length).astype(np.int32),
        weight=(np.arange(length) >= prompt).astype(np.float32), logprobs=np.full(length, -3.0, np.float32),
        version=np.zeros(length, np.int32), temperature=rng.uniform(0.5, 1.5, length).astype(np.float32),
        advantages=np.ones(length, np.float32),
    )  # fmt: skip
    return replace(base, **changes)


def plain(net: TokenStreams, one: Row) -> dict[str, np.ndarray]:
    """Index t describes token t: logits at t-1 over the temperature of token t."""
    tokens = torch.from_numpy(one.tokens.astype(np.int64))
    with torch.no_grad():
        logits = net.lm(input_ids=tokens[None]).logits[0, :-1].double()
    logp = torch.log_softmax(logits / torch.from_numpy(one.temperature[1:])[:, None], -1)
    chosen = logp.gather(-1, tokens[1:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    mask = one.weight[1:] != 0
    return {
        "logp": np.concatenate([[0.0], chosen.numpy() * mask]),
        "entropy": np.concatenate([[0.0], entropy.numpy() * mask]),
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streams_are_those_of_each_row_alone(tied: bool, chunk: int) -> None:
    net = make(tied=tied)
    rows = [row(length, seed=i) for i, length in enumerate((9, 3, 14))]
    out = forward(net, rows, needs=BOTH, chunk=chunk, device="cpu")
    for b, one in enumerate(rows):
        for name, expected in plain(net, one).items():
            np.testing.assert_allclose(out[name][b, : len(one.tokens)].numpy(), expected, atol=2e-5)
            assert not out[name][b, len(one.tokens) :].any()


def test_a_sampled_pad_token_is_a_token(net: TokenStreams) -> None:
    tokens = np.array([5, 9, PAD, PAD, 7, PAD], np.int32)
    one = row(6, tokens=tokens)
    out = forward(net, [one, row(12)], needs=LOGP, chunk=100, device="cpu")["logp"][0]
    np.testing.assert_allclose(out[:6].numpy(), plain(net, one)["logp"], atol=2e-5)
    assert (out[2:6] < 0).all()


def test_only_asked_tokens_are_projected(net: TokenStreams) -> None:
    one = row(10, weight=np.eye(10, dtype=np.float32)[4])
    with Biggest(vocab=VOCAB) as seen:
        out = forward(net, [one], needs=LOGP, chunk=100, device="cpu")["logp"]
    assert (out != 0).sum() == 1 and out[0, 4] < 0
    assert seen.rows <= 16  # the head's weight has 16 columns
    everything = forward(net, [one], needs=LOGP, chunk=100, device="cpu", asked=[np.ones(10, bool)])["logp"]
    assert (everything != 0).sum() == 9 and everything[0, 0] == 0  # nothing predicts token 0


def test_the_supervised_channel_asks_too(net: TokenStreams) -> None:
    one = row(8, weight=np.zeros(8, np.float32), sft_weight=np.eye(8, dtype=np.float32)[3])
    out = forward(net, [one], needs=LOGP, chunk=100, device="cpu")["logp"]
    assert out.nonzero().tolist() == [[0, 3]]


def gradient(net: TokenStreams, rows: list[Row], *, chunk: int, grad: frozenset[str]) -> torch.Tensor:
    net.zero_grad()
    out = forward(net, rows, needs=BOTH, grad=grad, chunk=chunk, device="cpu")
    (out["logp"] * 0.7 + out["entropy"] * 0.3).sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("grad", [LOGP, BOTH])
def test_chunks_change_no_gradient(net: TokenStreams, grad: frozenset[str]) -> None:
    rows = [row(9), row(5, seed=1)]
    whole = gradient(net, rows, chunk=1000, grad=grad)
    torch.testing.assert_close(gradient(net, rows, chunk=2, grad=grad), whole, atol=1e-5, rtol=1e-4)
    alone = sum(gradient(net, [one], chunk=1000, grad=grad) for one in rows)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-4)


def test_names_outside_grad_carry_none(net: TokenStreams) -> None:
    difference = gradient(net, [row(9)], chunk=9, grad=BOTH) - gradient(net, [row(9)], chunk=9, grad=LOGP)
    assert difference.abs().max() > 1e-4
    assert not forward(net, [row(9)], needs=BOTH, chunk=9, device="cpu")["logp"].requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_no_logits_beyond_a_chunk_in_forward_or_backward(tied: bool) -> None:
    net = make(tied=tied)
    rows = [row(40, seed=i) for i in range(4)]  # 152 tokens
    with Biggest(vocab=VOCAB) as seen:
        gradient(net, rows, chunk=20, grad=LOGP)
    assert seen.rows <= 20 and seen.kept <= 16  # the head's weight has 16 columns
    with Biggest(vocab=VOCAB) as seen:
        gradient(net, rows, chunk=1000, grad=LOGP)
    assert seen.rows == 152 <= seen.kept  # the probe can see them


def test_more_pieces_than_tokens(net: TokenStreams) -> None:
    """Another rank may need more chunks than this one has tokens: it projects dummies, without effect."""
    one = row(5)
    out = forward(net, [one], needs=LOGP, grad=LOGP, chunk=100, device="cpu", agree=lambda pieces: 9)["logp"]
    np.testing.assert_allclose(out[0].detach().numpy(), plain(net, one)["logp"], atol=2e-5)
    nothing = forward(net, [filler(one)], needs=LOGP, grad=LOGP, chunk=100, device="cpu")["logp"]
    net.zero_grad()
    (nothing * 1.0).sum().backward()
    assert nothing.shape == (1, 2) and all(not p.grad.any() for p in net.parameters() if p.grad is not None)


def test_unknown_streams_and_heads_are_refused(net: TokenStreams) -> None:
    for name, text in {
        "top_h": "entropy, log_kept(kappa), logp, ",
        "entropy(2)": "unknown token stream entropy(2): expected",
        "top_p_entropy": "expected top_p_entropy(p) with p above 0 and up to 1",
        "top_p_entropy(0)": "expected top_p_entropy(p)",
        "log_kept(1.5)": "expected log_kept(kappa) with kappa from 0 to 1",
        "log_kept(nan)": "expected log_kept(kappa)",
        "effective_rank": "expected effective_rank(stride)",
        "effective_rank(0)": "expected effective_rank(stride)",
    }.items():
        with pytest.raises(EngineError, match=re.escape(text)):
            forward(net, [row(5)], needs=frozenset({name}), chunk=1, device="cpu")
    with pytest.raises(EngineError, match="not with gradient"):
        forward(net, [row(5)], needs=LOGP, grad=frozenset({"effective_rank(4)"}), chunk=1, device="cpu")
    net.lm.config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(EngineError, match="final_logit_softcapping"):
            TokenStreams(net.lm)
    finally:
        del net.lm.config.final_logit_softcapping


def test_padding() -> None:
    batch = pad([row(3), row(5)], asked=None, device="cpu")
    assert batch.tokens[0, 3:].tolist() == [0, 0] and batch.temperature[0, 3:].tolist() == [1, 1]
    assert batch.asked.tolist() == [[False, False, True, False, False], [False, False, True, True, True]]
    assert pad_values([np.ones(1), np.full(2, 3.0)], device="cpu").tolist() == [[1, 0], [3, 3]]


# the loss of one micro-batch


def test_view_of_unknown_log_probs() -> None:
    logp = torch.tensor([[0.0, 0.0, -1.0, -2.0]], requires_grad=True)
    one = row(4, logprobs=np.array([0, 0, np.nan, -2.5], np.float32))
    view = make_view({"logp": logp, "entropy": logp.detach()}, [one], extras=())
    assert view.old_logp.tolist() == logp.tolist() and not view.old_logp.requires_grad
    assert view.behaviour_logp[0, 2:].tolist() == [-1.0, -2.5] and view.known[0, 2:].tolist() == [0, 1]
    old = replace(one, streams={"old_logp": np.full(4, -3.0, np.float32), "seen": np.ones(4, np.float32)})
    view = make_view({"logp": logp}, [old], extras={"seen", "absent"})
    assert view.behaviour_logp[0, 2:].tolist() == [-3.0, -2.5] and list(view.streams) == ["seen"]


def losses(correction: str = "tis") -> Losses:
    objective = Objective(correction=Correction(kind=correction))
    return Losses(*build_objective(objective, seed=0, project=Path()), KL(), (), frozenset())


def plan(first: bool = True) -> Plan:
    return Plan(update=0, lr=0.1, version=0, first=first)


def test_loss_by_hand() -> None:
    # ratio 1 everywhere: the surrogate of a token is -A; the supervised channel adds -logp
    logp = torch.tensor([[0.0, 0.0, -1.0, -2.0], [0.0, 0.0, -4.0, 0.0]], requires_grad=True)
    first = row(4, advantages=np.full(4, 2.0, np.float32), logprobs=np.array([0, 0, -1.5, np.nan], np.float32))
    second = row(3, advantages=np.full(3, -1.0, np.float32), sft_weight=np.array([0, 0, 3], np.float32))
    scale, sft = np.array([0.5, 0.25], np.float32), np.array([9.0, 0.1], np.float32)
    out = {"logp": logp, "entropy": torch.full((2, 4), 0.5)}
    no_correction = losses(correction="none")
    value, totals = no_correction(out, MicroBatch([first, second], scale, sft), plan())
    assert totals["loss"] == pytest.approx(0.5 * (-2 - 2) + 0.25 * 1)
    assert totals["sft_loss"] == pytest.approx(0.1 * 3 * 4)
    assert float(value.detach()) == pytest.approx(-1.75 + 1.2)
    assert totals["gap_max"] == pytest.approx(1.0)  # token 2 of the second row: -4 against -3
    value.backward()
    assert logp.grad is not None
    np.testing.assert_allclose(logp.grad[:, 2:], [[-1, -1], [0.25 - 0.3, 0]], atol=1e-6)


def test_metrics_of_an_update() -> None:
    totals = Totals()
    logp = torch.tensor([[0.0, 0.0, -1.0, -2.0]])
    stale = row(4, version=np.full(4, 3, np.int32), logprobs=np.full(4, -9.0, np.float32))
    for one in (row(4), stale):
        out = {"logp": logp, "entropy": torch.full((1, 4), 0.5)}
        totals.add(losses()(out, MicroBatch([one], np.ones(1, np.float32), np.zeros(1, np.float32)), plan())[1])
    report = totals.reduce(torch.device("cpu"))
    assert report["tokens"] == 4 and report["entropy"] == pytest.approx(0.5)
    assert report["gap_max"] == pytest.approx(2.0) and report["gap_mean"] == pytest.approx(1.5)  # the first row alone
    assert "sft_loss" not in report and "gap_tokens" not in report
    later = Totals()
    out = {"logp": logp, "entropy": logp}
    with pytest.raises(EngineError, match="no old log-probs"):
        losses()(out, pick([row(4)], [0], scale=[1.0], sft_scale=[0.0], marks={}), plan(False))
    known = replace(row(4), streams={"old_logp": np.zeros(4, np.float32)})
    later.add(losses()(out, pick([known], [0], scale=[1.0], sft_scale=[0.0], marks={}), plan(False))[1])
    assert "gap_max" not in later.reduce(torch.device("cpu"))


def test_a_filler_adds_nothing() -> None:
    rows = [row(6, streams={"old_logp": np.full(6, -1.0, np.float32)})]
    batch = pick(rows, (), scale={0: 1.0}, sft_scale={0: 1.0}, marks={"clip_cov": {0: np.ones(6, np.float32)}})
    assert len(batch.rows[0].tokens) == 2 and not batch.marks["clip_cov"][0].any()
    logp = torch.tensor([[0.0, 0.0]], requires_grad=True)
    value, totals = losses()({"logp": logp, "entropy": logp.detach()}, batch, plan())
    assert float(value.detach()) == 0 and totals["tokens"] == 0 and totals["sft_tokens"] == 0
    value.backward()
    assert logp.grad is not None and not logp.grad.any()


def test_scratch_models_are_reproducible(tmp_path: Path) -> None:
    one, two, other = (
        make_model(Scratch(layers=1, width=16, heads=2), vocab=30, pad=0, eos=1, seed=s) for s in (1, 1, 2)
    )
    assert one.config.vocab_size == 64
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
