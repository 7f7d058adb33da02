"""SkyPilot: the task of a run, which its managed jobs place on a cloud or a cluster and start again after preemption.

The fields are those of SkyPilot 0.14 (docs.skypilot.co, "SkyPilot YAML"). Each node finds its place in SKYPILOT_*
variables; what is trained, and what comes of it, is in the volume that holds the project.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.launch import clients
from sft_recipes.recipes import clusters
from sft_recipes.recipes.clusters import Site
from sft_recipes.runs.run import Run

FILE, ASKED = "job.sky.yaml", "sky"
CLIENT = ("sky", "install skypilot in an environment of its own")
# In what sky prints when a managed job is submitted (sky/utils/ux_utils.py).
_NUMBER = re.compile(r"Managed Job ID: (\d+)")
INTERRUPTED = 3
"""The exit code of a run that has saved a checkpoint and can go on; the job is started again for it."""


class _Lines(str):
    """A text of several lines, which is written as such."""


class _Dumper(yaml.SafeDumper):
    """Writes them so."""


_Dumper.add_representer(_Lines, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def script(run: Run, site: Site, project: Path, nodes: int, gpus: int) -> str:
    """The text of a task.

    Args:
        site: What the site asks for; with `volume`, `shared`, and `gpu_type` where GPUs train.
        project: The folder in which `runs/` lies, in full, under `shared`.
        gpus: GPUs of each; 0 where CPUs train.
    """
    memory = site["memory_per_node"]
    resources = {
        "infra": site["infra"],
        "accelerators": f"{site['gpu_type']}:{gpus}" if gpus else None,
        "cpus": f"{site['cpus_per_node']}+" if site["cpus_per_node"] else None,
        # In GiB, whole ones.
        "memory": f"{max(1, round(clients.size_in_bytes(memory) / 2**30))}+" if memory else None,
        "use_spot": site["use_spot"] or None,
        "image_id": f"docker:{site['container_image']}" if site["container_image"] else None,
        # A machine that is taken away is replaced by itself; one that was told to stop exits so.
        "job_recovery": {"recover_on_exit_codes": [INTERRUPTED]},
    }
    task = {
        "name": clusters.label(run.name),
        "num_nodes": nodes,
        "resources": clients.stated(resources),
        "volumes": {site["shared"]: site["volume"]},
        "secrets": dict.fromkeys(site["environment"] or ()) or None,
        "setup": site["setup"],
        "run": _Lines(commands(run, site, project, nodes)),
    }
    return yaml.dump(clients.stated(task), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def commands(run: Run, site: Site, project: Path, nodes: int) -> str:
    """What each machine runs."""
    lines = [f"cd {shlex.quote(str(project))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.variables().items()]
    work = shlex.join(["exec", "sft-recipes", "resume", run.name])
    if nodes > 1:
        lines.append('head="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"')
        work += f' --machines "$SKYPILOT_NUM_NODES" --machine "$SKYPILOT_NODE_RANK" --head "$head:{site["port"]}"'
    return "\n".join([*lines, work]) + "\n"


def by_hand(file: Path) -> str:
    """The command that submits a job file."""
    return f"sky jobs launch {shlex.quote(str(file))}"


def needed(site: Site) -> Iterator[str]:
    """The keys that a site has to set for its jobs."""
    yield from (key for key in ("volume", "shared", "gpu_type") if not site[key])


def submit(file: Path) -> str:
    """Submit a task as a managed job; gives the job's number."""
    secrets = yaml.safe_load(file.read_text(encoding="utf-8")).get("secrets") or {}
    # By name alone: sky reads the values from the environment.
    given = [word for name in secrets for word in ("--secret", name)]
    printed = clients.submitted("SkyPilot", ["sky", "jobs", "launch", "--yes", "--detach-run", *given, str(file)])
    return clients.number_of("SkyPilot", _NUMBER, printed, "sky jobs queue")


def state(job: Mapping[str, Any]) -> str:
    """What SkyPilot says of a job."""
    done = clients.answered("sky", "jobs", "queue", "--output", "json")
    if done.returncode:
        return " ".join(done.stderr.split())
    found = [each for each in json.loads(done.stdout) if str(each.get("job_id")) == str(job["id"])]
    return str(found[0]["status"]).lower() if found else "SkyPilot does not know it any more"


def explained(site: Site) -> str:
    """What ends a job before it has finished, and what comes of it."""
    return "a machine that is taken away is replaced, and the run goes on from its newest checkpoint"


def stopping(identifier: str) -> str:
    """The command that ends a job."""
    return f"sky jobs cancel {identifier}"
