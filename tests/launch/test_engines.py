"""The jobs of Kubernetes and SkyPilot: each field with its meaning, by the clients' own models, and run by a shell."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from sft_recipes.cli import main
from sft_recipes.launch import kubernetes, skypilot
from sft_recipes.recipes import clusters

NASTY = 'it\'s $(touch pwned) a "project"'
KUBERNETES: dict[str, Any] = {
    "engine": "kubernetes",
    "namespace": "training",
    "container_image": "registry.example.org/image:1",
    "volume_claim": "projects",
    "gpus_per_node": 8,
    "cpus_per_node": 64,
    "memory_per_node": "800G",
    "grace_seconds": 120,
    "network_interface": "eth0",
    "service_account": "trainer",
    "environment_from": "tokens",
    "environment": ["HF_TOKEN"],
}
SKYPILOT: dict[str, Any] = {
    "engine": "skypilot",
    "infra": "k8s",
    "gpu_type": "H100",
    "gpus_per_node": 8,
    "cpus_per_node": 64,
    "memory_per_node": "800G",
    "use_spot": True,
    "volume": "projects",
    "container_image": "registry.example.org/image:1",
    "setup": "pip install /shared/sft-recipes",
    "network_interface": "eth0",
    "port": 29501,
    "environment": ["HF_TOKEN"],
}
SITES = {"kubernetes": KUBERNETES, "skypilot": SKYPILOT}
FILES = {"kubernetes": kubernetes.FILE, "skypilot": skypilot.FILE}
ON_GPUS = "global_batch_size=16 per_device_train_batch_size=1 accelerate_config=ddp"
Written = Callable[..., tuple[Path, Any]]


@pytest.fixture
def written(project: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """The file of a job for the tiny recipe on two nodes, and what is in it; the project's folder has a nasty name."""
    here = project / NASTY
    here.mkdir()
    for entry in [*project.iterdir()]:
        if entry != here:
            entry.rename(here / entry.name)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_TOKEN", "hf_value_that_nobody_writes")

    def written(engine: str, name: str = "My_Run.1", **changes: Any) -> tuple[Path, Any]:
        site(SITES[engine] | {"shared": str(project)} | changes)
        words = ["launch", "tiny", "--on", engine, "--nodes", "2", "--site", "mine", "--dry", "--name", name]
        assert main([*words, "--set", ON_GPUS]) == 0
        file = Path("runs") / name / FILES[engine]
        assert "hf_value" not in file.read_text()
        return file, yaml.safe_load(file.read_text())

    return written


def site(values: dict[str, Any]) -> None:
    Path("clusters").mkdir(exist_ok=True)
    kept = {key: value for key, value in values.items() if value is not None}
    Path("clusters/mine.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")


