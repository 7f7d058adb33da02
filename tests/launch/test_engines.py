"""The jobs of Kubernetes, SkyPilot and Ray: what each field means, to clients' own models, and run by a shell."""

import ast
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from sft_recipes.cli import main
from sft_recipes.launch import kubernetes, ray, skypilot
from sft_recipes.recipes import clusters
from sft_recipes.runs.run import Run

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
RAY: dict[str, Any] = {
    "engine": "ray",
    "address": "http://head:8265",
    "gpu_type": "H100",
    "gpus_per_node": 8,
    "cpus_per_node": 64,
    "memory_per_node": "800G",
    "grace_seconds": 120,
    "gpus_per_trial": 0.5,
}
# Those of several machines.
SITES = {"kubernetes": KUBERNETES, "skypilot": SKYPILOT}
FILES = {"kubernetes": kubernetes.FILE, "skypilot": skypilot.FILE}
ON_GPUS = "global_batch_size=16 per_device_train_batch_size=1 accelerate_config=ddp bf16=true"
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


# Ray as far as a job needs it: a task is done when it is asked for.
RAY_STUB = """
import json, sys
class exceptions:
    class RayError(Exception): pass
class remote:
    def __init__(self, function): self.function = function
    def options(self, **given):
        print(json.dumps(given))
        return self
    def remote(self, *given):
        try: return self.function(*given)
        except OSError as error: return error
def init(): pass
def wait(tasks): return tasks[:1], tasks[1:]
def get(task):
    if isinstance(task, OSError): raise exceptions.RayError(str(task))
    return task
"""


