"""Ray as `launch/slurm.sbatch` starts it: who has the token is let in, who has not is kept out."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))
JOIN = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('nodes', len(ray.nodes()))"


def environment(home: Path, **token: str) -> dict[str, str]:
    """Ours without any Ray settings, and with a home folder that holds no token."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**clean, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **token}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Path]]:
    """Address of a head that asks for a token, the environment that has it, and an empty home folder."""
    home = tmp_path_factory.mktemp("home")
    ours = environment(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short: sockets live in it
        start = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1"]
        start += ["--include-dashboard=false", f"--temp-dir={folder}", f"--object-store-memory={10**8}"]
        head = subprocess.Popen(start, env=ours, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_until_healthy(f"127.0.0.1:{port}", ours, head)
            yield f"127.0.0.1:{port}", ours, home
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait(20)


def wait_until_healthy(address: str, env: dict[str, str], head: subprocess.Popen[bytes]) -> None:
    """What the script does: `ray health-check` until it answers."""
    end = time.monotonic() + 120
    while subprocess.run([RAY, "health-check", "--address", address], env=env, capture_output=True).returncode:
        assert head.poll() is None and time.monotonic() < end, "the head did not come up"
        time.sleep(1)


def join(address: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", JOIN, address], env=env, capture_output=True, text=True, timeout=120)


def test_the_token_lets_in(cluster: tuple[str, dict[str, str], Path]) -> None:
    address, ours, _ = cluster
    joined = join(address, ours)
    assert joined.returncode == 0 and "nodes 1" in joined.stdout, joined.stderr


NO_TOKEN = {"RAY_AUTH_MODE": "disabled"}
WRONG_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


@pytest.mark.parametrize("token", [NO_TOKEN, WRONG_TOKEN], ids=["none", "wrong"])
def test_others_are_kept_out(cluster: tuple[str, dict[str, str], Path], token: dict[str, str]) -> None:
    address, ours, home = cluster
    command = [RAY, "health-check", "--address", address]
    assert subprocess.run(command, env=ours, timeout=60).returncode == 0
    refused = subprocess.run(command, env=environment(home, **token), capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "authenticat" in refused.stderr.lower()