def stub(folder: Path, name: str, text: str) -> None:
    """A program of that name, first in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_a_train_job_is_what_kubeflow_trainer_reads(written: Written, project: Path) -> None:
    _, job = written("kubernetes")
    # A field that the model does not know is lost on the way.
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    spec = job["spec"]
    trainer = spec["trainer"]
    assert (job["metadata"]["generateName"], job["metadata"]["namespace"]) == ("my-run-1-", "training")
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert trainer["image"] == "registry.example.org/image:1" and trainer["numNodes"] == 2
    # SLURM's 800G, which `memory_per_node` is written in, are powers of 1024.
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 8, "cpu": 64, "memory": "800Gi"}
    assert trainer["env"][0] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "HF_TOKEN"}},
    }
    assert {each["name"]: each.get("value") for each in trainer["env"][1:]} == {
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer" and pod["terminationGracePeriodSeconds"] == 120
    assert pod["volumes"][0] == {"name": "shared", "persistentVolumeClaim": {"claimName": "projects"}}
    assert pod["volumes"][1] == {"name": "memory", "emptyDir": {"medium": "Memory"}}
    mounted = {each["name"]: each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {"shared": str(project), "memory": "/dev/shm"}  # noqa: S108, where POSIX shared memory is


@pytest.mark.parametrize("engine", SITES)
def test_each_machine_runs_its_part_whatever_the_folder_is_called(
    written: Written, engine: str, tmp_path: Path
) -> None:
    _, job = written(engine)
    stub(
        tmp_path / "bin",
        "sft-recipes",
        'pwd; printf "%s\\n" "$@"; env | grep ^PET_ || true; echo "$NCCL_SOCKET_IFNAME"',
    )
    place = {
        "kubernetes": {
            "PET_NNODES": "2",
            "PET_NODE_RANK": "1",
            "PET_MASTER_ADDR": "a-node-0-0.a",
            "PET_MASTER_PORT": "9",
        },
        "skypilot": {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
    }[engine]
    command = job["spec"]["trainer"]["command"] if engine == "kubernetes" else ["bash", "-c", job["run"]]
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **place}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    head = {"kubernetes": "a-node-0-0.a:9", "skypilot": "10.0.0.1:29501"}[engine]
    arguments = ["resume", "My_Run.1", "--machines", "2", "--machine", "1", "--head", head]
    interface = "" if engine == "kubernetes" else "eth0"
    assert done.stdout.split("\n")[:-1] == [str(Path.cwd()), *arguments, interface]
    assert not [*Path.cwd().parent.rglob("pwned")]


def test_a_task_of_skypilot_says_where_and_on_what(written: Written, project: Path) -> None:
    _, task = written("skypilot")
    assert task["name"] == "my-run-1" and task["num_nodes"] == 2
    assert task["resources"] == {
        "infra": "k8s",
        "accelerators": "H100:8",
        "cpus": "64+",
        "memory": "800+",
        "use_spot": True,
        "image_id": "docker:registry.example.org/image:1",
        "job_recovery": {"recover_on_exit_codes": [3]},
    }
    assert task["volumes"] == {str(project): "projects"}
    # The value comes from the environment of who submits it.
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["setup"] == "pip install /shared/sft-recipes"
    assert set(task) == {"name", "num_nodes", "resources", "volumes", "secrets", "setup", "run"}


def test_jobs_are_submitted_by_the_engine_s_own_client_and_asked_after(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """By programs that answer as kubectl 1.34 and sky 0.14 do; what they were told is kept."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    told = tmp_path / "told"
    created = {"metadata": {"namespace": "training", "name": "my-run-1-x7f"}}
    found = {"status": {"jobsStatus": [{"name": "node", "active": 2, "ready": 1, "failed": 0, "succeeded": 0}]}}
    kubectl = f"""echo "$@" >> {told}
case "$*" in create*) echo '{json.dumps(created)}';; *) echo '{json.dumps(found)}';; esac"""
    stub(tmp_path / "bin", "kubectl", kubectl)
    queue = [{"job_id": 7, "status": "RECOVERING"}, {"job_id": 8, "status": "RUNNING"}]
    sky = f"""echo "$@" >> {told}
case "$*" in *launch*) printf '\\nManaged Job ID: \\033[1m7\\033[0m\\n';; *) echo '{json.dumps(queue)}';; esac"""
    stub(tmp_path / "bin", "sky", sky)
    for engine, number, state, submitting in (
        ("kubernetes", "training/my-run-1-x7f", "running on 1 of 2 pods", "create -f"),
        ("skypilot", "7", "recovering", "jobs launch --yes --detach-run --secret HF_TOKEN"),
    ):
        written(engine, name="dry")
        words = ["launch", "tiny", "--on", engine, "--nodes", "2", "--site", "mine", "--name", engine]
        assert main([*words, "--set", ON_GPUS]) == 0
        assert f"job {number}" in capsys.readouterr().out
        assert f"{submitting} " in told.read_text()
        assert main(["status", engine]) == 0
        assert f"{number} of {engine}: {state}" in capsys.readouterr().out
        subprocess.run(["rm", "-rf", "runs/dry"], check=True)


@pytest.mark.parametrize(
    ("engine", "changes", "words"),
    [
        (
            "kubernetes",
            {"volume_claim": None},
            "clusters/mine.yaml: volume_claim: missing, and a job of kubernetes needs",
        ),
        ("kubernetes", {"environment_from": None}, "environment_from: missing"),
        ("kubernetes", {"partition": "gpu"}, "partition is read by slurm alone; drop it"),
        ("kubernetes", {"namespace": "My Space"}, "'My Space' is not a namespace of lower-case letters"),
        ("skypilot", {"volume": None, "gpu_type": None}, "volume, gpu_type: missing, and a job of skypilot needs it"),
        ("skypilot", {"use_spott": True}, "use_spott: no such key of a site; did you mean use_spot?"),
        ("skypilot", {"gpus_per_node": 4}, "GPUS=8: a node has 4 (clusters/mine.yaml: gpus_per_node); write"),
    ],
)
def test_a_site_that_cannot_be_is_refused_at_once(
    written: Written, capsys: pytest.CaptureFixture, engine: str, changes: dict[str, Any], words: str
) -> None:
    site(SITES[engine] | {"shared": str(Path.cwd())} | changes)
    asked = ["launch", "tiny", "--on", engine, "--nodes", "2", "--gpus", "8", "--site", "mine", "--dry"]
    assert main([*asked, "--set", ON_GPUS]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize(("name", "label"), [("My_Run.1", "my-run-1"), ("2026", "run-2026"), ("a" * 90, "a" * 40)])
def test_a_run_is_called_as_clusters_allow(name: str, label: str) -> None:
    assert clusters.label(name) == label
