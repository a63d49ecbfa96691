"""Named reductions of the next-token distribution, and of hidden states: worked numbers, and the forward against a
naive computation from full logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlvr.engine.forward import TokenStreams, forward, own_part
from rlvr.objectives.effective_rank import effective_rank, rank_dynamics
from rlvr.objectives.pooling import pooled_state
from rlvr.objectives.streams import _wide_nucleus, nucleus_entropy, parse, reduction
from rlvr.types import Row, stream
from tests.unit.test_forward import VOCAB, Biggest, filler, make, row

TOKEN = ["logp", "entropy", "sum_sq", "mean_logp", "max_prob", "top_p_entropy(0.8)", "top_p_entropy(1.0)"]
TOKEN += ["log_kept(0.02)", "log_kept(0.3)", "log_kept(0.0)"]
ALL = frozenset(TOKEN)


def of(name: str, *probs: float) -> float:
    logp = torch.tensor([probs], dtype=torch.float64).log()
    return float(reduction(name)(logp, torch.tensor([0])))


def test_worked_numbers() -> None:
    pi = (0.5, 0.25, 0.15, 0.1)
    assert of("top_p_entropy(0.8)", *pi) == pytest.approx(0.980990, abs=1e-6)  # the token that crosses 0.8 is in
    assert of("top_p_entropy(0.7)", *pi) == pytest.approx(0.636514, abs=1e-6)
    assert of("top_p_entropy(0.4)", *pi) == pytest.approx(0.0, abs=1e-12)  # the first token alone
    assert of("top_p_entropy(1.0)", *pi) == of("entropy", *pi) == pytest.approx(1.207974, abs=1e-6)
    spread = (0.6, 0.3, 0.05, 0.04, 0.01)
    assert of("log_kept(0.1)", *spread) == pytest.approx(math.log(0.9), abs=1e-9)
    assert of("log_kept(0.02)", *spread) == pytest.approx(math.log(0.99), abs=1e-9)
    assert of("log_kept(0.0)", *spread) == pytest.approx(0.0, abs=1e-12)
    assert of("log_kept(1.0)", *spread) == pytest.approx(math.log(0.6))
    assert of("sum_sq", *pi) == pytest.approx(0.345) and of("max_prob", *pi) == pytest.approx(0.5)
    rover = (0.7, 0.1, 0.1, 0.1)
    assert of("mean_logp", *rover) == pytest.approx(sum(map(math.log, rover)) / 4)


def test_a_token_that_cannot_occur() -> None:
    assert of("top_p_entropy(0.9)", 0.5, 0.5, 0.0) == pytest.approx(math.log(2))
    assert of("log_kept(0.1)", 0.5, 0.5, 0.0) == pytest.approx(0.0, abs=1e-12)


def test_names_of_parameters() -> None:
    assert stream("top_p_entropy", 0.8) == "top_p_entropy(0.8)" and parse("top_p_entropy(0.8)") == (
        "top_p_entropy",
        0.8,
    )
    assert stream("effective_rank", 40) == "effective_rank(40.0)" and parse("logp") == ("logp", None)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.floats(0.05, 1.0), st.floats(0.1, 6.0), st.integers(0, 10**6))
def test_the_nucleus_is_that_of_a_full_sort(vocab: int, p: float, sharp: float, seed: int) -> None:
    """Also where the nucleus is larger than the tokens looked at first."""
    generator = torch.Generator().manual_seed(seed)
    logp = (torch.randn(3, vocab, generator=generator, dtype=torch.float64) * sharp).log_softmax(-1)
    got = reduction(stream("top_p_entropy", p))(logp, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(got, naive_nucleus_entropy(logp, p))


def wide_rows() -> Tensor:
    """Near-uniform rows of 4,000 tokens: plain, one with ties, all equal, half of it impossible; and a sharp one."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(5, 4000, generator=generator, dtype=torch.float64)
    z[1] = (z[1] * 4).round() / 4
    z[2] = 0.0
    z[3, ::2] = -math.inf
    z[4] *= 9
    return z.log_softmax(-1)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8, 0.99, 1 - 1e-9])
def test_a_wide_nucleus_is_that_of_a_full_sort(p: float) -> None:
    logp = wide_rows()
    got = nucleus_entropy(logp, p=p)
    torch.testing.assert_close(got, naive_nucleus_entropy(logp, p), rtol=1e-9, atol=1e-9)
    alone = torch.cat([nucleus_entropy(logp[i : i + 1], p=p) for i in range(5)])
    torch.testing.assert_close(got, alone, rtol=1e-12, atol=1e-12)  # each in its place, whatever stands beside it


