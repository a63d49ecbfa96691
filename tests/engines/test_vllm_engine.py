"""One real vLLM replica on the CPU: sampling, versions across pushes, weight transfer and the handshake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlvr.engine.handshake import handshake, random_sequences
from rlvr.errors import EngineError, HandshakeError
from rlvr.types import I32, Annealing, Completion, Request, Sampling
from tests.engines.tiny import EOS
from tests.engines.vllm_helpers import BLOCK, LocalFanout, Replica, Scored, TorchPolicy, requests, running

CLOSE = 1e-4  # fp32, vLLM against transformers


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with running(tmp_path_factory.mktemp("tied"), tied=True) as replica:
        yield replica


@pytest.fixture
def policy(replica: Replica) -> Iterator[TorchPolicy]:
    """A trainer of the model's first weights, which are served again afterwards."""
    policy = TorchPolicy(replica.model, [replica])
    yield policy
    fresh = TorchPolicy(replica.model, [replica])
    fresh.side.push(0, fresh.fanout)
    policy.side.close()
    fresh.side.close()


def generate(replica: Replica, batch: Sequence[Request]) -> list[Completion]:
    return replica.do(replica.sampler.generate(batch))


def whole(request: Request, completion: Completion) -> I32:
    return np.concatenate([request.tokens, completion.tokens])


def stats(replica: Replica) -> dict[str, float]:
    return replica.do(replica.sampler.stats())


# ---- sampling


