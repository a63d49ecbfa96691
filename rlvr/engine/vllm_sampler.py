"""vLLM as the sampler: token ids in and out, exact versions, weights loaded while requests are in flight.

What is exact. An update pauses the engine between two steps ("keep"), preempts every request in flight and empties
the prefix cache; after it, a preempted request is computed anew under the new weights before it goes on. So each
token's behaviour log-probability is log pi_v(token | all tokens before it) for the one version v that `versions`
gives, as if the whole prefix had been read by those weights. The price is one prefill per request in flight.
vLLM's engine core labels tokens with the version in the same step that samples them, so boundaries are exact.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlvr.engine.usage import Usage
from rlvr.engine.vllm_args import Transport, engine_arguments
from rlvr.errors import EngineError, ReplicaBroken
from rlvr.types import F32, I32, Completion, Finish, Request, Sampling

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

SCORE_TOKENS = 8192  # prompt tokens scored at once: their logits [tokens, V] live in memory together


class VllmSampler:
    """One replica: an asynchronous vLLM engine. Every method runs in one event loop."""

    worker_extension = "rlvr.engine.weight_sync_worker.WorkerExtension"

    def __init__(
        self,
        *,
        model_path: str,
        dtype: str,
        device: str,
        max_len: int,
        tensor_parallel: int = 1,
        seed: int = 0,
        transport: Transport = "shm",
        replica: int = 0,
        overrides: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        self.replica, self.transport, self.tensor_parallel = replica, transport, tensor_parallel
        self.version = 0
        self._arguments = {
            "model_path": model_path, "revision": revision, "dtype": dtype, "device": device, "max_len": max_len,
            "tensor_parallel": tensor_parallel, "seed": seed, "transport": transport,
            "trust_remote_code": trust_remote_code, "worker_extension": self.worker_extension,
            "overrides": dict(overrides or {}),
        }  # fmt: skip
        self._engine: AsyncLLM | None = None
        self._in_flight: set[str] = set()
        self._broken: str | None = None  # why the weights cannot be trusted
        self._updating = False
        self._asleep = False
        self._scores = 0
        self._usage = Usage()

    async def start(self) -> None:
        """Load the model. The process needs the variables of `vllm_args.environment`.

        Raises `ConfigError` for a bad `vllm:` key and `EngineError` when the engine cannot start.
        """
        arguments = engine_arguments(**self._arguments)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            await self._engine.update_weight_version(str(self.version))
        except (RuntimeError, ValueError, OSError, TimeoutError) as error:
            raise self._error(f"could not start {arguments['model']}: {error}", "see the engine's log above") from error

    # ---- sampling

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample one completion per request, in order. A cancelled call cancels its requests in the engine.

        Raises `EngineError` when the engine is dead, a request is refused, or its key is already in flight.
        """
        self._healthy()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample(request)) for request in requests]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _sample(self, request: Request) -> Completion:
        if request.key in self._in_flight:
            raise self._error(f"the request {request.key!r} is already in flight", "give every request its own key")
        if request.sampling.annealing and self._arguments["overrides"].get("speculative_config"):
            raise self._error(f"{request.key!r} asks for an annealing", "take vllm.speculative_config away")
        self._in_flight.add(request.key)
        self._usage.begin()
        try:
            out = await self._run(request.key, request.tokens, _sampling_params(request.sampling))
        finally:
            self._in_flight.discard(request.key)
            self._usage.end()
        if self._broken:
            raise ReplicaBroken(f"sampler replica {self.replica}: {request.key!r} was in flight when {self._broken}")
        self._count(out)
        return _completion(request.key, out, top=request.sampling.top)

    async def _run(self, key: str, tokens: I32, params: SamplingParams) -> RequestOutput:
        """The final output of one request."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        out: RequestOutput | None = None
        try:
            async for final in self._live.generate(tokens_input(tokens.tolist()), params, key):
                out = final
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._error(f"the engine died at {key!r}: {error!r}", "start this replica again") from error
        except (VLLMClientError, ValueError) as error:
            raise self._error(f"refused {key!r} ({len(tokens)} prompt tokens): {error}", "shorten it") from error
        if out is None or out.outputs[0].finish_reason not in ("stop", "length"):  # never a row that was cut off
            if self._broken:
                raise ReplicaBroken(f"sampler replica {self.replica}: {key!r} was in flight when {self._broken}")
            reason = "nothing" if out is None else out.outputs[0].finish_reason
            raise self._error(f"{key!r} ended without a result ({reason})", "see the engine's log")
        return out

    async def score(self, sequences: Sequence[I32]) -> list[F32]:
        """Log-probabilities [L] of given sequences at temperature 1; index 0 is 0.

        Every position is computed directly, without reading the prefix cache, but for the last one: it is read as a
        sampled token's is, through the cache. So a stale cache shows (at the last position).
        """
        self._healthy()
        scores: list[F32] = []
        for batch in _batches(sequences, limit=SCORE_TOKENS):
            scores += await asyncio.gather(*(self._score(sequence) for sequence in batch))
        return scores

    async def _score(self, tokens: I32) -> F32:
        from vllm import SamplingParams

        logp = np.zeros(len(tokens), np.float32)
        if len(tokens) < 2:
            return logp
        self._scores += 1
        key, last = f"score/{self.replica}/{self._scores}", int(tokens[-1])
        # First through the cache: the direct pass writes to it.
        cached = SamplingParams(max_tokens=1, logprobs=1, logprob_token_ids=[last], detokenize=False)
        direct = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        tail = await self._run(f"{key}/cached", tokens[:-1], cached)
        out = await self._run(f"{key}/direct", tokens[:-1], direct)
        assert out.prompt_logprobs is not None and tail.outputs[0].logprobs is not None
        for t in range(1, len(tokens) - 1):
            position = out.prompt_logprobs[t]
            assert position is not None
            logp[t] = position[int(tokens[t])].logprob
        logp[-1] = tail.outputs[0].logprobs[0][last].logprob  # type: ignore[index]
        return logp

    # ---- weight transfer, driven by the trainer

    async def init_transfer(self, info: dict[str, Any]) -> None:
        """(Re)join the transfer group. With nccl, ranks follow the trainer's rank 0 replica by replica."""
        await self._live.shutdown_weight_transfer_engine()
        if self.transport == "nccl":
            info = info | {"rank_offset": 1 + self.replica * self.tensor_parallel}
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._live.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    async def begin_update(self) -> None:
        """Pause between two steps, empty the caches, and open the model for new weights."""
        await self._pause()
        if self._updating:
            await self._live.collective_rpc("abandon_update")
        self._updating = True
        await self._live.start_weight_update()

    async def _pause(self) -> None:
        await self._live.pause_generation(mode="keep", clear_cache=True)
        # Succeeds only when no request holds a block: the outcome of the clearing above, asserted.
        if not await self._live.reset_prefix_cache():
            raise self._error("the prefix cache could not be emptied before the update", "report it: vLLM kept blocks")

    async def receive(self, info: dict[str, Any]) -> None:
        """Take one payload of the transport."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if self.transport == "ipc":
            await self._live.collective_rpc("receive_pickled", args=(pickle.dumps(info),))
        else:
            await self._live.update_weights(WeightTransferUpdateRequest(update_info=info))

    async def finish_update(self, version: int) -> None:
        """Close the update: what is sampled from now on is of `version`."""
        await self._live.finish_weight_update(str(version))
        self.version, self._updating, self._broken = version, False, None

    async def resume(self) -> None:
        """Go on. After an update that did not finish, requests in flight fail and new ones are refused."""
        if self._updating:
            self._broken = "an update of its weights failed half way"
            await self._live.collective_rpc("abandon_update")
            await self._live.abort(list(self._in_flight))
            self._updating = False
        if not self._asleep:
            await self._live.resume_generation()

    # ---- colocation

    async def sleep(self) -> None:
        """Give up the device memory: weights (they come back with the next push) and cache. Ends what is in flight."""
        self._asleep = True
        await self._live.sleep(level=2, mode="abort")

    async def wake(self, tags: Sequence[str] | None = None) -> None:
        """Take memory back: ["weights"] before a push, ["kv_cache"] after it, None for both."""
        self._asleep = not await self._live.wake_up(list(tags) if tags else None)

    # ---- state

    async def stats(self) -> dict[str, float]:
        """The version served, and what was done since the start (see `rlvr.engine.usage`)."""
        return {"version": float(self.version), **self._usage.counts()}

    @property
    def dead(self) -> bool:
        """Whether the engine's core is gone for good."""
        return self._engine is not None and self._engine.errored

    async def check(self) -> None:
        """Raise `EngineError` when this replica cannot serve."""
        self._healthy()

    async def close(self) -> None:
        """Stop the engine's process."""
        if self._engine is not None:
            self._engine.shutdown(timeout=5)
            self._engine = None

    def _count(self, out: RequestOutput) -> None:
        self._usage.queries += len(out.prompt_token_ids or ())
        self._usage.hits += out.num_cached_tokens or 0
        self._usage.decoded += len(out.outputs[0].token_ids)

    def _healthy(self) -> None:
        if self._broken:
            raise ReplicaBroken(f"sampler replica {self.replica}: {self._broken}; the next push mends it")
        if self._live.errored:
            raise self._error("the engine is dead", "start this replica again; its log says why")

    @property
    def _live(self) -> AsyncLLM:
        if self._engine is None:
            raise self._error("not started, or closed", "await start() first")
        return self._engine

    def _error(self, what: str, advice: str) -> EngineError:
        return EngineError(f"sampler replica {self.replica}: {what}; {advice}")


