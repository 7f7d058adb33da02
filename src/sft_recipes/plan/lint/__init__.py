"""Findings: what a recipe, with its data and where it runs, will do that its author would not want.

A rule is one small function in a module of this package. It looks at a `Case` and yields what it found; what the case
does not know (no data given, no config at hand) it passes over.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.models.base_model import Model
from sft_recipes.plan.gpus import Spec
from sft_recipes.plan.schedule import Schedule
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Gpu, Topology

SEVERITIES = ("blocking", "warning", "info")
MODULES = ("adapters", "batch", "data", "evidence", "schedule", "speed", "supply")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known when a recipe is judged."""

    recipe: Recipe
    """As written, with its base and overrides."""
    topology: Topology
    gpus: tuple[Gpu, ...] = ()
    """The GPUs that are visible here."""
    gpu: Spec | None = None
    """The kind of GPU that it is planned for."""
    model: Model | None = None
    data: dict[str, Any] | None = None
    """What `survey.survey` counted in the rows."""
    schedule: Schedule | None = None


@dataclasses.dataclass(frozen=True)
class Said:
    """What a rule found in one case: what, where and why it matters; and what to write instead."""

    message: str
    instead: str
    severity: str | None = None
    """Another severity than the rule's, where it depends on how much."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule: its docstring says in one sentence what it finds."""

    id: str
    severity: str
    evidence: str
    """Where it was seen or measured: a link, or a document and its section."""
    check: Callable[[Case], Iterator[Said]]
    required: bool
    """Whether a recipe cannot silence it, because the run would be refused all the same."""

    @property
    def idea(self) -> str:
        return " ".join((self.check.__doc__ or "").split())


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a rule found; `silenced` is the recipe's reason for keeping it."""

    rule: str
    severity: str
    message: str
    instead: str
    evidence: str
    silenced: str | None = None

    @property
    def stops(self) -> bool:
        """Whether a run is refused for it."""
        return self.severity == "blocking" and self.silenced is None

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}. Instead: {self.instead}"


_RULES: dict[str, Rule] = {}


def rule(id: str, severity: str, evidence: str, *, required: bool = False) -> Callable[[Any], Any]:
    """Declare a function as the rule `id`."""

    def declare(check: Callable[[Case], Iterator[Said]]) -> Callable[[Case], Iterator[Said]]:
        _RULES[id] = Rule(id, severity, evidence, check, required)
        return check

    return declare


def rules() -> dict[str, Rule]:
    """All rules by id, in order."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return dict(sorted(_RULES.items()))


def findings(case: Case) -> list[Finding]:
    """What all rules find, the gravest first; what the recipe silences is kept, with its reason.

    Raises:
        InputError: The recipe silences a rule that does not exist or cannot be silenced, or gives no reason.
    """
    silence = case.recipe["silence"] or {}
    problems = []
    for id, reason in silence.items():
        where = f"{case.recipe.values['silence'].origin}: silence: {id}"
        if id not in rules():
            near = difflib.get_close_matches(str(id), rules(), n=1)
            problems.append(f"{where} is no rule" + (f"; did you mean {near[0]}?" if near else "; see make rules"))
        elif rules()[id].required:
            problems.append(f"{where} cannot be silenced, because the run would be refused all the same; drop it")
        elif not isinstance(reason, str) or not reason.strip():
            problems.append(f"{where} needs the reason, for those who read the run: {{{id}: why it is right here}}")
    if problems:
        raise InputError(*problems)
    found = [
        Finding(
            each.id,
            said.severity or each.severity,
            said.message,
            said.instead,
            each.evidence,
            None if each.required else silence.get(each.id),
        )
        for each in rules().values()
        for said in each.check(case)
    ]
    return sorted(found, key=lambda finding: (finding.silenced is not None, SEVERITIES.index(finding.severity)))
