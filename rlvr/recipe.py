"""The recipe tree: every key that a recipe may hold, with its default, in one place.

Frozen and strict. How YAML, `extends:` and `key=value` become this tree is in `config.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Reduction = Literal["token", "sequence", "constant", "sum"]  # see `rlvr.objectives.reduce`


class Strict(BaseModel):
    """Base of every node: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Plugin(BaseModel):
    """A file of a catalogue folder (or `path.py:name`, `package.module:name`) with its options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own keys, checked by the plug-in's own `Config`."""
        return dict(self.model_extra or {})


class Scratch(Strict):
    """A small Qwen3 built from nothing, with a tokenizer trained on the recipe's data."""

    layers: PositiveInt = 4
    width: PositiveInt = 128
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    mlp: PositiveInt = 384
    max_len: PositiveInt = 512
    tied: bool = True
    tokenizer: Literal["char", "bpe"] = "char"
    vocab: PositiveInt = 512  # of a bpe tokenizer


class Model(Strict):
    """`model: NAME` is short for `model: {path: NAME}`."""

    path: str | None = None  # Hub name, folder, or a run of ours ("runs/NAME")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    scratch: Scratch | None = None


class Prompt(Strict):
    """How a task becomes token ids."""

    system: str | None = None
    template: str = "{prompt}"  # wraps the user's text
    chat: bool = True  # apply the tokenizer's chat template where it has one
    max_tokens: PositiveInt = 1024  # a longer prompt is an error when the data is loaded


class PassRate(Strict):
    """Which training tasks stay, by the pass rate that `rlvr eval` measured on them."""

    file: str  # an eval.json
    min: float = Field(0.0, ge=0.0, le=1.0)
    max: float = Field(1.0, ge=0.0, le=1.0)
    unmeasured: Literal["error", "keep", "drop"] = "error"  # tasks that the file does not hold


class Source(Plugin):
    """One dataset card with its weight in the mixture."""

    name: str
    weight: PositiveFloat = 1.0
    split: Literal["train", "eval"] | None = None  # null: as the list says that it stands in
    pass_rate: PassRate | None = None


class Data(Strict):
    """`train: NAME` and `train: [NAME, ...]` are short for a list of `{name: NAME}`."""

    train: tuple[Source, ...]
    eval: tuple[Source, ...] = ()
    path: str | None = None  # a local file for the (only) training source, instead of the Hub
    on_bad_rows: Literal["error", "drop"] = "error"  # rows whose gold answer the verifier cannot read


class Verifier(Plugin):
    """`verifier: NAME` is short for `{name: NAME}`."""

    name: str = "math"


class SamplingConfig(Strict):
    """How training responses are sampled."""

    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = -1
    max_tokens: PositiveInt = 1024
    stop: tuple[str, ...] = ()


class Method(Plugin):
    """A method by its kind; its other keys are checked by the method's own Config (`rlvr.methods`)."""

    kind: str


class Advantage(Method):
    """A file of `rlvr/advantages/`."""

    kind: str = "grpo"


class Correction(Method):
    """A file of `rlvr/corrections/`: weights for the gap between sampler and trainer."""

    kind: str = "tis"


class Objective(Method):
    """A file of `rlvr/surrogates/`, how its token losses become one number, and the correction."""

    kind: str = "clip"
    reduction: Reduction | None = None  # None: what the paper of `kind` says
    constant: PositiveInt | None = None  # L of `reduction: constant` (default: sampling.max_tokens)
    correction: Correction = Correction()


class KL(Strict):
    """KL to the reference model: the initial weights, or what `reference:` makes of them."""

    coef: NonNegativeFloat = 0.0
    estimator: Literal["k1", "k2", "k3"] = "k3"
    where: Literal["loss", "reward"] = "loss"
    gradient: Literal["k2", "k3"] | None = None  # in the loss: follow another one's gradient; null: the estimator's
    importance: bool = False  # in the loss: times the policy's ratio, with the gradient through it


class Reference(Strict):
    """How the reference model follows the policy; see `rlvr/reference.py`."""

    update: Literal["never", "every", "plateau", "average"] = "never"
    steps: PositiveInt | None = None  # between two moves (every, average)
    alpha: float = Field(0.6, gt=0.0, le=1.0)  # share of the policy (average)
    patience: PositiveInt = 3  # evaluations without a new best (plateau)


