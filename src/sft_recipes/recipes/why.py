"""Why a recipe has the values it has: the evidence of a key, one file each in `evidence/`.

`docs/hyperparameters.md` is made of the same files. Nothing here needs torch.
"""

import functools
import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, topology
from sft_recipes.recipes.recipe import RECIPES, Recipe
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.recipes.shipped import located
from sft_recipes.terminal import count

SCHEMA = 1
EVIDENCE = Path(__file__).parent / "evidence"
# The commit and date at which each repository that is cited was read, and what scripts/count_recipes.py counted there.
REPOSITORIES = Path(__file__).parent / "repositories.json"
# What committed figures are read from: measurements, counts, and the last run of the demo.
ROOT = Path(__file__).parents[3]
SOURCE = Path(__file__).parents[2]
PAGE = "docs/hyperparameters.md"
# The headings of a recipe, and of what a recipe says beside them.
GROUPS = (
    "Model and quantisation",
    "Data",
    "LoRA",
    "Training hyperparameters",
    "Optimisation",
    "Logging and checkpointing",
    "Evaluation",
    "Recipe",
)
# Not written in recipes: it follows from global_batch_size and the number of processes.
DERIVED = "gradient_accumulation_steps"

Entry = dict[str, Any]


def documented() -> list[str]:
    """Every key with evidence; also names that are no keys, where an entry says what stands in their place."""
    return sorted(path.stem for path in EVIDENCE.glob("*.yaml"))


@functools.cache
def entry(key: str) -> Entry | None:
    """The evidence of a key, its measured figures filled in; None if there is none.

    An entry holds `what` the key does, the `value` of the default recipe and `because`, and where there is more to
    say `range`, `evidence` (each `says`, `source`, `where`, `mark`), `first_change` when it is wrong, `interacts`
    (key: sentence), `seed` (what the founding document `says`, `but`), `no_key` (why it is no key) and a `grade`.
    """
    path = EVIDENCE / f"{key}.yaml"
    if not recipes.NAME.fullmatch(key) or not path.is_file():
        return None
    found = {name: item.value for name, item in recipes.read(path).items()}
    for each in found.get("evidence", []):
        if figures := each.pop("figures", None):
            each["says"] = _filled(each["says"], figures)
    return found


def _filled(text: str, figures: dict[str, list[Any]]) -> str:
    try:
        return _Figures().format(text, **{name: _figure(*place) for name, place in figures.items()})
    except FileNotFoundError as error:
        # The package is installed apart from its repository.
        return f"Measured; the figures are in {Path(error.filename).relative_to(ROOT)}, which is not here."


def sources(statement: dict[str, Any]) -> list[str]:
    """Where a statement comes from, one or more: `arXiv:`, `doi:`, a page, a package with its version, a file here."""
    source = statement["source"]
    return source if isinstance(source, list) else [source]


def cited(text: str) -> str:
    """A text with every address of a repository led to the commit that was read, and its date."""
    known = _json(REPOSITORIES)["repositories"]

    def at(address: re.Match[str]) -> str:
        facts = known.get(address[1])
        return f"{address[0]}/tree/{facts['commit'][:10]} ({facts['date']})" if facts else address[0]

    return re.sub(r"https://github\.com/([\w.-]+/[\w.-]*\w)(?![\w/#-]|\.\w)", at, text)


