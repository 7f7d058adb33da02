"""Kubernetes: the TrainJob of a run, which Kubeflow Trainer turns into pods, and what kubectl says of it.

The fields are those of trainer.kubeflow.org/v1alpha1 as Kubeflow Trainer 2.2 and later has it. Its runtime for torch
gives each pod its place in PET_* variables (kubeflow/trainer, pkg/runtime/framework/plugins/torch/torch.go at
2026-08-21). What is trained, and what comes of it, is in the volume that holds the project.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.launch import clients
from sft_recipes.recipes import clusters
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration

FILE, ASKED = "job.yaml", "kubectl"
CLIENT = ("kubectl", "launch on a machine that has it")
# The pods by their name in the runtimes that Trainer brings, and the container in each.
NODE = "node"
# Who owns these patches of the runtime, as Trainer asks for it.
OWNER = "github.com/sft-recipes"
# Takes its folder and the run as words. torchrun would read the PET_* variables too, and other than it is told.
IN_EACH_POD = (
    'nodes="$PET_NNODES" rank="$PET_NODE_RANK" head="$PET_MASTER_ADDR:$PET_MASTER_PORT"; unset "${!PET_@}"; '
    'cd "$0" && exec sft-recipes resume "$1" --machines "$nodes" --machine "$rank" --head "$head"'
)


def script(run: Run, site: Site, project: Path, nodes: int, gpus: int) -> str:
    """The text of a TrainJob.

    Args:
        site: What the site asks for; with `container_image`, `volume_claim` and `shared`.
        project: The folder in which `runs/` lies, in full, under `shared`.
        gpus: GPUs of each; 0 where CPUs train.
    """
    memory = site["memory_per_node"]
    limits: dict[str, Any] = {
        site["gpu_resource"]: gpus or None,
        "cpu": site["cpus_per_node"],
        # SLURM's letters are powers of 1024, and Kubernetes' of 1000 without an i.
        "memory": f"{memory}i" if memory and not memory.isdigit() else memory and f"{memory}Mi",
    }
    trainer: dict[str, Any] = {
        "image": site["container_image"],
        "command": ["bash", "-c", IN_EACH_POD, str(project), run.name],
        "numNodes": nodes,
        "resourcesPerNode": {"limits": clients.stated(limits)},
        "env": [*_environment(site)],
    }
    pod: dict[str, Any] = {
        "serviceAccountName": site["service_account"],
        "terminationGracePeriodSeconds": site["grace_seconds"],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": site["volume_claim"]}},
            # Processes hand each other batches and gradients by memory that a container has 64 MB of otherwise.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [
            {
                "name": NODE,
                "volumeMounts": [
                    {"name": "shared", "mountPath": site["shared"]},
                    {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108, where POSIX shared memory is
                ],
            }
        ],
    }
    template = {
        "spec": {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": {"spec": clients.stated(pod)}}}}]}
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": clients.stated({"generateName": f"{clusters.label(run.name)}-", "namespace": site["namespace"]}),
        "spec": clients.stated(
            {
                "runtimeRef": {"name": site["runtime"]},
                "trainer": clients.stated(trainer),
                "runtimePatches": [{"manager": OWNER, "trainingRuntimeSpec": {"template": template}}],
            }
        ),
    }
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=120)


def _environment(site: Site) -> Iterator[dict[str, Any]]:
    for name in site["environment"] or ():
        # Its value is in the cluster, and in no file of ours.
        yield {"name": name, "valueFrom": {"secretKeyRef": {"name": site["environment_from"], "key": name}}}
    yield from ({"name": name, "value": value} for name, value in site.variables().items())


def by_hand(file: Path) -> str:
    """The command that submits a job file."""
    return f"kubectl create -f {shlex.quote(str(file))}"


def needed(site: Site) -> Iterator[str]:
    """The keys that a site has to set for its jobs."""
    yield from (key for key in ("container_image", "volume_claim", "shared") if not site[key])
    if site["environment"] and not site["environment_from"]:
        yield "environment_from"


def submit(file: Path) -> str:
    """Submit a job file; gives the job's name, with its namespace before it where that is not kubectl's own."""
    created = clients.submitted("Kubernetes", ["kubectl", "create", "-f", str(file), "-o", "json"])
    metadata = json.loads(created)["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"


def state(job: Mapping[str, Any]) -> str:
    """What the cluster says of a job: whether it runs, how many of its pods do, and why it ended."""
    namespace, _, name = str(job["id"]).partition("/")
    # What run.json names is no option of kubectl, whatever it is.
    done = clients.answered("kubectl", f"--namespace={namespace}", "get", f"trainjob/{name}", "--output=json")
    if done.returncode:
        return "Kubernetes does not know it any more" if "NotFound" in done.stderr else " ".join(done.stderr.split())
    found = json.loads(done.stdout).get("status") or {}
    for condition in found.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed", "Suspended"):
            why = f" ({condition['reason']}: {condition['message']})" if condition["type"] == "Failed" else ""
            return condition["type"].lower() + why
    pods = [each for each in found.get("jobsStatus") or () if each.get("name") == NODE]
    ready, active = (pods[0].get(key) or 0 for key in ("ready", "active")) if pods else (0, 0)
    return f"running on {ready} of {count(active, 'pod')}" if ready else f"pending ({count(active, 'pod')} started)"


def explained(site: Site) -> str:
    """What ends a job before it has finished, and what comes of it."""
    grace = duration(site["grace_seconds"])
    return f"a pod that is taken away has {grace} to save a checkpoint, and the one in its place goes on from there"


def stopping(identifier: str) -> str:
    """The command that ends a job."""
    namespace, _, name = identifier.partition("/")
    return f"kubectl --namespace {namespace} delete trainjob {name}"
