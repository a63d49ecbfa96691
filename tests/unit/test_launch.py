"""The launch scripts, run against stand-ins for srun, scontrol, ip, ray and rlvr that write down their calls."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr.config import load

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
NODES = "node1 node2 node3"

RECORD = f"""#!{sys.executable}
import json, os, sys
keep = {{k: v for k, v in os.environ.items() if k.startswith(("RAY_", "NCCL_", "GLOO_"))}}
line = json.dumps({{"name": os.path.basename(sys.argv[0]), "args": sys.argv[1:], "env": keep, "pid": os.getpid()}})
with open(os.environ["CALLS"], "a") as calls:
    calls.write(line + "\\n")
"""
FAKES = {
    "srun": RECORD + "rest = sys.argv[1:]\nwhile rest[0].startswith('--'): rest.pop(0)\nos.execvp(rest[0], rest)\n",
    "scontrol": f"#!/bin/sh\nprintf '%s\\n' {NODES}\n",
    "ip": '#!/bin/sh\ncase "$*" in *"dev ib0"*) echo "3: ib0  inet 10.1.2.3/24 brd 10.1.2.255 scope global";; esac\n',
    "ray": RECORD + "if sys.argv[1] == 'start': os.execvp('sleep', ['sleep', '30'])\n",
    "rlvr": RECORD + "os.execvp('sh', ['sh', '-c', os.environ.get('RLVR_DOES', 'exit 0')])\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project with the stand-ins on its PATH."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        file = tmp_path / "bin" / name
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def start(project: Path, script: str, *args: str, **env: str) -> subprocess.Popen[str]:
    slurm = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "8"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RLVR_"))}
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean, **slurm, "PATH": path, "CALLS": str(project / "calls"), **env}
    command = ["bash", str(LAUNCH / script), *args]
    return subprocess.Popen(command, cwd=project, env=environment, text=True, stderr=subprocess.PIPE)


def calls(project: Path, name: str) -> list[Mapping[str, Any]]:
    file = project / "calls"
    lines = file.read_text().splitlines() if file.exists() else []
    return [call for call in map(json.loads, lines) if call["name"] == name]


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch"])
def test_scripts_are_sound_bash_and_ask_for_a_recipe(script: str, project: Path) -> None:
    assert subprocess.run(["bash", "-n", LAUNCH / script], capture_output=True).returncode == 0
    launched = start(project, script)
    assert "RECIPE" in launched.communicate(timeout=20)[1] and launched.returncode != 0
    assert calls(project, "rlvr") == [] and calls(project, "ray") == []


def test_local_passes_everything_on(project: Path) -> None:
    launched = start(project, "local.sh", "recipes/my recipe.yaml", "steps=3", RLVR_DOES="exit 7")
    assert launched.wait(20) == 7
    (call,) = calls(project, "rlvr")
    assert call["args"] == ["train", "recipes/my recipe.yaml", "steps=3"]


def test_slurm_starts_one_head_and_the_workers_on_the_private_network_with_one_token(project: Path) -> None:
    launched = start(project, "slurm.sbatch", "r.yaml", "steps=3", RLVR_DOES="sleep 1; exit 5")
    assert launched.wait(30) == 5
    (train,) = calls(project, "rlvr")
    assert train["args"] == ["train", "r.yaml", "steps=3", "resources.address=10.1.2.3:6379"]

    head, workers = sorted(calls(project, "srun"), key=lambda call: "--head" not in call["args"])
    assert "--nodelist=node1" in head["args"] and "--node-ip-address=10.1.2.3" in head["args"]
    assert "--include-dashboard=false" in head["args"] and "--head" in head["args"]
    assert "--nodes=2" in workers["args"] and "--exclude=node1" in workers["args"]
    assert "--address=10.1.2.3:6379" in workers["args"] and "--head" not in workers["args"]

    everyone = [head, workers, train, *calls(project, "ray")]
    assert {call["env"]["RAY_AUTH_MODE"] for call in everyone} == {"token"}
    (token,) = {call["env"]["RAY_AUTH_TOKEN"] for call in everyone}
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert not any(token in arg for call in everyone for arg in call["args"]), "a token in a command line is public"
    assert {call["env"]["NCCL_SOCKET_IFNAME"] for call in everyone} == {"ib0"}
    wait_for(lambda: not any(is_alive(call["pid"]) for call in (head, workers)))


def test_every_job_has_its_own_token(project: Path) -> None:
    for _ in range(2):
        assert start(project, "slurm.sbatch", "r.yaml").wait(30) == 0
    assert len({call["env"]["RAY_AUTH_TOKEN"] for call in calls(project, "rlvr")}) == 2


def test_slurm_hands_the_warning_on_and_waits_for_the_checkpoint(project: Path) -> None:
    saves = "trap 'sleep 1; touch saved; exit 3' TERM; touch ready; while :; do sleep 0.1; done"
    launched = start(project, "slurm.sbatch", "r.yaml", RLVR_DOES=saves)
    wait_for((project / "ready").exists)
    launched.send_signal(signal.SIGTERM)
    assert launched.wait(20) == 3 and (project / "saved").exists()


def test_slurm_without_the_interface_says_so(project: Path) -> None:
    launched = start(project, "slurm.sbatch", "r.yaml", RLVR_INTERFACE="eth9")
    assert "set RLVR_INTERFACE" in launched.communicate(timeout=20)[1] and launched.returncode != 0
    assert calls(project, "ray") == []


def test_slurm_stops_when_the_head_dies(project: Path) -> None:
    (project / "bin" / "ray").write_text("#!/bin/sh\nexit 1\n")
    launched = start(project, "slurm.sbatch", "r.yaml")
    assert "ended" in launched.communicate(timeout=20)[1] and launched.returncode == 1
    assert calls(project, "rlvr") == []


def kuberay() -> dict[str, Any]:
    documents = yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text())
    return {document["kind"]: document["spec"] for document in documents}


def test_kuberay_asks_for_tokens_and_closes_the_network() -> None:
    cluster = kuberay()["RayJob"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == "2.60.0"
    templates = [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]
    labels = kuberay()["NetworkPolicy"]["podSelector"]["matchLabels"]
    assert all(labels.items() <= template["metadata"]["labels"].items() for template in templates)
    mounted = [{v["name"] for v in t["spec"]["volumes"]} for t in templates]
    used = [{m["name"] for c in t["spec"]["containers"] for m in c["volumeMounts"]} for t in templates]
    assert mounted == used


def test_kuberay_names_a_shipped_recipe_that_fits_the_cluster() -> None:
    job = kuberay()["RayJob"]
    program, verb, recipe, *overrides = job["entrypoint"].split()
    assert (program, verb, overrides) == ("rlvr", "train", ["resources.address=auto"])
    resources = load(recipe, overrides=overrides, project=LAUNCH.parent).recipe.resources
    workers = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = [(w["replicas"], w["template"]["spec"]["containers"][0]["resources"]["limits"]) for w in workers]
    gpus = sum(n * int(limit["nvidia.com/gpu"]) for n, limit in limits)
    assert gpus >= resources.trainers + resources.samplers * resources.tensor_parallel
