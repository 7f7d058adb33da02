"""Scored rows as a page shows them: some of them as they stand, or all that a reader filters by templates/rows.js."""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_recipes.terminal import visible

Facts = dict[str, Any]

# A page has room for so many rows, and for so many characters of all their texts together and of one.
MOST_ROWS = 10_000
MOST_CHARACTERS, LONGEST, SHORTEST = 800_000, 1_000, 60


def entry(row: Facts, answers: Mapping[str, Facts], begin: int, task: str) -> Facts:
    """A row as the macro `row` of parts.html takes it, its prompt without the first `begin` characters.

    What was said is in its title where it is a class, and below it where it is a text.
    """
    made: Facts = {"number": row["row"], "group": row["group"], "gold": row["gold"], "answers": []}
    texts: dict[str, str] = {"prompt": row["prompt"][begin:]}
    if task == "generation":
        texts["reference"] = row["reference"]
        texts |= {name: said["prediction"] or "" for name, said in answers.items()}
        return made | {"gold": None, "texts": texts}
    said = [(name, each["prediction"], each["text"], confidence(each)) for name, each in answers.items()]
    return made | {"answers": said, "texts": texts}


def browser(
    rows: Sequence[Facts], answers: Mapping[str, Sequence[Facts]], labels: Sequence[str] | None, outcome: str
) -> Facts:
    """What browser.html shows of rows, and their data for its script.

    Args:
        rows: of predictions.jsonl.
        answers: what was said to each of them, by the name of who said it.
        labels: the classes, None for generation.
        outcome: the filter that the page begins with.
    """
    right = [
        [is_right(row, said) for said in each]
        for row, each in zip(rows, zip(*answers.values(), strict=True), strict=True)
    ]
    # Of too many the misses are kept.
    kept = sorted(sorted(range(len(rows)), key=lambda n: right[n][0])[:MOST_ROWS])
    begin = common([row["prompt"] for row in rows])
    texts = 1 if labels else 2 + len(answers)
    limit = max(SHORTEST, min(LONGEST, MOST_CHARACTERS // (texts * max(1, len(kept)))))
    longest = 0

    def text(of: str | None) -> str:
        nonlocal longest
        of = of or ""
        longest = max(longest, len(of))
        return visible(of[:limit] + ("…" if len(of) > limit else ""))

    codes = {label: code for code, label in enumerate(labels or [])}
    groups = list(dict.fromkeys(row["group"] for row in rows if row["group"] is not None))
    numbers = {group: number for number, group in enumerate(groups)}

    def answer(said: Facts) -> int | str:
        return codes[said["prediction"]] if said["prediction"] in codes else text(said["text"] or said["prediction"])

    def sure(said: Facts) -> float | None:
        return None if (found := confidence(said)) is None else round(found, 3)

    data = [
        [
            rows[n]["row"],
            numbers.get(rows[n]["group"], -1),
            codes[rows[n]["gold"]] if labels else text(rows[n]["reference"]),
            text(rows[n]["prompt"][len(begin) :]),
            [[answer(each[n]), int(right[n][i]), sure(each[n])] for i, each in enumerate(answers.values())],
        ]
        for n in kept
    ]
    shown = {"models": [*answers], "labels": list(labels or []), "groups": groups}
    return {
        **shown,
        "rows": len(kept),
        "of": len(rows),
        "begin": begin,
        "limit": limit if longest > limit else None,
        "outcome": outcome,
        "sure": any(each["probabilities"] for several in answers.values() for each in several),
        "data": {key: [visible(name) for name in names] for key, names in shown.items()}
        | {"begin": visible(begin), "rows": data},
    }


def confidence(said: Facts) -> float | None:
    """The probability that a model gave its own prediction, None where there is none."""
    return said["probabilities"][said["prediction"]] if said["probabilities"] else None


def is_right(row: Facts, said: Facts) -> bool:
    """Whether it is the class, or the reference but for white space at the ends."""
    if row["gold"] is not None:
        return bool(said["prediction"] == row["gold"])
    return (said["prediction"] or "").strip() == row["reference"].strip()


def common(prompts: Sequence[str]) -> str:
    """What all prompts begin with, up to the end of a word; nothing if that is short."""
    first, last = min(prompts, default=""), max(prompts, default="")
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    begin = first[: max(first.rfind("\n", 0, length), first.rfind(" ", 0, length)) + 1]
    return begin if len(prompts) > 1 and len(begin) > 40 else ""
