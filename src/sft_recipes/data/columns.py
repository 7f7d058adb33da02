"""What users call the columns of a question and its answer, and what to write where their names do not tell."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from sft_recipes.errors import listed

_LABELS = ("label_text", "label", "intent", "sentiment", "category", "class", "topic", "emotion")
# Names of the Hub's most used sets for fine-tuning and classification: what is asked, in one column or two, and beside
# each what answers it. Of the first line that fits some columns, all that fits counts.
_KNOWN: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("premise hypothesis", "sentence1 sentence2", "question1 question2", "question sentence"), _LABELS),
    (("question passage", "question context", "title content", "title text"), _LABELS),
    (
        ("instruction", "question", "query", "problem", "prompt", "input"),
        ("output", "response", "answer", "solution", "generated_solution", "completion"),
    ),
    (("text", "sentence", "review", "content", "message", "sms", "tweet", "comment", "utterance"), _LABELS),
    (("document", "question", "query", "prompt", "input", "title"), _LABELS),
    (("document", "article", "dialogue", "text"), ("summary", "highlights")),
)
# A name that means something else, or the same in numbers, where another is there.
_YIELDS = {"input": {"instruction", "question", "query", "problem", "prompt"}, "label": {"label_text"}}


def readings(columns: Iterable[str]) -> list[dict[str, str]]:
    """The ways in which columns are a question and its answer, as `data_columns` of Alpaca's fields; in any case.

    One way is a recognition; several are told apart by nobody but their author.
    """
    names = {column.strip().lower(): column for column in columns}
    there = {name for name in names if not _YIELDS.get(name, set()) & names.keys()}
    for asked, answers in _KNOWN:
        found = [
            dict(zip(("instruction", "input"), (names[name] for name in each.split()), strict=False))
            | {"output": names[answer]}
            for each in asked
            for answer in answers
            if {*each.split(), answer} <= there
        ]
        if found:
            return found
    return []


def setting(columns: Mapping[str, str]) -> str:
    """`data_columns` on a command line, as a shell takes it."""
    flow = yaml.safe_dump(dict(columns), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    text = f"data_columns={flow.strip()}"
    return f"SET={shlex.quote(text)}" if set(text) & set('"$`\\!') else f'SET="{text}"'


def unknown(row: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """What to write where a row's columns fit no format, by its own columns.

    Args:
        given: What the recipe says of columns already.
    """
    columns = f"the columns {listed(row)}"
    if "chosen" in row and "chosen" not in given.values():
        asked = next((name for name in ("prompt", "question", "instruction", "input") if name in row), None)
        how = "a prompt and a completion of each"
        if isinstance(row["chosen"], list):
            how = setting({"messages": "chosen"})
        elif asked:
            how = setting({"instruction": asked, "output": "chosen"})
        return (
            f"{columns} hold answers that are preferred to others, for preference training; to learn the chosen ones "
            f"alone, write {how}"
        )
    ways = [{**each, **given} for each in readings(row)]
    if len(ways) > 1:
        return f"{columns} can be read in {len(ways)} ways; write {' or '.join(map(setting, ways[:3]))}"
    if not (example := guess(row)):
        return f"no question and answer stand apart in {columns}; write each into a column, or rows as messages"
    return f"{columns} fit no format; say which is which, for example {setting({**example, **given})}"


def guess(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row's columns may be, as an example for their author; nothing where there is no question and answer."""
    if len(ways := readings(row)) == 1:
        return ways[0]
    turns = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    texts = [name for name, value in row.items() if isinstance(value, str) and value.strip()]
    question = max(texts, key=lambda name: len(row[name]), default="")
    plain = [name for name, value in row.items() if isinstance(value, (str, int, float)) and name != question]
    if turns:
        return {"messages" if "role" in row[turns[0]][0] else "conversations": turns[0]}
    return {"instruction": question, "output": plain[-1]} if question and plain else {}
