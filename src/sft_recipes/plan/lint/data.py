"""What the rows themselves would do to a run: rules over the survey (`survey.survey`).

Rows are named by their number within the split, which is the line of a JSONL source without blank lines, unless
`validation_split_size` drew the split from a larger file. What is found in several splits is one finding.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from sft_recipes.data import survey
from sft_recipes.data.columns import setting
from sft_recipes.data.survey import ClassFacts, RowsFound, SplitFacts
from sft_recipes.plan.lint import SEVERITIES, Case, Found
from sft_recipes.recipes import task
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.terminal import count, share

# Evaluation rows seen in training from which a result says nothing about unseen rows.
VOID = 0.2
# Shares of rows below which a repetition or a cut is told, and not warned of.
FEW = 0.01
# A form gives a class away that so much of the class has, and at most so much of any other.
OWN, OTHERS = 0.5, 0.01
# Differences of accuracy that a set should be able to show: what a hyperparameter is usually worth, and what a
# fine-tune should be.
TELLING, COARSE = 0.05, 0.10
# What is assumed of two models that are compared: how often just one of them is right, and the F1 they have.
DISCORDANT, TYPICAL_F1 = 0.2, 0.65
# Standard normal quantiles: two-sided 5 %, and a power of 80 %.
Z_ALPHA, Z_POWER = 1.959964, 0.841621
# Rows of a class below which nothing is said about its form.
FORM_ROWS = 10
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def _splits(case: Case) -> Iterator[tuple[str, SplitFacts]]:
    yield from (case.data["splits"] if case.data else {}).items()


def _found(split: str, facts: SplitFacts, rows: RowsFound) -> str:
    """`3 of 64 train rows (rows 3, 7 and 12 of data/train.jsonl)`; of pairs of rows, the first."""
    shown = [str(row[0] if isinstance(row, list) else row) for row in rows["examples"]]
    if more := rows["count"] - len(shown):
        shown.append(f"{more:,} more")
    listed = ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]
    numbers = f"row{'s' if rows['count'] > 1 else ''} {listed}"
    return f"{rows['count']:,} of {facts['rows']:,} {split} rows ({numbers} of {facts['source']})"


def _together(told: list[tuple[str, str]], **more: object) -> Found:
    """One finding of what was found in each split, as (text, severity): as grave as the gravest."""
    if told:
        severity = min((severity for _, severity in told), key=SEVERITIES.index)
        yield {"found": "; ".join(text for text, _ in told), "severity": severity, **more}


Told = Iterator[tuple[str, str]]


def over_splits(look: Callable[[Case, str, SplitFacts], Told]) -> Callable[[Case], Found]:
    """A rule that looks at one split at a time."""

    @functools.wraps(look)
    def rule(case: Case) -> Found:
        yield from _together([told for split, facts in _splits(case) for told in look(case, split, facts)])

    return rule


def _warning_unless_few(rows: int, facts: SplitFacts) -> str:
    return "info" if rows < FEW * facts["rows"] else "warning"


def rows_with(problems: Mapping[str, str], case: Case) -> Found:
    """Rows that have a problem that the survey counts, and what that means of them."""
    found = [
        f"{_found(split, facts, facts['problems'][problem])} {words}"
        for split, facts in _splits(case)
        for problem, words in problems.items()
        if facts["problems"][problem]["count"]
    ]
    if found:
        yield {"found": "; ".join(found)}


# Duplicates and leaks between splits


def _overlaps(split: str, facts: SplitFacts) -> Iterator[tuple[str, RowsFound, RowsFound]]:
    """The splits before this one, with the rows that are in both: exactly, and normalised."""
    for other in {"validation": ("train",), "test": ("train", "validation")}.get(split, ()):
        if other in facts["overlap"]:
            yield other, facts["overlap"][other]["exact"], facts["overlap"][other]["normalised"]


@over_splits
def split_overlap(case: Case, split: str, facts: SplitFacts) -> Told:
    for other, exact, _ in _overlaps(split, facts):
        if exact["count"]:
            row, twin = exact["examples"][0]
            void = exact["count"] >= VOID * facts["rows"]
            also = f"have an input that is also in {other}, e.g. row {row} is {other} row {twin}"
            severity = "info" if other != "train" else "blocking" if void else "warning"
            yield f"{_found(split, facts, exact)} {also}", severity


@over_splits
def split_overlap_normalised(case: Case, split: str, facts: SplitFacts) -> Told:
    for other, exact, alike in _overlaps(split, facts):
        if other == "train" and (more := alike["count"] - exact["count"]):
            same = [row for row, _ in exact["examples"]]
            pairs = [pair for pair in alike["examples"] if pair[0] not in same]
            example = f", e.g. row {pairs[0][0]} is train row {pairs[0][1]}" if pairs else ""
            rows = f"{more:,} more of {facts['rows']:,} {split} rows ({facts['source']})"
            yield f"{rows} differ from a train row in case, punctuation or spacing alone{example}", "warning"


@over_splits
def duplicate_rows(case: Case, split: str, facts: SplitFacts) -> Told:
    repeated = facts.get("repeated", 0)
    same, alike = (
        found | {"count": found["count"] - repeated} for found in (facts["duplicates"], facts["normalised_duplicates"])
    )
    if alike["count"] > 0:
        row, first = alike["examples"][0]
        exactly = f"{same['count']:,} of them exactly, e.g. row {row} is row {first}"
        severity = _warning_unless_few(alike["count"], facts)
        yield f"{_found(split, facts, alike)} repeat an earlier row, {exactly}", severity


@over_splits
def contradictory_answers(case: Case, split: str, facts: SplitFacts) -> Told:
    found = facts["contradictions"]
    if found["count"]:
        row, first = found["examples"][0]
        classes = case.data is not None and case.data["class_field"] == ""
        meaning = "at most one label is right" if classes else "no model can give both answers"
        otherwise = f"answer an input otherwise than an earlier row, e.g. row {row} and row {first}: {meaning}"
        yield f"{_found(split, facts, found)} {otherwise}", "warning" if classes else "info"


# Answers and classes


@over_splits
def answers_not_json(case: Case, split: str, facts: SplitFacts) -> Told:
    asked, looks = facts["json"]["asked"], facts["json"]["looks"]
    if asked >= 0.5 * facts["rows"] and looks >= 0.1 * asked:
        found, why = facts["problems"]["asked_unparsed"], f"{asked:,} prompts ask for JSON"
    elif looks >= 0.5 * facts["rows"]:
        found, why = facts["problems"]["json_unparsed"], f"{looks:,} answers begin as JSON does"
    else:
        return
    if found["count"]:
        yield f"{why}, but {_found(split, facts, found)} have an answer that no JSON parser reads", "warning"


@over_splits
def unrendered_placeholders(case: Case, split: str, facts: SplitFacts) -> Told:
    for problem, place in (("unrendered", "answer"), ("unrendered_prompts", "prompt")):
        found = facts["problems"][problem]
        if found["count"]:
            text = f"{_found(split, facts, found)} have a placeholder or doubled braces in the {place}"
            yield text, _warning_unless_few(found["count"], facts)


def _classes(case: Case) -> dict[str, ClassFacts]:
    """The classes of JSON answers in training that have rows enough to speak of their form."""
    if case.data is None or not case.data["class_field"]:
        return {}
    classes = case.data["splits"]["train"]["classes"]
    return {name: facts for name, facts in classes.items() if facts["rows"] >= FORM_ROWS}


def answer_leaks_class(case: Case) -> Found:
    classes, told = _classes(case), []
    for name, facts in classes.items():
        others = [other for label, other in classes.items() if label != name]
        for marks, words, severity in (("starts", "begin with", "warning"), ("fields", "have the field", "info")):
            for mark, rows in facts[marks].items():  # type: ignore[literal-required]
                rare = all(other[marks].get(mark, 0) <= OTHERS * other["rows"] for other in others)  # type: ignore[literal-required]
                if others and rare and rows >= OWN * facts["rows"]:
                    number = f"{rows:,} of {facts['rows']:,} of class {name!r}"
                    told.append((f"{number} {words} {mark!r} (first row {facts['first_row']})", severity))
    if case.data is not None:
        yield from _together(told, source=case.data["splits"]["train"]["source"])


def constant_answer(case: Case) -> Found:
    if case.data is None:
        return
    train = case.data["splits"]["train"]
    for name, facts in _classes(case).items():
        if facts["constant"] is not None and len(facts["fields"]) > 1:
            yield {
                "found": f"all {facts['rows']:,} train answers of class {name!r} are the same text, "
                f"{facts['constant']!r} (first row {facts['first_row']} of {train['source']}): its "
                f"{count(len(facts['fields']) - 1, 'other field')} teach nothing, and the loss on them hides the loss "
                "on the class",
                "remedy": "write what belongs to each row, or leave out the fields that say nothing",
            }
    if not case.data["class_field"] and train["answers"]["distinct"] == 1 and train["rows"] >= FORM_ROWS:
        yield {
            "found": f"all {train['rows']:,} train rows of {train['source']} have one answer, "
            f"{train['answers']['first']!r}: there is nothing to tell apart",
            "remedy": "add rows with other answers",
        }


@over_splits
def class_imbalance(case: Case, split: str, facts: SplitFacts) -> Told:
    ordered = list(facts["classes"].items())
    if len(ordered) < 2:
        return
    (most, first), (least, last) = ordered[0], ordered[-1]
    part = first["rows"] / facts["rows"]
    if part >= 0.8 or first["rows"] >= 10 * last["rows"]:
        yield (
            f"{split} ({facts['source']}) has {first['rows']:,} rows of class {most!r} ({share(part, 1)}) and "
            f"{last['rows']:,} of {least!r} (e.g. row {last['first_row']}): always answering {most!r} is right in "
            f"{share(part, 1)}",
            "warning" if part >= 0.8 else "info",
        )


@over_splits
def classes_spelled_alike(case: Case, split: str, facts: SplitFacts) -> Told:
    if case.recipe["labels"]:
        return
    for classes in task.alike({name: held["rows"] for name, held in facts["classes"].items()}):
        yield f"{split} ({facts['source']}) has the classes {classes}", "warning"


@over_splits
def classes_are_numbers(case: Case, split: str, facts: SplitFacts) -> Told:
    classes = [*facts["classes"]] if split == "train" and case.recipe["task"] == "classification" else []
    if classes and all(map(_NUMBER.fullmatch, classes)):
        yield f"the {len(classes)} classes of {facts['source']} are numbers ({', '.join(classes[:5])})", "warning"


@over_splits
def class_not_in_training(case: Case, split: str, facts: SplitFacts) -> Told:
    trained = case.data["splits"]["train"]["classes"] if case.data else {}
    unknown = [name for name in facts["classes"] if trained and name not in trained]
    if unknown:
        where = ", ".join(f"{name!r} (row {facts['classes'][name]['first_row']})" for name in unknown[:5])
        classes = count(len(unknown), "class")
        yield f"{split} ({facts['source']}) has {classes} that no train row has, {where}", "warning"


def small_evaluation_set(case: Case) -> Found:
    told = []
    for split, facts in _splits(case):
        smallest = detectable_accuracy(facts["rows"])
        if split != "train" and smallest > TELLING:
            text = f"{100 * smallest:.1f} points of accuracy"
            if facts["classes"]:
                rarest = min(held["rows"] for held in facts["classes"].values()) / facts["rows"]
                text += f" and {100 * detectable_f1(facts['rows'], rarest):.1f} of the rarest class's F1"
            text += f" on {count(facts['rows'], f'{split} row')} ({facts['source']})"
            told.append((text, "warning" if smallest > COARSE else "info"))
    if told:
        yield from _together(told, discordant=share(DISCORDANT, 1), needed=telling_rows())


@functools.cache
def telling_rows() -> int:
    """How many held-out rows show a difference of `TELLING`."""
    return next(rows for rows in range(10, 10**6, 5) if detectable_accuracy(rows) <= TELLING)


def detectable_accuracy(rows: int) -> float:
    """The smallest difference of accuracy that two models on the same rows show with power 80 % at two-sided 5 %.

    McNemar's test in its normal approximation: n = (z_a sqrt(d) + z_b sqrt(d - D^2))^2 / D^2 for a difference D and a
    share d of rows on which just one model is right (Connor, Biometrics 43, 1987, p. 207). d is at least D.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        share_of_rows = max(DISCORDANT, middle)
        spread = Z_ALPHA * math.sqrt(share_of_rows) + Z_POWER * math.sqrt(share_of_rows - middle**2)
        low, high = (middle, high) if spread**2 / middle**2 > rows else (low, middle)
    return high


