"""What a training would be refused for, by the functions that refuse it; the rule of that name says it first."""

from collections.abc import Iterator, Sequence

from sft_recipes.data import refusals as of_rows
from sft_recipes.demo import bases
from sft_recipes.models import conflicts as of_models
from sft_recipes.plan.lint import Case, Found
from sft_recipes.plan.lint.speed import largest_micro_batch
from sft_recipes.recipes import conflicts
from sft_recipes.recipes.conflicts import Conflict
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Gpu, Topology


def refused(recipe: Recipe, topology: Topology, gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    """What a training here is refused for, whatever its rows."""
    yield from conflicts.of_topology(recipe, topology)
    # Base models that are made here are made before the first training that needs them.
    yield from conflicts.of_machine(recipe, topology, gpus, bases.lacking())


def named(rule: str, case: Case) -> Found:
    """The refusals of the name of a rule."""
    for each in _all(case):
        if each.rule == rule:
            # Without the rows, or their exact lengths, max_length or an estimate is all that is known of positions.
            sure = rule != "positions-missing" or (case.data is not None and case.data["tokens_are"] == "exact")
            yield {"reason": each.reason, "remedy": each.remedy, **({} if sure else {"severity": "warning"})}


def _all(case: Case) -> Iterator[Conflict]:
    yield from refused(case.recipe, case.topology, case.gpus)
    if case.model is not None:
        yield from of_models.of_model(case.model, case.recipe)
        batch = largest_micro_batch(case)
        yield from of_models.of_rows(case.model, max(batch.length, batch.eval_length))
    if case.data is not None and (tokenizer := case.data["tokenizer"]):
        largest = max(split["largest_token"] for split in case.data["splits"].values())
        config = case.model.text_config if case.model else None
        yield from of_rows.of_recipe(case.recipe, tokenizer, case.data, config, largest)
