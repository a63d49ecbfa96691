"""What `rlvr check` says about `kl:` and `reference:`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_check import told

KL = {"coef": 0.1}
EVALUATED = {"data": {"train": [{"name": "gsm8k"}], "eval": [{"name": "gsm8k"}]}, "evaluate": {"every": 5}}


@pytest.mark.parametrize(
    "fine",
    [
        {"kl": KL | {"gradient": "k2"}},
        {"kl": KL | {"estimator": "k1", "gradient": "k2"}},
        {"kl": KL | {"importance": True}},
        {"kl": KL | {"importance": True, "estimator": "k1"}},
        {"kl": KL, "reference": {"update": "every", "steps": 100}},
        {"kl": KL, "reference": {"update": "average", "steps": 10, "alpha": 0.1}},
        {"kl": KL, "reference": {"update": "plateau", "patience": 2}} | EVALUATED,
    ],
)
def test_what_works(fine: dict[str, Any], tmp_path: Path) -> None:
    assert told(tmp_path, **fine) == []


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"kl": KL | {"estimator": "k1"}}, "error kl.estimator", "mean zero"),
        ({"kl": KL | {"where": "reward", "gradient": "k2"}}, "error kl.where", "no gradient"),
        ({"kl": KL | {"where": "reward", "importance": True}}, "error kl.where", "no gradient"),
        ({"kl": KL | {"importance": True, "estimator": "k2"}}, "error kl.importance", "k3"),
        ({"kl": KL | {"importance": True, "gradient": "k2"}}, "error kl.importance", "its own gradient"),
        ({"kl": KL, "reference": {"update": "every"}}, "error reference.steps", "number of steps"),
        ({"kl": KL, "reference": {"update": "average"}}, "error reference.steps", "number of steps"),
        ({"kl": KL, "reference": {"steps": 3}}, "warning reference.steps", "no effect"),
        ({"reference": {"update": "every", "steps": 3}}, "error reference.update", "no reference model"),
        ({"kl": KL, "reference": {"update": "plateau"}}, "error reference.update", "evaluate.every"),
        (
            {
                "kl": KL,
                "reference": {"update": "every", "steps": 3},
                "deepspeed": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            },
            "error reference.update",
            "nvme",
        ),
    ],
)
def test_what_does_not(changes: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    (said,) = told(tmp_path, **changes)
    assert said.startswith(f"{key}: ") and words in said
