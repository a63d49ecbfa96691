"""What flows through the loop: frozen, typed, numpy only.

One alignment rule: **index t describes token t**. `logprobs[t] = log pi(tokens[t] | tokens[<t])`; every
per-token array of a trajectory has the length L of `tokens` (prompt and response together) and is 0 where
`weight` is 0, except behaviour log-probs, where NaN means *unknown* (such a token is never in a ratio).
Letters: B sequences, T tokens, G group, P prompts, V vocabulary, L one ragged sequence, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]
Message = Mapping[str, str]
ASIDE = 1 << 24  # see `aside`
Finish = Literal["stop", "length", "abort"]


class Origin(IntEnum):
    """Where a token of a trajectory came from."""

    PROMPT = 0
    SAMPLED = 1
    FORCED = 2
    DEMO = 3
    OBSERVED = 4


@dataclass(frozen=True, slots=True)
class Task:
    """One question, as `data/` yields it. `prompt` is plain text or chat messages."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    verifier: str | None = None  # overrides the recipe's verifier
    source: str = ""  # the dataset's name
    demos: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    begun: str = ""  # how every response begins: shown behind the prompt, judged with what follows (an add-on sets it)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from every other task of a mixture: ids are unique within their dataset alone."""
        return f"{self.source}/{self.id}" if self.source else self.id


@dataclass(frozen=True, slots=True)
class Annealing:
    """EAD's temperature along a response (2510.05251): max(1 + high - exp(t / scale), low), and 1 for t < first.

    t counts response tokens from 0; `start` of them stood before this request (a branch, a resumed response).
    """

    high: float
    low: float
    scale: float  # tokens
    first: int = 0
    start: int = 0

    def at(self, t: npt.ArrayLike) -> F32:
        """The temperatures of the request's tokens `t`, of any shape: the one function of sampler and trainer."""
        places = np.asarray(t, dtype=np.float64) + self.start
        heat = np.maximum(1.0 + self.high - np.exp(np.minimum(places / self.scale, 700.0)), self.low)
        return np.where(places < self.first, 1.0, heat).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one response is sampled. `seed` is per request; top_p=1 and top_k=-1 (off) are the training defaults.

    `annealing` multiplies `temperature` token by token; at temperature 0 (greedy) it means nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    annealing: Annealing | None = None
    top: int = 0  # so many of the likeliest next tokens are told with every sampled one

    def temperatures(self, t: npt.ArrayLike) -> F32:
        """What the logits of the response tokens `t` are divided by, in the sampler and in the trainer."""
        heat = np.ones(np.shape(t)) if self.annealing is None else self.annealing.at(t)
        return (self.temperature * heat).astype(np.float32)

    def after(self, n: int) -> Sampling:
        """The same for what follows `n` response tokens, when those become part of the prompt."""
        a = self.annealing
        return self if a is None else replace(self, annealing=replace(a, start=a.start + n))


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt in token ids. `key` is unique within a run: the same key is never in flight twice."""

    key: str
    tokens: I32
    sampling: Sampling
    home: int | None = None  # its draw: requests of one home are served by one replica, whose cache has their prefix


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, prompt not included.

    `logprobs[i]` is the log-probability of `tokens[i]` under the distribution that was sampled (processed:
    after temperature, top-p and top-k). `versions[i]` is the weight version that produced token i. The end
    token is included when it was sampled.
    """

    key: str
    tokens: I32
    logprobs: F32
    versions: I32
    finish: Finish
    top: tuple[I32, F32] | None = None  # `Sampling.top` ids and log-probs [n, top], the likeliest first


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier said of one response. **Raw**: never mixed with a bonus.

    `error` (None, "timeout", "crash", "gold_unparsed" ...) is a third thing beside right and wrong: such a
    row has no reward, leaves the baseline, is masked from the loss and is counted.
    """

    score: float
    correct: bool
    answer_key: str | None = None  # canonical final answer
    parsed: bool = True
    error: str | None = None
    detail: str = ""
    version: str = ""
    elapsed: float = 0.0  # seconds


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One row of experience; `tokens` begins with the prompt that it is *trained* on."""

    tokens: I32  # [L]
    origin: npt.NDArray[np.int8]  # [L] of Origin
    weight: F32  # [L] policy-loss weight, 0 on the prompt and on token 0
    logprobs: F32  # [L] behaviour; NaN = unknown; 0 on the prompt
    version: I32  # [L] weight version that sampled the token (a step, or `aside` of one), -1 where not sampled
    temperature: F32  # [L] what the logits were divided by
    text: str = ""  # decoded response
    finish: Finish = "stop"
    verdict: Verdict | None = None
    sft_weight: F32 | None = None  # [L] supervised channel
    generated_under: I32 | None = None  # the prompt it was generated under, when another one
    source: str = "policy"  # or the name of the add-on that put it into the group
    parent: tuple[int, int] | None = None  # (sibling, p): tokens[:p] are the sibling's
    cuts: tuple[
        int, ...
    ] = ()  # ascending, the last is L: trained as one row tokens[:c] for each cut c (edges of a tree)
    adv_group: str | None = None
    episode: str | None = None
    streams: Mapping[str, F32] = field(default_factory=dict)  # [L] or [d] each, by name

    @property
    def response_len(self) -> int:
        """Tokens that are not the prompt."""
        return int((self.origin != Origin.PROMPT).sum())


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one draw of one task. `draw` is its place in the run: all its randomness derives from it."""

    task: Task
    draw: int
    trajectories: tuple[Trajectory, ...]
    rewards: F32 | None = None  # [G] shaped
    advantages: tuple[F32, ...] | None = None  # ragged, [L] each
    dropped: str | None = None  # why it is not trained on
    prompt_len: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)  # what its sampling counted, as "<add-on name>/<key>"

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def valid(self) -> Bool:
        """[G] rows with a verdict that is not an error."""
        return np.array([t.verdict is not None and t.verdict.error is None for t in self.trajectories], dtype=bool)

    @property
    def scores(self) -> F32:
        """[G] raw verifier scores; NaN where the verdict is an error."""
        rows = zip(self.trajectories, self.valid, strict=True)
        return np.array([t.verdict.score if ok and t.verdict else np.nan for t, ok in rows], dtype=np.float32)

    @property
    def correct(self) -> Bool:
        """[G] raw correctness (False on error rows)."""
        return np.array([bool(t.verdict and t.verdict.correct and not t.verdict.error) for t in self.trajectories])

    @property
    def own(self) -> Bool:
        """[G] rows that the policy sampled: no demonstration, hinted or replayed answer, and no greedy one."""
        return np.array([t.source == "policy" for t in self.trajectories], dtype=bool)

    @property
    def judged(self) -> Bool:
        """[G] rows of its own whose verdict is not an error: those that tell how hard the task is."""
        return self.own & self.valid

    def with_(self, **changes: Any) -> Group:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Row:
    """One training row as the ranks see it: a trajectory with its credit. All arrays are [L]."""

    key: str  # "<draw>/<index in group>": hash source of every random pick
    group: int  # draw
    tokens: I32
    weight: F32
    logprobs: F32  # behaviour, NaN = unknown
    version: I32
    temperature: F32
    advantages: F32
    streams: Mapping[str, F32] = field(default_factory=dict)  # "old_logp", "ref_logp", ...
    sft_weight: F32 | None = None
    task: str = ""  # `Task.key`
    reward: float = float("nan")  # shaped; NaN on a row in error
    source: str = "policy"  # of the trajectory: the name of the add-on that put it into its group


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The rows of one update.

    `rows` is the step's whole table (sent to each rank once); `index` picks this update's rows. `scale[b]`
    multiplies the token sum of row `index[b]`: it holds the reduction and the **global** normalisers of the
    update (all ranks, all micro-batches), so that a loss is `sum_b scale[b] * sum_t weight[b,t] * l[b,t]`
    however the rows are split. `sft_scale` is the same for the supervised channel: 1 / its tokens of the update, so
    that a method's coefficient is `sft_weight` itself.
    """

    rows: tuple[Row, ...]
    index: tuple[int, ...]
    scale: F32  # [len(index)]
    sft_scale: F32  # [len(index)]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def picked(self) -> list[Row]:
        """The rows of this update, in order."""
        return [self.rows[i] for i in self.index]