def test_512_seeded_requests_at_once_depend_on_their_seed_alone(replica: Replica) -> None:
    together = generate(replica, requests(512, key="many"))
    alone = generate(replica, requests(512, key="few")[40:20:-1])
    assert [c.key for c in together] == [f"many/{i}" for i in range(512)]
    for a, b in zip(alone, together[40:20:-1], strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.logprobs.tobytes() == b.logprobs.tobytes()
    replica.do(replica.sampler.check())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logprobs_are_those_of_the_sampled_distribution(
    replica: Replica, policy: TorchPolicy, temperature: float
) -> None:
    batch = requests(40, key=f"t{temperature}", max_tokens=60, temperature=temperature)
    completions = generate(replica, batch)
    for request, completion in zip(batch, completions, strict=True):
        expected = policy.logp(whole(request, completion), temperature=temperature)[len(request.tokens) :]
        np.testing.assert_allclose(completion.logprobs, expected, atol=CLOSE)
        assert completion.finish == ("stop" if completion.tokens[-1] == EOS else "length")
        assert EOS not in completion.tokens[:-1]
    assert {c.finish for c in completions} == {"stop", "length"}


ANNEALING = Annealing(high=1.4, low=0.3, scale=30.0, first=3)


def annealed(n: int, *, key: str, max_tokens: int = 60) -> list[Request]:
    """Every second request is annealed."""
    plain = requests(n, key=key, max_tokens=max_tokens, temperature=0.9)
    hot = [replace(r, sampling=replace(r.sampling, annealing=ANNEALING)) for r in plain]
    return [pair[i % 2] for i, pair in enumerate(zip(plain, hot, strict=True))]


def test_annealed_logprobs_are_those_of_the_sampled_distribution(replica: Replica, policy: TorchPolicy) -> None:
    batch = annealed(40, key="annealed")
    completions = generate(replica, batch)
    off = 0.0
    for request, completion in zip(batch, completions, strict=True):
        heat = request.sampling.temperatures(np.arange(len(completion.tokens)))
        tokens, at = whole(request, completion), len(request.tokens)
        every = np.concatenate([np.ones(at, np.float32), heat])
        expected = policy.logp(tokens, temperature=every)[at:]
        np.testing.assert_allclose(completion.logprobs, expected, atol=CLOSE)
        off = max(off, float(np.abs(expected - policy.logp(tokens, temperature=0.9)[at:]).max()))
    assert off > 0.1  # the annealing is seen at all
    plain = generate(replica, requests(40, key="plain neighbours", max_tokens=60, temperature=0.9))
    for a, b in zip(plain[::2], completions[::2], strict=True):
        assert a.tokens.tobytes() == b.tokens.tobytes()  # of the log-probs the last bit depends on the batch's size
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_the_processor_touches_its_own_rows_alone_and_follows_them() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from rlvr.engine.vllm_annealing import Annealed, arguments

    sampling = Sampling(temperature=0.7, annealing=ANNEALING)
    asks, plain = SamplingParams(extra_args=arguments(sampling)), SamplingParams()
    processor, tokens = Annealed(None, torch.device("cpu"), False), list(range(20))
    logits = torch.randn(3, 5)
    assert torch.equal(processor.apply(logits.clone()), logits)
    processor.update_state(BatchUpdate(3, [], [(0, plain, [], []), (1, asks, [], tokens), (2, plain, [], [])], []))
    for row, moved in ((1, []), (2, [(1, 2, MoveDirectionality.SWAP)])):
        processor.update_state(BatchUpdate(3, [], [], moved) if moved else None)
        tokens.append(0)
        wanted = logits.clone()
        wanted[row] /= float(sampling.temperatures(len(tokens)))
        assert torch.equal(processor.apply(logits.clone()), wanted)
    processor.update_state(BatchUpdate(2, [2], [], []))
    assert torch.equal(processor.apply(logits.clone()), logits)


def test_scores_are_those_of_the_trainer(replica: Replica, policy: TorchPolicy) -> None:
    sequences = [*random_sequences(5, length=2 * BLOCK + 5, vocab=128, seed=1), np.array([5], np.int32)]
    sequences.append(np.array([5, 6], np.int32))
    for _ in range(2):  # the second time the last token is read through the cache
        for got, tokens in zip(replica.do(replica.sampler.score(sequences)), sequences, strict=True):
            assert got.shape == tokens.shape and got[0] == 0
            np.testing.assert_allclose(got, policy.logp(tokens), atol=CLOSE)


def test_a_cancelled_call_cancels_its_requests(replica: Replica) -> None:
    call = replica.submit(replica.sampler.generate(requests(8, key="cancel", max_tokens=450, prompt=40)))
    wait_for_tokens(replica, 3)
    call.cancel()
    deadline = time.monotonic() + 10
    while stats(replica)["running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stats(replica)["running"] == 0
    assert replica.sampler._live.get_num_unfinished_requests() == 0
    assert generate(replica, requests(1, key="cancel"))[0].tokens.size  # the same key may be used again


def test_stop_strings_and_their_tokens(replica: Replica) -> None:
    plain, other = (generate(replica, requests(1, key=k, max_tokens=40))[0] for k in ("plain", "again"))
    assert plain.tokens.tolist() == other.tokens.tolist()
    text = chr(30 + int(plain.tokens[6]))
    first = plain.tokens.tolist().index(int(plain.tokens[6]))
    request = requests(1, key="stopped")[0]
    sampling = Sampling(max_tokens=40, seed=0, stop=(text,))
    stopped = generate(replica, [Request("stopped", request.tokens, sampling)])[0]
    assert stopped.tokens.tolist() == plain.tokens[: first + 1].tolist()
    assert stopped.finish == "stop"


def test_bad_requests_are_refused_and_hurt_nobody(replica: Replica) -> None:
    long = Request("long", np.full(600, 5, np.int32), Sampling(max_tokens=4))
    with pytest.raises(EngineError, match=r"replica 0: refused 'long' \(600 prompt tokens\)"):
        generate(replica, [long])
    twice = requests(1, key="twice", max_tokens=300) * 2
    with pytest.raises(EngineError, match="'twice/0' is already in flight"):
        generate(replica, twice)
    assert len(generate(replica, requests(3, key="after"))) == 3


# ---- pushes


def wait_for_tokens(replica: Replica, n: int) -> None:
    """Until some request in flight has `n` tokens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        states = list(replica.sampler._live.output_processor.request_states.values())
        if any(s.detokenizer and s.detokenizer.num_output_tokens() >= n for s in states):
            return
        time.sleep(0.002)
    raise TimeoutError("no request produced tokens")


def test_versions_are_exact_across_pushes_in_flight(replica: Replica, policy: TorchPolicy) -> None:
    batch = requests(24, key="calm", max_tokens=200)
    calm = generate(replica, batch)
    call = replica.submit(replica.sampler.generate(requests(24, key="flight", max_tokens=200)))
    modules = {0: policy}
    for version, tokens in ((1, 15), (2, 60)):
        wait_for_tokens(replica, tokens)
        modules[version] = TorchPolicy(replica.model, [replica])
        asyncio.run(modules[version].perturb(scale=0.02 * version, seed=version))
        modules[version].side.push(version, modules[version].fanout)
    mixed = 0
    for request, before, after in zip(batch, calm, call.result(timeout=60), strict=True):
        assert (np.diff(after.versions) >= 0).all()
        old = int((after.versions == 0).sum())
        assert after.tokens[:old].tolist() == before.tokens[:old].tolist()
        prompt = len(request.tokens)
        for version in np.unique(after.versions).tolist():
            where = after.versions == version
            expected = modules[version].logp(whole(request, after))[prompt:]
            np.testing.assert_allclose(after.logprobs[where], expected[where], atol=CLOSE)
        mixed += len(np.unique(after.versions)) > 1
    assert mixed >= 8
    assert stats(replica)["version"] == 2


def test_a_push_of_the_same_weights_changes_no_sample(replica: Replica, policy: TorchPolicy) -> None:
    calm = generate(replica, requests(24, key="still", max_tokens=200))
    call = replica.submit(replica.sampler.generate(requests(24, key="moved", max_tokens=200)))
    wait_for_tokens(replica, 20)
    policy.side.push(5, policy.fanout)
    moved = call.result(timeout=60)
    assert any(len(np.unique(c.versions)) > 1 for c in moved)
    for a, b in zip(calm, moved, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=CLOSE)


def test_no_block_outlives_a_push(replica: Replica, policy: TorchPolicy) -> None:
    """A request kept in flight holds blocks of the old weights; new ones with the same prompt must not read them."""
    prompt = random_sequences(1, length=4 * BLOCK + 3, vocab=128, seed=3)[0]
    long = Request("kept", prompt, Sampling(max_tokens=300, seed=13))
    probes = [Request(f"probe{i}", prompt, Sampling(max_tokens=3, seed=i)) for i in range(3)]
    call = replica.submit(replica.sampler.generate([long]))
    wait_for_tokens(replica, 5)
    hits = stats(replica)["prefix_hits"]
    generate(replica, probes[:1])
    assert stats(replica)["prefix_hits"] - hits == 4 * BLOCK  # they would have been there
    asyncio.run(policy.perturb(scale=0.03, seed=1))
    policy.side.push(1, policy.fanout)
    for probe in probes[1:]:
        completion = generate(replica, [probe])[0]
        np.testing.assert_allclose(completion.logprobs, policy.logp(whole(probe, completion))[-3:], atol=CLOSE)
        assert set(completion.versions.tolist()) == {1}
    kept = call.result(timeout=60)[0]
    assert 1 in kept.versions, "the request ended before the push: nothing was tested"


def test_push_is_quick_and_leaves_nothing_behind(replica: Replica, policy: TorchPolicy) -> None:
    folder = policy.side._sender.folder  # type: ignore[attr-defined]
    times = [policy.side.push(1, policy.fanout)["time/push"] for _ in range(5)]
    assert sorted(times)[2] < 1.0  # 0.07 s where nothing else runs
    assert list(folder.iterdir()) == []
    policy.side.close()
    assert not folder.exists()


def test_a_failed_push_says_where_and_the_next_one_heals(replica: Replica, policy: TorchPolicy) -> None:
    call = replica.submit(replica.sampler.generate(requests(4, key="victim", max_tokens=400, prompt=50)))
    wait_for_tokens(replica, 2)
    replica.sampler.fail = "receive"
    with pytest.raises(EngineError, match=r"sampler replica 0, receive failed: .*No such file") as raised:
        policy.side.push(1, policy.fanout)
    assert "(push of version 1: send)" in raised.value.__notes__
    with pytest.raises(EngineError, match="in flight when an update of its weights failed"):
        call.result(timeout=20)
    with pytest.raises(EngineError, match="failed half way; the next push mends it"):
        generate(replica, requests(1, key="refused"))
    replica.sampler.fail = None
    policy.side.push(2, policy.fanout)
    batch = requests(4, key="healed")
    for request, completion in zip(batch, generate(replica, batch), strict=True):
        expected = policy.logp(whole(request, completion))[len(request.tokens) :]
        np.testing.assert_allclose(completion.logprobs, expected, atol=CLOSE)
        assert set(completion.versions.tolist()) == {2}


def test_a_replica_that_hangs_is_given_up_in_time(replica: Replica, policy: TorchPolicy) -> None:
    replica.sampler.fail = "hang"
    started = time.monotonic()
    with pytest.raises(EngineError, match="replica 0, receive: no answer within 1 s"):
        policy.side.push(1, LocalFanout([replica], limit=1))
    assert time.monotonic() - started < 10
    replica.sampler.fail = None
    policy.side.push(2, policy.fanout)
    assert len(generate(replica, requests(2, key="alive"))) == 2


# ---- the handshake, and what it must catch

SEQUENCES = random_sequences(4, length=2 * BLOCK + 5, vocab=128, seed=0)


def shake(policy: TorchPolicy, replica: Replica) -> dict[str, float]:
    return asyncio.run(
        handshake(policy, policy, [Scored(replica)], tolerance=1e-3, sequences=SEQUENCES, version=3, seed=0)
    )


def test_handshake_of_a_sound_pair(replica: Replica, policy: TorchPolicy) -> None:
    before = {n: p.detach().clone() for n, p in policy.module.named_parameters()}
    measured = shake(policy, replica)
    assert measured["handshake/gap_perturbed"] < CLOSE and measured["handshake/gap_restored"] < CLOSE
    assert measured["handshake/moved"] >= 1e-2
    assert all(bool((p == before[n]).all()) for n, p in policy.module.named_parameters())
    assert stats(replica)["version"] == 3


def test_handshake_catches_a_stale_tied_head(replica: Replica, policy: TorchPolicy) -> None:
    set_cure = replica.sampler._live.collective_rpc
    replica.do(set_cure("set_cure", args=(False,)))
    try:
        with pytest.raises(HandshakeError, match=r"perturbed push, sampler replica 0 .* stale tied lm_head"):
            shake(policy, replica)
    finally:
        replica.do(set_cure("set_cure", args=(True,)))
    assert not policy._saved, "the trainer's weights were not restored"


def test_handshake_catches_a_skipped_push(replica: Replica, policy: TorchPolicy) -> None:
    policy.skip = True
    with pytest.raises(HandshakeError, match="skipped push"):
        shake(policy, replica)


def test_handshake_catches_a_stale_prefix_cache(replica: Replica, policy: TorchPolicy) -> None:
    replica.sampler.keep_cache = True
    try:
        with pytest.raises(HandshakeError, match=r"restored push.* position 68 of 69 .* cache that was not"):
            shake(policy, replica)
    finally:
        replica.sampler.keep_cache = False


def test_untied_bf16_and_a_death(tmp_path: Path) -> None:
    with running(tmp_path, tied=False, dtype="bfloat16") as replica:
        policy = TorchPolicy(replica.model, [replica], dtype="bfloat16")
        measured = asyncio.run(
            handshake(policy, policy, [Scored(replica)], tolerance=5e-2, sequences=SEQUENCES, version=1, seed=0)
        )
        assert measured["handshake/moved"] >= 0.5

        call = replica.submit(replica.sampler.generate(requests(4, key="last", max_tokens=400)))
        wait_for_tokens(replica, 2)
        manager = replica.sampler._live.engine_core.resources.engine_manager  # type: ignore[attr-defined]
        manager.processes[0].kill()
        with pytest.raises(EngineError, match=r"replica 0: the engine died at 'last/.'"):
            call.result(timeout=30)
        with pytest.raises(EngineError, match="replica 0: the engine is dead; start this replica again"):
            replica.do(replica.sampler.check())
        with pytest.raises(EngineError, match="replica 0"):
            policy.side.push(2, policy.fanout)
