"""The demo's task: which of eight intents a shop's customer has, written by a seeded generator.

Most messages also mention something that is *not* asked (already solved, rejected, another person's concern), with
the same words that ask for it elsewhere: a bag of words cannot tell which of the two is wanted. Each writing style is
a group, and the styles are unbalanced, so that measures per group have something to find.
"""

import json
import random
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sft_recipes.recipes.schema import table

SEED = 20240517
SIZES = {"train": 2400, "validation": 400, "test": 800}
LABEL_NOISE = 0.035
TWO_TOPICS = 0.6

PHRASES = table("sft_recipes.demo", "phrases.yaml")
ITEMS, INTENTS, STYLES = PHRASES["items"], PHRASES["intents"], PHRASES["styles"]
LABELS = list(INTENTS)
INSTRUCTION = f"Name the customer's intent: {', '.join(LABELS[:-1])} or {LABELS[-1]}."


class Message(NamedTuple):
    """A customer's text, what it truly asks for, its writing style, and what it only mentions (or nothing)."""

    text: str
    label: str
    group: str
    mentioned: str | None


def _pick(rng: random.Random, choices: Mapping[str, Mapping[str, Any]]) -> str:
    return rng.choices(list(choices), weights=[each["share"] for each in choices.values()])[0]


def message(rng: random.Random) -> Message:
    """One customer message; some mention a second intent that is not asked for."""
    group, label = _pick(rng, STYLES), _pick(rng, INTENTS)
    # By the labels' own shares: drawn otherwise, how rare a topic is would betray which of the two is asked.
    other = _pick(rng, {name: intent for name, intent in INTENTS.items() if name != label})
    two_topics = rng.random() < TWO_TOPICS
    style, asked, mentioned = STYLES[group], INTENTS[label], INTENTS[other]
    frame = rng.choice(style["two_topics" if two_topics else "one_topic"])
    of_asked = {"a": rng.choice(asked["actions"]), "an": rng.choice(asked["things"])}
    text = frame.format(**of_asked, b=rng.choice(mentioned["actions"]), bn=rng.choice(mentioned["things"]))
    text = text.replace("{item}", rng.choice(ITEMS), 1).replace("{item}", rng.choice(ITEMS))
    if group == "non_native":
        text = re.sub(r"\b(the|a|an) ", lambda match: "" if rng.random() < 0.7 else match[0], text)
    elif group == "casual":
        text = text.replace(" I ", " i ").replace("please", "pls").replace(" you ", " u ")
    else:
        text = re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)
    text = rng.choice(style["openings"]) + text + rng.choice(style["closings"])
    text = text.replace("{number}", str(rng.randrange(1000, 9999)))
    return Message(text, label, group, other if two_topics else None)


def messages(rng: random.Random, taken: Collection[str] = ()) -> Iterator[Message]:
    """Endless messages, no text twice and none whose words are in `taken` (see `words`)."""
    seen = set(taken)
    while True:
        new = message(rng)
        if words(new.text) not in seen:
            seen.add(words(new.text))
            yield new


def words(text: str) -> str:
    """What makes two texts the same: their words, whatever the case, the punctuation and the order number."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def splits() -> dict[str, list[dict[str, str]]]:
    """The rows of each split; no two of them, in whatever splits, have the same words."""
    rng = random.Random(SEED)
    source = messages(rng)
    result: dict[str, list[dict[str, str]]] = {}
    for name, size in SIZES.items():
        result[name] = []
        for _ in range(size):
            text, label, group, _ = next(source)
            if rng.random() < LABEL_NOISE:
                label = rng.choice([other for other in LABELS if other != label])
            result[name].append({"instruction": INSTRUCTION, "input": text, "output": label, "group": group})
    return result


def write(directory: Path) -> None:
    """Writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, the same bytes every time."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in splits().items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/demo"))