class _Figures(string.Formatter):
    """Python's formats, with a space before a percent sign, and `MB` for bytes: 1e6 of them."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "MB":
            return f"{value / 1e6:,.0f} MB"
        return super().format_field(value, format_spec).replace("%", " %")


def _figure(file: str, *place: str | int) -> Any:
    """A committed figure, by keys and indices; in a list, a text names the item of that name."""
    # Files of the package are where it is installed; others only in its repository.
    found = _json(SOURCE / file.removeprefix("src/") if file.startswith("src/") else ROOT / file)
    for step in place:
        if isinstance(found, list) and isinstance(step, str):
            (found,) = [item for item in found if item["name"] == step]
        else:
            found = found[step]
    return found


@functools.cache
def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def why(key: str, recipe: str | None = None, directory: Path = RECIPES) -> dict[str, Any]:
    """What is known about a key, with its value in a recipe, in all others, and the values it interacts with.

    Raises:
        InputError: There is no such key or recipe, or no evidence for the key.
    """
    found = entry(key)
    if found is None:
        if key in schema.known():
            raise InputError(f"{key} is a key without evidence here; `sft-recipes keys` has its type and default")
        raise InputError(str(schema.problem(key, "VALUE")))
    chosen = recipes.load(recipe, directory=directory) if recipe else None
    here = recipes.names(directory) if key in schema.known() or key == DERIVED else []
    return {
        "schema": SCHEMA,
        "key": key,
        **found,
        "recipe": chosen and {"name": chosen.name, **_written(key, chosen, directory)},
        "recipes": {name: _written(key, _read(name, directory), directory)["value"] for name in here},
        "interacts": [
            {"key": other, "how": how, "value": chosen and _written(other, chosen, directory)["value"]}
            for other, how in found.get("interacts", {}).items()
        ],
        "page": f"{PAGE}#{anchor(key, found)}",
    }


@functools.cache
def _stated(path: Path) -> dict[str, recipes.Value]:
    return recipes.read(path)


def _read(name: str, directory: Path) -> Recipe:
    """A recipe with its base, read without the checks of `recipe.load`, which cost more than all of `why` may."""
    own = _stated(directory / f"{name}.yaml")
    base = own["extends"].value if "extends" in own else None
    inherited = _stated(directory / f"{base}.yaml") if base else {}
    return Recipe(name, {**inherited, **own})


def _written(key: str, recipe: Recipe, directory: Path) -> dict[str, Any]:
    """The value of a key in a recipe, where it was written, and the reason the recipe gives above it."""
    if key == DERIVED:
        accel = recipe["accelerate_config"] or "ddp"
        chosen = topology.read(accel, recipe.name, directory=directory.parent / topology.CONFIGS)
        origin = f"derived: global_batch_size / (per_device_train_batch_size x {chosen.processes} processes)"
        return {"value": topology.accumulation(recipe, chosen), "origin": origin, "reason": None}
    if key not in schema.known():
        return {"value": None, "origin": "no key", "reason": None}
    item = recipe.values.get(key)
    if item is None:
        return {"value": recipe[key], "origin": "not set: the default", "reason": None}
    return {"value": item.value, "origin": item.origin, "reason": comment(item.origin)}


def comment(origin: str) -> str | None:
    """The comment above a key where it is written: the reason that the recipe gives."""
    path, _, line = origin.rpartition(":")
    written = located(path)
    if not line.isdigit() or not written.is_file():
        return None
    above = written.read_text(encoding="utf-8").splitlines()[: int(line) - 1]
    found: list[str] = []
    while above and above[-1].startswith("#"):
        found.insert(0, above.pop().lstrip("# "))
    # A heading of the file, and what is there for editors.
    if found and (found[0] in GROUPS or found[0].startswith("yaml-language-server:")):
        del found[0]
    return " ".join(found) or None


def anchor(key: str, found: Entry) -> str:
    """Where a key stands in docs/hyperparameters.md: the founding document's own anchor, or the key."""
    seed = found.get("seed", {})
    return slug(f"{seed['number']}. {seed['heading']}") if "number" in seed else key.lower()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, hyphens for spaces, only letters, digits, - and _ kept."""
    return "".join("-" if c == " " else c for c in heading.strip().lower() if c.isalnum() or c in " -_")


def reasons(recipe: Recipe) -> dict[str, str]:
    """One reason a value: the recipe's own, or the evidence for the default's value, or that there is none."""
    return {key: _reason(key, item) for key, item in recipe.values.items()}


def _reason(key: str, item: recipes.Value) -> str:
    if item.origin.startswith(("derived: ", "execution: ")):
        return item.origin
    found = entry(key)
    # A description is its recipe's own, and what stands above it is about the file.
    if found is not None and key == "description":
        return found["because"]
    if own := comment(item.origin):
        return own
    if found is None:
        return "no evidence here"
    if item.value == found["value"]:
        return found["because"]
    return f"the default has {as_yaml(found['value'])}. {found['what'].split('. ')[0].rstrip('.')}"


def render(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The evidence of a key, as (label, text) for `terminal.say`."""
    yield "key", f"{facts['key']}\n{facts['what']}"
    if "no_key" in facts:
        yield "no key", facts["no_key"]
    if chosen := facts["recipe"]:
        text = f"{as_yaml(chosen['value'])} in {chosen['name']} ({chosen['origin']})"
        yield "value", text + (f"\n{chosen['reason']}" if chosen["reason"] else "")
    yield "default", f"{as_yaml(facts['value'])}: {facts['because']}"
    if "range" in facts:
        yield "range", facts["range"]
    if others := _by_value(facts):
        yield "recipes", "\n".join(others)
    for each in facts["interacts"]:
        value = f" {as_yaml(each['value'])}" if facts["recipe"] else ""
        yield "with", f"{each['key']}{value}: {each['how']}"
    for each in facts.get("evidence", []):
        place = ", ".join([*map(cited, sources(each)), *([each["where"]] if "where" in each else [])])
        yield "evidence", f"{each['says']}\n{place} ({each['mark']})"
    if seed := facts.get("seed"):
        for label, name in (("seed", "says"), ("but", "but")):
            if name in seed:
                yield label, seed[name]
    if "first_change" in facts:
        yield "if wrong", facts["first_change"]
    yield "grade", facts["grade"]
    yield "page", facts["page"]


def _by_value(facts: dict[str, Any]) -> list[str]:
    """The recipes by what they have: `64: high_capacity`; of those that have the first's value only their number."""
    groups: dict[str, list[str]] = {}
    for name, value in facts["recipes"].items():
        groups.setdefault(as_yaml(value), []).append(name)
    lines = [f"{value}: {', '.join(names)}" for value, names in groups.items()]
    if lines:
        value, (first, *same) = next(iter(groups.items()))
        lines[0] = f"{value}: {first}" + (f" and {count(len(same), 'other')}" if same else "")
    return lines
