"""Seconds of `rlvr eval`: the quickstart's base model, 256 tasks x 64 samples, then scored again from the cache.

    python benchmarks/eval_speed.py [--repeats 3]

Each measurement is a process of its own, from the command to its end: imports, engine start, sampling, scoring,
intervals, page. Run it in a folder with the base model of `make quickstart` (`rlvr sft sft/arithmetic_base` builds it);
the cache there is moved aside and put back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLES = Path("runs/samples")
COMMAND = [sys.executable, "-m", "rlvr", "eval", "quickstart", "-n", "64", "--out", "eval_speed.json"]


def main() -> None:
    """Measure both, alternately, and print medians and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    aside = SAMPLES.with_name(f"samples.{os.getpid()}")
    if SAMPLES.exists():
        os.rename(SAMPLES, aside)
    seconds: dict[str, list[float]] = {"sampled": [], "scored again": []}
    try:
        for _ in range(repeats):
            shutil.rmtree(SAMPLES, ignore_errors=True)
            for name, k in (("sampled", "1,8"), ("scored again", "1,4,32")):
                began = time.perf_counter()
                subprocess.run([*COMMAND, "-k", k], check=True, stdout=subprocess.DEVNULL)
                seconds[name].append(time.perf_counter() - began)
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    finally:
        shutil.rmtree(SAMPLES, ignore_errors=True)
        if aside.exists():
            os.rename(aside, SAMPLES)
    for name, all_of_them in seconds.items():
        spread = f"{min(all_of_them):.1f} to {max(all_of_them):.1f}"
        print(f"{name}: median {statistics.median(all_of_them):.1f} s ({spread}, n={len(all_of_them)})")


if __name__ == "__main__":
    main()
