"""Fixtures and rules that all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder: tests/engines runs engines, tests/gpu needs CUDA."""
    skip_gpu = pytest.mark.skip(reason="no CUDA device on this machine")
    without_gpu = shutil.which("nvidia-smi") is None
    for item in items:
        parts = item.path.relative_to(ROOT).parts
        if "engines" in parts:
            item.add_marker(pytest.mark.engines)
        if "gpu" in parts:
            item.add_marker(pytest.mark.gpu)
        if without_gpu and item.get_closest_marker("gpu"):
            item.add_marker(skip_gpu)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with real rows (gsm8k_train.jsonl, gsm8k_test.jsonl ...): RLVR_TEST_DATA, or shared/data beside us."""
    folder = Path(os.environ.get("RLVR_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "gsm8k_train.jsonl").is_file():
        pytest.skip(f"no real rows: set RLVR_TEST_DATA to a folder with gsm8k_train.jsonl (looked in {folder})")
    return folder