def test_a_job_on_ray_is_a_task_whose_words_no_shell_takes_apart(
    written: Written, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The job's own text, run with as much of Ray as it asks for (tests_clusters has a real cluster)."""
    site(RAY | {"shared": str(project)})
    words = ["launch", "tiny", "--on", "ray", "--gpus", "2", "--site", "mine", "--dry", "--name"]
    assert main([*words, "big", "--set", ON_GPUS]) == 0
    said = capsys.readouterr().out
    file = Path.cwd() / "runs" / "big" / ray.FILE
    by_hand = ["ray", "job", "submit", "--address", "http://head:8265", "--no-wait", "--runtime-env-json"]
    by_hand += ['{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}', "--", "python", str(file)]
    assert f"nothing is submitted; {shlex.join(by_hand)} does it" in said
    stub(tmp_path / "bin", "sft-recipes", 'pwd; printf "%s\\n" "$@"; exit 1')
    (tmp_path / "ray.py").write_text(RAY_STUB)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, cwd="/")
    task = {"name": "big", "num_cpus": 64, "num_gpus": 2, "memory": 800 * 2**30, "accelerator_type": "H100"}
    assert (json.loads(done.stdout), done.returncode, done.stderr) == (task, 1, "not finished: big (1)\n")
    assert main(["logs", "big"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(Path.cwd()), "resume", "big"]
    # Of a sweep, a task is a trial, which may share a GPU where it takes one.
    over = ["sweep", "tiny", "--over", "lora_r=4,8", "--on", "ray", "--site", "mine", "--name", "grid"]
    given = ["--gpus", "1", "--accel", "single_gpu", "--jobs", "2", "--set", "bf16=true dtype=bfloat16"]
    assert main([*over, *given, "--dry"]) == 0
    said = capsys.readouterr().out
    assert "open       grid-t001: lora_r 8" in said and " ON=ray SITE=mine" in said
    assert "No trial has finished</b> yet<" in Path("runs/grid.sweep/sweep.html").read_text()
    (call,) = [line for line in Path("runs/grid.sweep/job.ray.py").read_text().splitlines() if "'submit'" in line]
    job = ast.literal_eval(call.strip())
    assert (job["runs"], job["at_a_time"]) == (["grid-t000", "grid-t001"], 2)
    # Of eight GPUs.
    assert job["task"] | {"num_gpus": 0.5, "num_cpus": 4, "memory": 50 * 2**30} == job["task"]
    assert not [*Path.cwd().parent.rglob("pwned")]


def test_jobs_are_submitted_by_the_engine_s_own_client_and_asked_after(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """By programs that answer as kubectl 1.34, sky 0.14 and ray 2.60 do; what they were told is kept."""
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
    (tmp_path / "failed").write_text(
        "\033[31mJob 'raysubmit_1' failed\033[0m\nStatus message: it\nnot finished: ray (1)\n"
    )
    by_ray = f"""echo "$@" >> {told}
case "$2" in submit) echo "Job 'raysubmit_1' submitted successfully";; *) cat {tmp_path / "failed"};; esac"""
    stub(tmp_path / "bin", "ray", by_ray)
    for engine, number, state, submitting in (
        (
            "ray",
            "http://head:8265/raysubmit_1",
            "failed (not finished: ray (1))",
            "--address http://head:8265 --no-wait",
        ),
        ("kubernetes", "training/my-run-1-x7f", "running on 1 of 2 pods", "create -f"),
        ("skypilot", "7", "recovering", "jobs launch --yes --detach-run --secret HF_TOKEN"),
    ):
        site((SITES | {"ray": RAY})[engine] | {"shared": str(Path.cwd().parent)})
        words = ["launch", "tiny", "--on", engine, "--gpus", "2", "--site", "mine", "--name", engine]
        assert main([*words, "--set", ON_GPUS]) == 0
        assert f"job {number}" in capsys.readouterr().out
        assert f"{submitting} " in told.read_text()
        assert main(["status", engine]) == 0
        assert f"{number} of {engine}: {state}" in capsys.readouterr().out


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


def test_the_same_command_takes_in_what_has_ended_and_submits_what_failed(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An array on SLURM, whose programs answer as sbatch and squeue do, and runs that ended as they may."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    over = ["sweep", "tiny", "--over", "lora_r=2,4,8,16", "--name", "grid"]
    words = [*over, "--on", "slurm", "--accel", "cpu", "--jobs", "2"]
    stub(tmp_path / "bin", "sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    assert main(words) == 2
    assert "SLURM refuses the job: invalid account; nothing was submitted" in capsys.readouterr().err
    assert not [*Path("runs").glob("grid-t*")]
    stub(tmp_path / "bin", "sbatch", "echo 77")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0,1,2,3%2" in said and "job 77, 4 trials; scancel 77 ends it" in said
    again = "make sweep RECIPE=tiny OVER=lora_r=2,4,8,16 NAME=grid ACCEL=cpu JOBS=2 ON=slurm"
    assert f"left       4 trials: {again}" in said
    runs = [Run.open(f"grid-t00{number}") for number in range(4)]
    assert [run.facts()["job"]["id"] for run in runs] == [f"77_{number}" for number in range(4)]
    assert [run.values()["lora_r"] for run in runs] == [2, 4, 8, 16]
    done = subprocess.run(
        ["bash"],
        input="srun() { printf '%s\\n' \"${@: -2}\"; }; SLURM_ARRAY_TASK_ID=2\n"
        + Path("runs/grid.sweep/job.sbatch").read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["resume", "grid-t002"]
    for run in runs[:2]:
        run.update(status="running")
    runs[0].update(status="finished")
    runs[0].log.write_text('{"step": 4, "eval_loss": 2.0}\n')
    runs[1].update(status="failed", error="the training process was killed by SIGKILL")
    states = 'case "$*" in *77_2*) state=RUNNING;; *77_3*) state=NODE_FAIL;; *) state=FAILED;; esac'
    stub(tmp_path / "bin", "squeue", f'{states}; echo "$state||n1|1|2"')
    stub(tmp_path / "bin", "sbatch", "echo 78")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "grid-t001 has not finished, its job 77_1 is failed: the training process was killed by SIGKILL" in said
    assert "grid-t003 has not finished, its job 77_3 is node_fail" in said
    assert "trial      grid-t002: running on n1" in said and "#SBATCH --array=1,3%2" in said
    assert [run.facts()["job"]["id"] for run in runs] == ["77_0", "78_1", "77_2", "78_3"]
    assert "finished   grid-t000: eval loss 2.0000" in said and "left       3 trials" in said
    stub(tmp_path / "bin", "squeue", 'echo "PENDING|Resources||0|2"')
    assert main(words) == 0
    assert "submitted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--over", "lora_r=4..8", "--trials", "3", "--on", "slurm"],
            "TRIALS=3: Optuna chooses a trial by the results",
        ),
        (["--over", "lora_r=4..8", "--on", "slurm"], "OVER: lora_r is a range: Optuna chooses a trial by the results"),
        (["--over", "lora_r=4,8", "--on", "torchrun"], "ON=torchrun: its commands are started by hand, a run each"),
        (
            ["--over", "lora_r=4,8", "--on", "skypilot", "--jobs", "2"],
            "JOBS=2: skypilot runs the trials as it has room",
        ),
        (
            ["--over", "lora_r=4,8", "--on", "sky"],
            "ON=sky: no such engine; there are slurm, kubernetes, skypilot, ray",
        ),
        (
            ["--over", "lora_r=4,8", "--on", "ray"],
            "ON=ray needs SITE=NAME, a file of clusters/ like ray_example.yaml",
        ),
        (["--over", "lora_r=4,8", "--dry"], "are of trials that are submitted; write"),
    ],
)
def test_a_sweep_that_no_engine_can_run_is_refused(
    project: Path, capsys: pytest.CaptureFixture, words: list[str], problem: str
) -> None:
    assert main(["sweep", "tiny", *words]) == 2
    said = capsys.readouterr().err
    assert problem in said and not Path("runs").exists(), said
