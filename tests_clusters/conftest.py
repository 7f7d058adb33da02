"""A SLURM of two nodes on this machine: munged, slurmctld and two slurmd, each with its own name and port.

`make test-clusters` installs Debian's packages first. It needs root, as SLURM starts jobs as their users.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NODES = ("n1", "n2")
# `short` has nodes that nobody may keep for longer than a minute.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 State=UNKNOWN
EnforcePartLimits=ALL
PartitionName=long Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=small Nodes=n1 MaxNodes=1 MaxTime=60 State=UP
"""


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The daemons, as long as the tests run; SLURM_CONF tells the clients."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("SLURM is not installed, or this is not root: make test-clusters installs it")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    port, first, second = free_ports(3)
    config = folder / "slurm.conf"
    host = socket.gethostname()
    config.write_text(CONFIG.format(folder=folder, host=host, port=port, first=first, second=second))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o711)
    os.environ["SLURM_CONF"] = str(config)
    socket_ = folder / "munge.socket"
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_}"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    commands = [munge, ["slurmctld", "-D", "-f", str(config)]]
    commands += [["slurmd", "-D", "-N", node, "-f", str(config)] for node in NODES]
    daemons: list[subprocess.Popen] = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            until(socket_.exists, 20)
        until(lambda: said("sinfo", "--noheader", "--format=%T %D", "--partition=long") == "idle 2", 60)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it was not so within {seconds:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's base and accelerate configs for two CPU processes, under a name that tries quotes."""
    folder = tmp_path_factory.mktemp("here") / 'it\'s $(touch pwned) a "project"'
    (folder / "accelerate_configs").mkdir(parents=True)
    for name in ("ddp", "zero2"):
        config = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())
        config |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
        (folder / "accelerate_configs" / f"{name}_cpu.yaml").write_text(yaml.safe_dump(config))
    (folder / ".cache").symlink_to(ROOT / ".cache")
    (folder / "clusters").mkdir()
    for partition in ("long", "small"):
        # Two processes share the cores of one machine.
        site = {"engine": "slurm", "partition": partition, "environment": ["OMP_NUM_THREADS"], "shared": str(folder)}
        (folder / "clusters" / f"{partition}.yaml").write_text(yaml.safe_dump(site))
    os.environ["OMP_NUM_THREADS"] = "1"
    return folder


def program(project: Path, *arguments: str, code: int = 0) -> str:
    """What the program says, all of it."""
    command = [sys.executable, "-m", "sft_recipes", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def facts(project: Path, name: str) -> dict[str, Any]:
    return json.loads((project / "runs" / name / "run.json").read_text())


def step(project: Path, name: str) -> int:
    """The last step that a run has logged."""
    path = project / "runs" / name / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)
