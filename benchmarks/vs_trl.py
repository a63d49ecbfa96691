"""Completions per second beside TRL's GRPOTrainer: same base model, tasks, group size, lengths and updates a batch.

    python benchmarks/vs_trl.py --completions 256 512 --repeats 3

Both stacks take turns in one session, each in a process of its own that ends before the next begins. A step is one
generation batch (`completions` responses, 8 a prompt) with 4 optimizer updates; the first two steps of a process are
left out as warm-up. Medians are over all other steps of all repeats. No group is dropped. TRL generates with
transformers, its only engine on a CPU. Needs the base model of `make quickstart` and the `dev` extra.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GROUP, UPDATES, MAX_TOKENS, WARMUP = 8, 4, 48, 2
BASE = "runs/quickstart-base/export"
ROWS = {"rlvr, max_lag 0": {"max_lag": 0}, "rlvr, max_lag 1": {"max_lag": 1}, "TRL": None}


def main() -> None:
    """Run the stacks in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--trl-child", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trl_child:
        print(json.dumps(trl_steps(args.trl_child, args.steps)))
        return
    seconds: dict[tuple[int, str], list[float]] = {}
    pushes: list[float] = []
    for repeat in range(args.repeats):
        for completions in args.completions:
            for name, changes in ROWS.items():
                steps = ours(completions, args.steps, changes, pushes) if changes else trl(completions, args.steps)
                seconds.setdefault((completions, name), []).extend(steps[WARMUP:])
                print(
                    f"repeat {repeat}: {completions} {name}: {statistics.median(steps[WARMUP:]):.2f} s a step",
                    flush=True,
                )
    print(table(seconds, args.completions))
    for size in args.completions:
        sync, lagged = (statistics.median(seconds[size, name]) for name in list(ROWS)[:2])
        print(f"a step of {size} with max_lag 1 takes {lagged / sync:.2f}x one with max_lag 0")
    print(f"weight push: median {statistics.median(pushes):.3f} s, largest {max(pushes):.3f} s, n={len(pushes)}")


def table(seconds: dict[tuple[int, str], list[float]], sizes: list[int]) -> str:
    """Median completions per second and the ratio to TRL."""
    lines = [
        "| completions a step | stack | seconds a step (median, quartiles) | completions/s | against TRL |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        peer = size / statistics.median(seconds[size, "TRL"])
        for name in ROWS:
            steps = seconds[size, name]
            low, mid, high = statistics.quantiles(steps, n=4)
            lines.append(
                f"| {size} | {name} | {mid:.2f} ({low:.2f}-{high:.2f}, n={len(steps)}) | {size / mid:.0f} "
                f"| {size / mid / peer:.2f}x |"
            )
    return "\n".join(lines)


def ours(completions: int, steps: int, changes: dict[str, Any], pushes: list[float]) -> list[float]:
    """Seconds of each step of one run of ours, from its metrics; those of its weight pushes go to `pushes`."""
    run = Path("runs/bench-vs-trl")
    shutil.rmtree(run, ignore_errors=True)
    overrides = {
        "run": run.name,
        "steps": steps,
        "prompts": completions // GROUP,
        "group": GROUP,
        "minibatches": UPDATES,
        "sampling.max_tokens": MAX_TOKENS,
        "keep": "all",
        "evaluate.every": 0,
        "checkpoint.every": 0,
        "track.tensorboard": "false",
        **changes,
    }
    words = [f"{key}={value}" for key, value in overrides.items()]
    subprocess.run([sys.executable, "-m", "rlvr", "train", "quickstart", *words], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run)
    pushes.extend(row["time/push"] for row in rows[WARMUP:])
    return [row["time/step"] for row in rows]


def trl(completions: int, steps: int) -> list[float]:
    """The same from a process of TRL's."""
    command = [sys.executable, __file__, "--trl-child", str(completions), "--steps", str(steps)]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def trl_steps(completions: int, steps: int) -> list[float]:
    """GRPOTrainer on the quickstart's tasks; seconds of each generation batch (4 optimizer steps)."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rlvr import config
    from rlvr.prompting import Prompter
    from rlvr.run_data import read_sets

    project = Path.cwd()
    recipe = config.load("quickstart", project=project).recipe
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompter = Prompter(tokenizer, recipe.prompt)
    tasks = [task for some in read_sets(recipe.data, project=project)[0] for task in some]
    rows = [{"prompt": tokenizer.decode(prompter.encode(t)), "answer": t.answer} for t in tasks]

    def reward(completions: list[str], answer: list[str], **_: object) -> list[float]:
        said = [text.rsplit("=", 1)[-1].strip() for text in completions]
        return [float(a == b) for a, b in zip(said, answer, strict=True)]

    ends: list[float] = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    settings = GRPOConfig(
        output_dir="runs/bench-trl-peer",
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        per_device_train_batch_size=completions // UPDATES,
        gradient_accumulation_steps=1,
        steps_per_generation=UPDATES,
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        max_steps=steps * UPDATES,
        beta=0.0,
        temperature=recipe.sampling.temperature,
        learning_rate=recipe.optimizer.lr,
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(BASE),
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    ends[0] = time.perf_counter()
    trainer.train()
    marks = ends[::UPDATES]
    return [b - a for a, b in itertools.pairwise(marks)]


if __name__ == "__main__":
    main()
