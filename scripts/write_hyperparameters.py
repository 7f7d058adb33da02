"""Write docs/hyperparameters.md and docs/contradictions.md from the evidence in src/sft_recipes/recipes/.

`python scripts/write_hyperparameters.py` writes both; a test keeps them equal to what `hyperparameters` and
`contradictions` give. Neither is edited by hand.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import why
from sft_recipes.recipes.schema import as_yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONTRADICTIONS = ROOT / "src" / "sft_recipes" / "recipes" / "contradictions.yaml"
MARKS = """\
- *verified*: seen in the named file or log, or by running the named code.
- *read*: read in the source's own text.
- *reported*: quoted or summarised by others; not checked in the source."""

INTRODUCTION = f"""\
# Hyperparameters

Why each value is what it is, where that comes from, and what to change first when it is wrong.
`make why KEY=lora_alpha RECIPE=default` says the same of one recipe. This page is made of
`src/sft_recipes/recipes/evidence/`, one file a key, by `python scripts/write_hyperparameters.py`; a test
compares every value with the recipes'.

Each statement names its source and how well it is known:

{MARKS}

Each value has a grade: *measured here* (a committed measurement or a test of this project shows what matters about
it), *literature* (papers, or the documentation and source of the libraries), *contested* (the sources disagree) and
*convention* (it has to have some value, or everybody has this one).

"The seed" is the document that specified the four presets. Where it and the evidence disagree, both are said here, and
[contradictions.md](contradictions.md) has the list."""


def hyperparameters() -> str:
    """docs/hyperparameters.md: the fifteen numbered values under their old anchors, then every other key."""
    entries = {key: why.why(key) for key in why.documented()}
    numbered = sorted(
        (e for e in entries.values() if "number" in e.get("seed", {})), key=lambda e: e["seed"]["number"]
    )
    parts = [INTRODUCTION, "## Hyperparameter Specifications", _table(numbered)]
    for each in numbered:
        parts += [f"### {each['seed']['number']}. {each['seed']['heading']}", *_entry(each)]
    parts.append("## Other keys")
    for group in why.GROUPS:
        parts.append(f"### {group}")
        for key, each in entries.items():
            if each["group"] == group and each not in numbered:
                parts += [f"#### {key}", *_entry(each)]
    return "\n\n".join(parts) + "\n"


def _table(entries: list[dict[str, Any]]) -> str:
    lines = ["| # | key | default | range | grade |", "|---|---|---|---|---|"]
    for each in entries:
        value, scope = as_yaml(each["value"]), each.get("range", "")
        lines.append(f"| {each['seed']['number']} | {_link(each['key'])} | {value} | {scope} | {each['grade']} |")
    return "\n".join(lines)


def _entry(facts: dict[str, Any]) -> Iterator[str]:
    """The paragraphs of a key: all in one where there is little to say."""
    said = f"`{facts['key']}`: {facts['what']}"
    if "no_key" in facts:
        said += f" No key of a recipe: {facts['no_key']}."
    default = f"Default `{as_yaml(facts['value'])}`: {facts['because']}."
    if facts["grade"] != "convention":
        default += f" *{facts['grade'].capitalize()}.*"
    if "range" in facts:
        default += f" Range: {facts['range']}."
    if others := _others(facts):
        default += f" In other recipes: {others}."
    yield f"{said}\n{default}"
    if seed := facts.get("seed"):
        yield f"**The seed:** {seed['says']}" + (f" **But:** {seed['but']}" if "but" in seed else "")
    if found := facts.get("evidence"):
        yield "\n".join(map(evidence, found))
    if "first_change" in facts:
        yield f"**If it is wrong:** {facts['first_change']}"
    if facts["interacts"]:
        yield "**Together with** " + "; ".join(f"{_link(each['key'])} ({each['how']})" for each in facts["interacts"])


def _others(facts: dict[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for name, value in facts["recipes"].items():
        if value != facts["value"] and facts["key"] not in ("description", "extends"):
            groups.setdefault(as_yaml(value), []).append(f"[{name}](../recipes/{name}.yaml)")
    return "; ".join(f"`{value}` in {', '.join(names)}" for value, names in groups.items())


def _link(key: str) -> str:
    found = why.entry(key)
    return f"[`{key}`](hyperparameters.md#{why.anchor(key, found)})" if found else f"`{key}`"


def evidence(each: dict[str, Any]) -> str:
    """One statement with its sources, as an item of a list."""
    where = f", {each['where']}" if "where" in each else ""
    return f"- {each['says']} ({', '.join(map(source, why.sources(each)))}{where}; *{each['mark']}*)"


def source(identifier: str) -> str:
    """A source as a link: a paper by arXiv or DOI, a page, or a file of this project; a package as it is."""
    kind, _, rest = identifier.partition(":")
    if kind == "arXiv":
        return f"[{identifier}](https://arxiv.org/abs/{rest})"
    if kind == "doi":
        return f"[{identifier}](https://doi.org/{rest})"
    if kind == "https":
        address, _, date = why.cited(identifier).partition(" ")
        name = re.sub(r"^//(github[.]com/)?", "", rest)
        return f"[{name}]({address})" + (f" at {address.rpartition('/')[2][:7]} {date}" if date else "")
    if "/" in identifier:
        return f"[{identifier}](../{identifier})"
    return identifier


def contradictions() -> str:
    """docs/contradictions.md: what the seed says, what is true, how that is known, and what is done here."""
    parts = [
        "# What the seed says and what is true",
        "The presets keep the values of the document that specified them. Its reasons and figures were checked\n"
        "against its own repository, the papers it names, and the libraries. Where they do not hold, this is the\n"
        "list; it is made of `src/sft_recipes/recipes/contradictions.yaml` by\n"
        "`python scripts/write_hyperparameters.py`.",
        MARKS,
    ]
    for number, (title, item) in enumerate(recipes.read(CONTRADICTIONS).items(), 1):
        facts = item.value
        parts += [
            f"## {number}. {title}",
            f"**The seed:** {facts['says']}",
            f"**In fact:** {facts['fact']}",
            "\n".join(map(evidence, facts["evidence"])),
            f"**Here:** {facts['here']} ({', '.join(map(_link, facts['keys']))})",
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    os.chdir(ROOT)
    (DOCS / "hyperparameters.md").write_text(hyperparameters(), encoding="utf-8")
    (DOCS / "contradictions.md").write_text(contradictions(), encoding="utf-8")


if __name__ == "__main__":
    main()
