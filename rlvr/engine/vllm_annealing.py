"""Temperatures that change along a response, in vLLM's sampler: a logits processor of the V1 model runner.

A request asks for it by `SamplingParams.extra_args` (`arguments`); its own `temperature` is then 1. The logits that
token t is drawn from are divided by `Sampling.temperatures(t)`, the function by which the trainer's row is made, before
vLLM takes their log-probabilities: so behaviour log-probs are those of what was sampled. t is the number of tokens that
the request has so far, also after a pause, a preemption or a move within the batch. Other requests are left alone.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from rlvr.types import Annealing, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

KEY = "rlvr_annealing"
Asked = tuple[Sampling, list[int]]  # and the request's tokens so far: vLLM's own list, which grows


def arguments(sampling: Sampling) -> dict[str, Any]:
    """`extra_args` of a request with an annealing."""
    assert sampling.annealing is not None
    return {KEY: {"temperature": sampling.temperature, **asdict(sampling.annealing)}}


class Annealed(LogitsProcessor):
    """Divides each asking request's logits [V] by the temperature of its next token."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._asked: dict[int, Asked] = {}  # by place in the batch

    def is_argmax_invariant(self) -> bool:
        """Division by a positive number moves no maximum, so greedy requests may skip it."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go and move."""
        process_dict_updates(self._asked, batch_update, _asked)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[B,V] in place."""
        if not self._asked:
            return logits
        alike: dict[Sampling, list[int]] = {}
        for row, (sampling, _) in self._asked.items():
            alike.setdefault(sampling, []).append(row)
        rows = [row for some in alike.values() for row in some]
        lengths = [np.array([len(self._asked[row][1]) for row in some]) for some in alike.values()]
        heat = np.concatenate([sampling.temperatures(t) for sampling, t in zip(alike, lengths, strict=True)])
        at = torch.tensor(rows, device=self._device)
        logits[at] = logits[at] / torch.from_numpy(heat).to(self._device)[:, None]
        return logits


def _asked(params: SamplingParams, prompt: list[int] | None, output: list[int]) -> Asked | None:
    found = (params.extra_args or {}).get(KEY)
    if found is None:
        return None
    options = dict(found)
    return Sampling(temperature=options.pop("temperature"), annealing=Annealing(**options)), output