def detectable_f1(rows: int, positive: float) -> float:
    """The smallest difference of one class's F1 that two models on the same rows show, as above; 1 at most.

    By the delta method on F1 = 2TP / (2TP + FP + FN) at precision = recall = F1: with the class's share p, a row on
    which just one model is right moves the difference by (1 - F1/2) / p if it is of the class and by F1 / 2p if not.
    """
    half = TYPICAL_F1 / 2
    variance = DISCORDANT * (positive * (1 - half) ** 2 + (1 - positive) * half**2) / positive**2
    return min(1.0, (Z_ALPHA + Z_POWER) * math.sqrt(variance / rows))


# Tokens


def _over_cut_splits(look: Callable[[str, SplitFacts, dict[str, int]], Told]) -> Callable[[Case], Found]:
    """A rule that looks at what max_length leaves of each split that is trained or validated on.

    It finds one thing of all, with the length that keeps every row whole: a multiple of 64. Packing cuts no row there,
    and keep_end keeps the answers.
    """

    @functools.wraps(look)
    def rule(case: Case) -> Found:
        recipe = case.recipe
        if recipe["packing"] or recipe["truncation_mode"] != "keep_start" or not recipe.loss_on_answers:
            return
        cut = [(split, facts) for split, facts in _splits(case) if split != "test"]
        told = [
            (found, facts)
            for split, facts in cut
            for found in look(split, facts, survey.at_length(facts, recipe["max_length"]))
        ]
        if not told or not case.data:
            return
        longest = max(-(-max(map(int, facts["lengths"])) // 64) * 64 for _, facts in told)
        remedy = f"set max_length to {longest:,}, which keeps every row whole"
        most = case.model.positions[0] if case.model else None
        if most and longest > most:
            longer = f"set max_length to {most:,} and " if (recipe["max_length"] or most) < most else ""
            remedy = f"{longer}shorten the rows to the {most:,} tokens that the model was made for"
        estimated = "" if case.data["tokens_are"] == "exact" else " (estimated, without the tokenizer)"
        yield from _together([found for found, _ in told], remedy=remedy, estimated=estimated)

    return rule


@_over_cut_splits
def every_answer_lost(split: str, facts: SplitFacts, left: dict[str, int]) -> Told:
    if not left["rows"]:
        rows = f"all {facts['rows']:,} {split} rows of {facts['source']} lose their whole answer"
        first = min(map(int, facts["answer_starts"]))
        yield f"{rows}, the first of which begins at token {first:,}", "blocking"


@_over_cut_splits
def answers_lost(split: str, facts: SplitFacts, left: dict[str, int]) -> Told:
    if left["rows"] and left["rows_lost"]:
        rows = f"{left['rows_lost']:,} of {facts['rows']:,} {split} rows of {facts['source']}"
        yield f"{rows} lose their whole answer and are left out", "warning"


@_over_cut_splits
def answers_cut(split: str, facts: SplitFacts, left: dict[str, int]) -> Told:
    if left["rows_cut"]:
        none_stops = split == "train" and not left["rows_ending_with_eos"]
        effect = "no row is left that teaches when to stop" if none_stops else "they teach not to stop"
        rows = f"{left['rows_cut']:,} of {facts['rows']:,} {split} rows of {facts['source']}"
        severity = "blocking" if none_stops else _warning_unless_few(left["rows_cut"], facts)
        yield f"{rows} lose the end of their answer, so {effect}", severity


@over_splits
def empty_reasoning(case: Case, split: str, facts: SplitFacts) -> Told:
    found = facts["problems"]["empty_reasoning"]
    if found["count"] and case.recipe.loss_on_answers:
        part = share(found["count"], facts["rows"])
        yield f"{_found(split, facts, found)}, {part}, have an answer with an empty block of reasoning", "warning"


@over_splits
def answer_rewritten(case: Case, split: str, facts: SplitFacts) -> Told:
    for problem, how, severity in (("rewritten", "", "warning"), ("respaced", ", in white space alone", "info")):
        found = facts["problems"][problem]
        if found["count"]:
            part = share(found["count"], facts["rows"])
            yield f"{_found(split, facts, found)}, {part}, are trained on another answer than theirs{how}", severity


def no_stop_token(case: Case) -> Found:
    train = case.data["splits"]["train"] if case.data else None
    if case.data and train and train["end_of_turn_supervised"] == 0:
        stop = case.data["tokenizer"]["eos_token"] if case.data["tokenizer"] else ""
        yield {"rows": train["rows"], "source": train["source"], "stop": stop}


def some_without_stop_token(case: Case) -> Found:
    train = case.data["splits"]["train"] if case.data else None
    if train and train["end_of_turn_supervised"] and train["problems"]["unstopped"]["count"]:
        yield {"found": _found("train", train, train["problems"]["unstopped"])}


def plain_text_prompts(case: Case) -> Found:
    data = case.data
    if data and not data["conversational"] and data["tokenizer"] and data["tokenizer"]["template"]:
        train = data["splits"]["train"]
        fields = {"instruction": data["columns"]["prompt"], "output": data["columns"]["completion"]}
        explicit = " and data_format=alpaca" if case.recipe["data_format"] != "auto" else ""
        remedy = f"{setting(fields)}{explicit}"
        if train.get("sources"):
            remedy = f"data_format: alpaca and data_columns: {as_yaml(fields)} of each source, by its own columns"
        yield {"source": train["source"], "model": case.recipe["model_name_or_path"], "remedy": remedy}


def pad_is_eos(case: Case) -> Found:
    tokenizer = case.data and case.data["tokenizer"]
    if tokenizer and tokenizer["pad_token"] in (tokenizer["eos_token"], None):
        yield {"stop": tokenizer["eos_token"]}


def prompt_not_a_prefix(case: Case) -> Found:
    plain = case.data is not None and not case.data["conversational"]
    words = "have a prompt that is tokenised otherwise alone than before its answer"
    for found in rows_with({"diverging_prompts": words}, case):
        yield found | {"plain": " (a prompt that ends in a space merges with the answer)" if plain else ""}