def test_the_nucleus_has_as_few_tokens_as_reach_p() -> None:
    logp = wide_rows()[:4]
    inside = _wide_nucleus(logp, p=0.7)
    assert abs(int(inside[2].sum()) - 2800) <= 1  # 0.7 of 4,000 equal ones
    for one, kept in zip(logp, inside, strict=True):
        mass, last = float(one[kept].exp().sum()), float(one[kept].amin().exp())
        assert one[~kept].amax() <= one[kept].amin()
        assert mass >= 0.7 - 1e-9 and mass - last < 0.7 + 1e-9


def test_the_gradient_of_a_wide_nucleus() -> None:
    def gradient(reduce: Callable[..., Tensor]) -> Tensor:
        flat = torch.linspace(-1.5, 1.5, 200, dtype=torch.float64).sin()
        logits = torch.stack([flat, 20 * flat]).requires_grad_()  # the second has a narrow one
        (reduce(logits.log_softmax(-1), p=0.8) * torch.tensor([1.0, 3.0])).sum().backward()
        assert logits.grad is not None
        return logits.grad

    def naive(logp: Tensor, *, p: float) -> Tensor:
        return naive_nucleus_entropy(logp, p)

    torch.testing.assert_close(gradient(nucleus_entropy), gradient(naive), rtol=1e-9, atol=1e-12)
    impossible = wide_rows()[3:4].requires_grad_()
    nucleus_entropy(impossible, p=0.8).sum().backward()
    assert impossible.grad is not None and impossible.grad.isfinite().all() and not impossible.grad[0, ::2].any()


def naive_nucleus_entropy(logp: Tensor, p: float) -> Tensor:
    prob, order = logp.exp().sort(-1, descending=True)
    inside = torch.zeros_like(prob).scatter(-1, order, ((prob.cumsum(-1) - prob) < p).to(prob.dtype))
    q = inside * logp.exp()
    q = q / q.sum(-1, keepdim=True)
    return -(q * torch.where(inside > 0, q, torch.ones_like(q)).log()).sum(-1)


def naive(net: TokenStreams, one: Row) -> dict[str, Tensor]:
    """Every stream of a row from its full logits, [L-1] each (tokens 1 and on), with gradient."""
    tokens = torch.from_numpy(one.tokens.astype(np.int64))
    logits = net.lm(input_ids=tokens[None]).logits[0, :-1].double() / torch.from_numpy(one.temperature[1:])[:, None]
    logp = torch.log_softmax(logits, -1)
    pi = logp.exp()

    def kept(kappa: float) -> Tensor:
        return torch.where(pi >= kappa * pi.amax(-1, keepdim=True), pi, torch.zeros_like(pi)).sum(-1).log()

    entropy = -(pi * logp).sum(-1)
    return {
        "logp": logp.gather(-1, tokens[1:, None])[:, 0],
        "entropy": entropy,
        "sum_sq": pi.square().sum(-1),
        "mean_logp": logp.mean(-1),
        "max_prob": pi.amax(-1),
        "top_p_entropy(0.8)": naive_nucleus_entropy(logp, 0.8),
        "top_p_entropy(1.0)": entropy,
        "log_kept(0.02)": kept(0.02),
        "log_kept(0.3)": kept(0.3),
        "log_kept(0.0)": kept(0.0),
    }


@pytest.fixture(scope="module")
def net() -> TokenStreams:
    torch.set_num_threads(1)
    return make()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streams_against_full_logits(net: TokenStreams, chunk: int) -> None:
    rows = [row(length, seed=i) for i, length in enumerate((9, 3, 14))]
    out = forward(net, rows, needs=ALL, chunk=chunk, device="cpu")
    assert sorted(out) == sorted(ALL)
    for b, one in enumerate(rows):
        mask = one.weight[1:] != 0
        for name, expected in naive(net, one).items():
            got = out[name][b]
            np.testing.assert_allclose(
                got[1 : len(one.tokens)].numpy(), expected.detach().numpy() * mask, atol=3e-5, err_msg=name
            )
            assert got[0] == 0 and not got[len(one.tokens) :].any(), name