def _sampling_params(sampling: Sampling) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from rlvr.engine.vllm_annealing import arguments

    annealed = sampling.annealing is not None and sampling.temperature > 0
    return SamplingParams(
        temperature=1.0 if annealed else sampling.temperature,  # the processor divides by the product
        extra_args=arguments(sampling) if annealed else None,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        seed=sampling.seed,
        logprobs=sampling.top,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # one object a request already
    )


def _completion(key: str, out: RequestOutput, *, top: int = 0) -> Completion:
    sampled = out.outputs[0]
    tokens = np.array(sampled.token_ids, np.int32)
    flat: Any = sampled.logprobs  # at each token the sampled one, then the `top` likeliest
    logprobs = np.array([] if flat is None else flat.logprobs, np.float32).reshape(-1, 1 + top)
    ids = np.array([] if flat is None or not top else flat.token_ids, np.int32).reshape(-1, 1 + top)
    versions = np.full(len(tokens), -1, np.int32)  # -1: the engine did not say
    for span in sampled.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    likeliest = (ids[:, 1:], logprobs[:, 1:]) if top else None
    return Completion(key, tokens, logprobs[:, 0], versions, cast(Finish, sampled.finish_reason), likeliest)


def _batches(sequences: Sequence[I32], *, limit: int) -> list[list[I32]]:
    """Consecutive sequences of at most `limit` tokens together (a longer one alone)."""
    batches: list[list[I32]] = []
    room = 0
    for sequence in sequences:
        if not batches or len(sequence) > room:
            batches.append([])
            room = limit
        batches[-1].append(sequence)
        room -= len(sequence)
    return batches
