"""Findings: what a recipe, with its data and where it runs, will do that its author would not want.

A rule is an entry of rules.yaml, which holds its words, and a function of the same name in a module of this package.
The function looks at a `Case` and yields, for each thing it finds, what the words need beside the case; what the case
does not know (no data given, no config at hand) it passes over.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sft_recipes.errors import did_you_mean, refuse
from sft_recipes.recipes import why
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.schema import table
from sft_recipes.recipes.topology import Gpu, Topology

if TYPE_CHECKING:
    from sft_recipes.data.survey import Survey
    from sft_recipes.models.base_model import Model
    from sft_recipes.plan.gpus import Spec
    from sft_recipes.plan.schedule import Schedule

SEVERITIES = ("blocking", "warning", "info")
MODULES = ("adapters", "data", "refusals", "run", "speed")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known when a recipe is judged."""

    recipe: Recipe  # as written, with its base and overrides
    topology: Topology
    gpus: tuple[Gpu, ...] = ()  # the GPUs that are visible here
    gpu: "Spec | None" = None  # the kind of GPU that it is planned for
    model: "Model | None" = None
    data: "Survey | None" = None  # what `survey.survey` counted in the rows
    schedule: "Schedule | None" = None


Found = Iterator[dict[str, Any]]
"""What a rule found: the words' placeholders, and `severity` where it is another than the rule's."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a rule found in one case: what, where and why it matters; and what to write instead."""

    rule: str
    severity: str
    message: str
    instead: str
    evidence: str
    silenced: str | None = None  # the recipe's reason for keeping it

    @property
    def stops(self) -> bool:
        """Whether a run is refused for it."""
        return self.severity == "blocking" and self.silenced is None

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}. Instead: {self.instead}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """An entry of rules.yaml, which explains its keys."""

    id: str
    severity: str
    idea: str  # one sentence: what the rule finds
    evidence: str  # where it was seen or measured: a link, or a document and its section
    message: str
    instead: str
    required: bool = False
    formerly: tuple[str, ...] = ()
    rows_with: Mapping[str, str] | None = None

    @property
    def look(self) -> Callable[[Case], Iterable[dict[str, Any]]]:
        """Its function; a list of the rules needs none."""
        if self.rows_with:
            return functools.partial(_looks()["rows_with"], self.rows_with)
        # What a training refuses has words of its own, which are the same there.
        return _looks().get(self.id.replace("-", "_")) or functools.partial(_looks()["named"], self.id)

    def check(self, case: Case) -> Iterator[Finding]:
        known = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
        for found in self.look(case):
            message, instead = (text.format_map(known | found) for text in (self.message, self.instead))
            yield Finding(self.id, found.get("severity", self.severity), message, instead, self.evidence)


@functools.cache
def rules() -> dict[str, Rule]:
    """All rules by id, in order."""
    entries = sorted(table(__name__, "rules.yaml").items())
    return {id: Rule(id, **entry | {"evidence": why.cited(entry["evidence"])}) for id, entry in entries}


@functools.cache
def _looks() -> dict[str, Any]:
    looks: dict[str, Any] = {}
    for module in MODULES:
        looks |= vars(importlib.import_module(f"{__name__}.{module}"))
    return looks


def findings(case: Case) -> list[Finding]:
    """What all rules find, the gravest first; what the recipe silences is kept, with its reason.

    Raises:
        InputError: The recipe silences a rule that does not exist or cannot be silenced, or gives no reason.
    """
    silence = _silence(case.recipe)
    found = [
        dataclasses.replace(each, silenced=silence.get(each.rule))
        for rule in rules().values()
        for each in rule.check(case)
    ]
    return sorted(found, key=lambda finding: (finding.silenced is not None, SEVERITIES.index(finding.severity)))


def _silence(recipe: Recipe) -> dict[str, str]:
    """The recipe's reasons for keeping what a rule finds, by the rule's id of today."""
    ids = {former: id for id, rule in rules().items() for former in (id, *rule.formerly)}
    problems, reasons = [], {}
    for id, reason in (recipe["silence"] or {}).items():
        where = f"{recipe.values['silence'].origin}: silence: {id}"
        if id not in ids:
            problems.append(f"{where} is no rule{did_you_mean(str(id), ids) or '; see make rules'}")
        elif rules()[ids[id]].required:
            problems.append(f"{where} cannot be silenced, because the run would be refused all the same; drop it")
        elif not isinstance(reason, str) or not reason.strip():
            problems.append(f"{where} needs the reason, for those who read the run: {{{id}: why it is right here}}")
        else:
            reasons[ids[id]] = reason
    refuse(problems)
    return reasons