def aside(step: int) -> int:
    """The version of weights that were changed for sampling alone, from those of `step`, and are put back.

    A number beyond those of all steps, so that such tokens are never taken for ones of the step's own weights; it is
    positive, since they were sampled. `step_of` tells the step, where an age or a lag is asked for.
    """
    return step + ASIDE


def is_aside(version: npt.ArrayLike) -> Bool:
    """Where tokens were sampled from weights that `aside` names."""
    return np.asarray(version) >= ASIDE


def step_of(version: npt.ArrayLike) -> I32:
    """The step that versions belong to; -1 (not sampled) stays."""
    versions = np.asarray(version, dtype=np.int32)
    return np.where(versions >= ASIDE, versions - ASIDE, versions).astype(np.int32)


def stream(name: str, parameter: float) -> str:
    """The name of a stream with a parameter: `stream("top_p_entropy", 0.8)` is "top_p_entropy(0.8)"."""
    return f"{name}({float(parameter)!r})"


Streams = list[dict[str, F32]]  # one dict of named arrays per row of a batch, in its order
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that one optimizer update needs besides its rows. Picklable; made by the controller."""

    update: int  # index over the whole run
    lr: float
    version: int  # weight version at the start of the step (the gap metric compares tokens of this version)
    first: bool  # first update of the step: current log-probs are the old ones
    knobs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # add-on name -> scalars
    marks: Mapping[str, Sequence[F32]] = field(default_factory=dict)  # add-on name -> [L] per row of the batch
