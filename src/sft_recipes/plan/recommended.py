"""A recommendation as people read it: the recipe's file, and what the terminal says."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_recipes.plan.recommend import BASE, MARGIN
from sft_recipes.recipes import editor
from sft_recipes.recipes.recipe import line
from sft_recipes.terminal import count, gib, share

# Of comments in a file, and beside the subjects in a terminal of 80 columns.
WIDTH, NARROW = 110, 68


def written(facts: Mapping[str, Any], width: int = WIDTH) -> str:
    """The recipe as a file: each key below its reason, and below what is known about it."""
    data = facts["data"]
    made = (
        f"By sft-recipes recommend, from {data['rows']:,} rows for {facts['machine']['name']}; nearest of what ships:"
    )
    lines = [editor.LINE, *_comment(f"{made} {facts['nearest']}.", width), f"extends: {BASE}"]
    for key, each in facts["recipe"].items():
        lines += _comment(each["reason"], width)
        if each["known"]:
            lines += _comment(f"Known: {each['known']}.", width)
        lines.append(line(key, each["value"]))
    return "\n".join(lines) + "\n"


def _comment(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="# ", subsequent_indent="# ")


def render(facts: Mapping[str, Any], path: Path | None) -> Iterator[tuple[str, str]]:
    """What was found and decided, as (subject, text) for `terminal.say`; the whole recipe where no file has it."""
    data = facts["data"]
    classes = f", {count(len(data['classes']), 'class')}" if data["kind"] == "classification" else ""
    lengths, estimate = data["lengths"], data["tokens_are"] != "exact"
    about = f" (estimated: {MARGIN:g} times 4 bytes a token)" if estimate else ""
    letters = ", ".join(f"{script} {share(part, 1)}" for script, part in data["scripts"].items())
    yield "data", f"{count(data['rows'], 'row')} of {data['file']}, {data['format']}: {data['kind']}{classes}"
    yield "", f"half have up to {lengths['p50']:,} tokens, 99.5 % {lengths['p99.5']:,}, all {lengths['p100']:,}{about}"
    yield "", f"letters: {letters or 'none'}"
    yield "machine", facts["machine"]["name"]
    text = written(facts, NARROW).removeprefix(f"{editor.LINE}\n").rstrip()
    yield "recipe", text if path is None else f"wrote {path}: {facts['recipe']['description']['value']}"
    yield "costs", _costs(facts["costs"])
    for each in facts["alternatives"]:
        yield "instead", f"{each['what']}, {each['words']}\n{each.get('problem') or _costs(each)}"
    for each in facts["findings"]:
        yield each["severity"], f"{each['rule']}: {each['message']}\ninstead: {each['instead']}"
    for each in facts["unknown"]:
        yield "not known", each
    if path is None:
        stops = "nothing is written, because the findings above would stop it"
        yield "next", stops if facts["blocking"] else "the same with NAME=my_recipe writes it into recipes/"
        return
    number = f" GPUS={facts['machine']['used']}" if facts["machine"]["used"] > 1 else ""
    goals = (f"plan RECIPE={path.stem}{number}", f"rehearse RECIPE={path.stem}", f"train RECIPE={path.stem}{number}")
    yield "next", "\n".join(f"make {goal}" for goal in goals)


def _costs(each: Mapping[str, Any]) -> str:
    time = f"{each['time']} of training" if each["time"] else "time not known before a run"
    whole = f"{share(each['whole'], 1)} of the rows whole"
    return f"{each['method']}: {gib(each['bytes'])}, {count(each['steps'] or 0, 'step')}, {time}, {whole}"
