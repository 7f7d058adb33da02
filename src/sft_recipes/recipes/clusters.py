"""What one site asks of a job beside the recipe: partition, account, modules, network; `clusters/SITE.yaml`."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from sft_recipes.errors import did_you_mean, refuse, shown
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, secrets

CLUSTERS = Path("clusters")
KEYS: dict[str, dict[str, Any]] = schema.table("sft_recipes.recipes", "clusters.yaml")
# Of a name: Kubernetes allows 63 characters together with what it and Kubeflow Trainer put behind.
LONGEST_LABEL = 40
ENGINES: tuple[str, ...] = tuple(KEYS["engine"]["choices"])


def names() -> list[str]:
    """The engines by name."""
    return [*ENGINES]


@dataclasses.dataclass(frozen=True)
class Site:
    """A checked site: its name and the keys that it sets."""

    name: str | None
    values: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values.get(key, KEYS[key].get("default"))

    def variables(self) -> dict[str, str]:
        """The environment variables that say which network the processes take."""
        interface = self["network_interface"]
        return dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), interface) if interface else {}


def label(name: str) -> str:
    """A name as engines take it: lower-case letters, digits and dashes, a letter first."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (found if found[:1].isalpha() else f"run-{found}")[:LONGEST_LABEL].strip("-")


def read(name: str | None, engine: str) -> Site:
    """The site of that name, for jobs of an engine; one that says nothing without a name.

    Raises:
        InputError: There is no such site, or all that is wrong with it.
    """
    if name is None:
        return Site(None, {})
    path = recipes.find("site", name, CLUSTERS)
    values = recipes.read(path)
    refuse(secrets.problems(values).values())
    problems = [f"{item.origin}: {said}" for key, item in values.items() if (said := problem(key, item.value))]
    own = values["engine"].value if "engine" in values else None
    if own is None:
        problems.append(f"{path}: engine is missing; write engine: {engine}")
    elif own in ENGINES:
        problems += [
            f"{item.origin}: {key} is read by {' and '.join(KEYS[key]['engines'])} alone; drop it"
            for key, item in values.items()
            if own not in KEYS.get(key, {}).get("engines", ENGINES)
        ]
        if own != engine:
            problems.append(f"{values['engine'].origin}: {name} is a site of {own}; write ON={own}")
    if engine == "slurm" and ("container" in values) != ("container_image" in values):
        there = next(values[key].origin for key in ("container", "container_image") if key in values)
        problems.append(f"{there}: container and container_image belong together; write both, or neither")
    refuse(problems)
    return Site(name, {key: item.value for key, item in values.items()})


def problem(key: str, value: Any) -> str | None:
    """What is wrong with a key of a site, with what to write instead; None if nothing is."""
    entry = KEYS.get(key)
    if entry is None:
        return f"{key}: no such key of a site{did_you_mean(key, KEYS) or '; there are ' + ', '.join(KEYS)}"
    limits: dict[str, Any] = {word: entry[word] for word in ("from", "to") if word in entry}
    if limits:
        limits["says"] = f"from {entry['from']} to {entry['to']}"
    if found := schema.unfit(value) or schema.fault(key, value, entry, limits):
        return f"{key}: {found}"
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if not text.strip() or "\n" in text or "\t" in text:
            return f"{key}: {shown(text)} is blank, or holds a line end or a tab; write one line of text"
        if "pattern" in entry and not re.fullmatch(entry["pattern"], text):
            return f"{key}: {shown(text)} is not {entry['says']}"
    return None