@pytest.mark.parametrize("name", TOKEN)
def test_gradients_against_full_logits(net: TokenStreams, name: str) -> None:
    rows = [row(9), row(6, seed=1)]

    def gradient() -> Tensor:
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    net.zero_grad()
    sum((naive(net, one)[name] * torch.from_numpy(one.weight[1:])).sum() for one in rows).backward()
    expected = gradient()
    for chunk in (3, 1000):
        net.zero_grad()
        out = forward(net, rows, needs=ALL, grad=frozenset({name}), chunk=chunk, device="cpu")
        sum(out.values()).sum().backward()  # the others carry none
        torch.testing.assert_close(gradient(), expected, atol=2e-5, rtol=1e-3)


def test_no_logits_beyond_a_chunk(net: TokenStreams) -> None:
    rows = [row(40, seed=i) for i in range(4)]  # 152 tokens
    grad = frozenset({"logp", "top_p_entropy(0.8)", "log_kept(0.02)", "sum_sq"})
    with Biggest(vocab=VOCAB) as seen:
        forward(net, rows, needs=ALL, grad=grad, chunk=20, device="cpu")["logp"].sum().backward()
    assert seen.rows <= 20 and seen.kept <= 16  # the head's weight has 16 columns


# --- effective rank --------------------------------------------------------------------------------------------------


def with_singular_values(*values: float, tokens: int = 12, width: int = 7) -> Tensor:
    """[tokens, width] with these singular values, whose columns have mean 0."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(tokens, len(values), generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(torch.randn(width, len(values), generator=generator, dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("values", "rank"), [((1, 1, 1, 1), 4.0), ((1, 0, 0, 0), 1.0), ((3, 1), 1.754765)])
@pytest.mark.parametrize("shape", [(12, 7), (6, 20)])
def test_effective_rank(values: tuple[float, ...], rank: float, shape: tuple[int, int]) -> None:
    z = with_singular_values(*values, tokens=shape[0], width=shape[1])
    assert float(effective_rank(z)) == pytest.approx(rank, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64)).Q
    assert float(effective_rank(3.0 * z @ turn + 5.0)) == pytest.approx(rank, abs=1e-5)  # turned, scaled, moved


def test_effective_rank_of_nothing() -> None:
    assert float(effective_rank(torch.ones(5, 3))) == 0 and float(effective_rank(torch.randn(1, 3))) == 0
    for tokens in (0, 1):
        assert rank_dynamics(torch.randn(tokens, 3), stride=2).tolist() == [0, 0, 0]
    broken = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 1.0]])
    assert rank_dynamics(broken, stride=2).isnan().all()


def test_how_the_rank_moves() -> None:
    z = torch.randn(11, 6, generator=torch.Generator().manual_seed(3))
    m = [float(effective_rank(z[:end])) for end in (4, 8, 11)]
    delta = [m[1] - m[0], m[2] - (m[0] + m[1]) / 2]
    expected = [m[2], sum(delta) / 2, delta[1] - delta[0]]
    np.testing.assert_allclose(rank_dynamics(z, stride=4), expected, rtol=1e-5)
    np.testing.assert_allclose(rank_dynamics(z[:8], stride=4), [m[1], delta[0], 0], rtol=1e-5)
    np.testing.assert_allclose(rank_dynamics(z[:3], stride=4)[1:], [0, 0])


@pytest.mark.parametrize("chunk", [2, 1000])
def test_sequence_streams_in_the_forward(net: TokenStreams, chunk: int) -> None:
    name = stream("effective_rank", 3)
    rows = [row(12), row(5, seed=1), filler(row(9))]
    pooled = stream("pooled_state", 5)
    every = forward(net, rows, needs=frozenset({"logp", name, pooled}), chunk=chunk, device="cpu")
    together, vectors = every[name], every[pooled]
    assert vectors.shape == (3, 5) and not vectors[2].any()
    assert together.shape == (3, 3) and together[2].tolist() == [0, 0, 0]
    for one, got, vector in zip(rows[:2], together, vectors, strict=False):
        tokens = torch.from_numpy(one.tokens.astype(np.int64))
        with torch.no_grad():
            hidden = net.lm.base_model(input_ids=tokens[None]).last_hidden_state[0]
        asked = one.weight != 0  # token t is predicted by the state at t-1
        states = hidden[:-1][asked[1:]]
        torch.testing.assert_close(got, rank_dynamics(states, stride=3), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vector, pooled_state(states, d=5), atol=1e-5, rtol=1e-5)
    alone = forward(net, rows[:1], needs=frozenset({name}), chunk=chunk, device="cpu")
    assert list(alone) == [name]
    torch.testing.assert_close(alone[name][0], together[0], atol=1e-5, rtol=1e-5)
    assert own_part(name, together.numpy()[0], 2).shape == (3,) and own_part("logp", np.ones(9), 2).shape == (2,)