class Overlong(Strict):
    """What a truncated response gets (DAPO, 2503.14476): a soft penalty (`shape`), or no place in the loss (`mask`)."""

    kind: Literal["none", "shape", "mask"] = "none"
    buffer: PositiveInt = 1  # L_cache, tokens (shape)
    factor: NonNegativeFloat = 1.0  # f (shape)


class AddOnSpec(Method):
    """A file of `rlvr/explore/`."""


class Optimizer(Strict):
    """AdamW; the learning rate is a pure function of the update index."""

    lr: PositiveFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine", "one_cycle"] = "constant"
    warmup: NonNegativeInt = 0  # updates
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_norm: PositiveFloat = 1.0


class Evaluate(Strict):
    """Held-out evaluation during training."""

    every: NonNegativeInt = 0  # steps; 0: never
    n: PositiveInt = 4  # samples a task
    k: tuple[PositiveInt, ...] = (1, 4)
    tasks: PositiveInt | None = None  # the first so many; null: all
    temperature: NonNegativeFloat = 1.0
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: PositiveInt | None = None  # null: as in training


class Checkpoint(Strict):
    """When the run is saved. `start_from` begins a new run from another run's weights."""

    every: NonNegativeInt = 10  # steps; 0: only at the end
    keep: PositiveInt = 2
    best: bool = True
    start_from: str | None = None


class Resources(Strict):
    """Where things run. `samplers` counts replicas; a replica takes `tensor_parallel` devices."""

    device: Literal["cpu", "gpu"] = "gpu"
    trainers: PositiveInt = 1
    samplers: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    colocate: bool = False
    threads: PositiveInt = 1  # CPU threads of each trainer rank and each sampler
    token_budget: PositiveInt = 16384  # padded tokens of one micro-batch
    verifiers: PositiveInt = 2  # verifier processes
    address: str | None = None  # a running Ray cluster


class Limits(Strict):
    """Every wait has a limit, in seconds."""

    start: PositiveFloat = 600
    group: PositiveFloat = 1800  # one group, sampling and scoring; then it is drawn again
    push: PositiveFloat = 300
    step: PositiveFloat = 3600
    verify_cpu: PositiveFloat = 5  # CPU seconds of one verdict
    verify_wall: PositiveFloat = 60  # an infrastructure error beyond


class Track(Strict):
    """Where metrics go besides `metrics.jsonl`."""

    tensorboard: bool = True
    wandb: str | None = None  # project


class Recipe(Strict):
    """A training run."""

    run: str = "run"
    seed: int = 0
    steps: PositiveInt = 100
    prompts: PositiveInt = 64
    group: PositiveInt = 8
    minibatches: PositiveInt = 1
    epochs: PositiveInt = 1
    max_lag: NonNegativeInt = 0
    keep: Literal["informative", "all"] = "all"
    max_draws: PositiveInt = 10  # groups drawn for one step, in multiples of `prompts`; beyond, the run stops
    model: Model
    data: Data
    prompt: Prompt = Prompt()
    verifier: Verifier = Verifier()
    sampling: SamplingConfig = SamplingConfig()
    advantage: Advantage = Advantage()
    objective: Objective = Objective()
    kl: KL = KL()
    reference: Reference = Reference()
    overlong: Overlong = Overlong()
    explore: tuple[AddOnSpec, ...] = ()
    optimizer: Optimizer = Optimizer()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    resources: Resources = Resources()
    limits: Limits = Limits()
    track: Track = Track()
    vllm: dict[str, Any] = Field(default_factory=dict)  # verbatim
    deepspeed: dict[str, Any] = Field(default_factory=dict)  # verbatim


class SftRecipe(Strict):
    """Supervised fine-tuning on the demonstrations of the training tasks."""

    run: str = "sft"
    seed: int = 0
    steps: PositiveInt = 600
    rows: PositiveInt = 64  # demonstrations a step
    model: Model
    data: Data
    prompt: Prompt = Prompt()
    optimizer: Optimizer = Optimizer(lr=1e-5)
    checkpoint: Checkpoint = Checkpoint(every=0)
    resources: Resources = Resources()
    limits: Limits = Limits()
    track: Track = Track()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
