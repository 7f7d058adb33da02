"""What the rows themselves would do to a run: rules over the survey (`survey.survey`).

Rows are named by their number within the split, which is the line of a JSONL source without blank lines, unless
`validation_split_size` drew the split from a larger file.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sft_recipes.data import survey
from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.terminal import count, share

ORIGIN = "https://github.com/rramchan12/HateSpeechDetection_ver2"

# Evaluation rows seen in training from which a result says nothing about unseen rows.
VOID = 0.2
# Shares of rows below which a repetition or a cut is told, and not warned of.
FEW = 0.01
# Differences of accuracy that a set should be able to show: what a hyperparameter is usually worth, and what a
# fine-tune should be.
TELLING, COARSE = 0.05, 0.10
# What is assumed of two models that are compared: how often just one of them is right, and the F1 they have.
DISCORDANT, TYPICAL_F1 = 0.2, 0.65
# Standard normal quantiles: two-sided 5 %, and a power of 80 %.
Z_ALPHA, Z_POWER = 1.959964, 0.841621
# Rows of a class below which nothing is said about its form.
FORM_ROWS = 10


def _splits(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (case.data["splits"] if case.data else {}).items()


def _train(case: Case) -> dict[str, Any] | None:
    return case.data["splits"]["train"] if case.data else None


def _rows(numbers: list[Any], total: int) -> str:
    """`row 3`, `rows 3, 7 and 12`, `rows 3, 7, 12, 15, 16 and 40 more`; of a pair, the first."""
    shown = [str(number[0] if isinstance(number, list) else number) for number in numbers]
    more = total - len(shown)
    listed = shown + ([f"{more:,} more"] if more else [])
    text = ", ".join(listed[:-1]) + " and " + listed[-1] if len(listed) > 1 else listed[0]
    return f"row{'s' if total > 1 else ''} {text}"


def _found(split: str, facts: Mapping[str, Any], problem: Mapping[str, Any]) -> str:
    """`3 of 64 train rows (rows 3, 7 and 12 of data/train.jsonl)`."""
    rows = _rows(problem["examples"], problem["count"])
    return f"{problem['count']:,} of {facts['rows']:,} {split} rows ({rows} of {facts['source']})"


def _noted(case: Case, problem: str) -> Iterator[tuple[dict[str, Any], int, str]]:
    """Each split that has the problem: its facts, how many rows have it, and the words for them."""
    for split, facts in _splits(case):
        found = facts["problems"][problem]
        if found["count"]:
            yield facts, found["count"], _found(split, facts, found)


# Splits and repetitions


@rule(
    "split-overlap",
    "warning",
    f"72 of the 100 texts that {ORIGIN} ranked its configurations on are in its train.jsonl, labels and all",
)
def split_overlap(case: Case) -> Iterator[Said]:
    """Rows that are evaluated on are also trained on."""
    for split, facts, other, found in _overlaps(case):
        exact = found["exact"]
        if exact["count"]:
            row, twin = exact["examples"][0]
            void = other == "train" and exact["count"] >= VOID * facts["rows"]
            yield Said(
                f"{_found(split, facts, exact)} have an input that is also in {other}, e.g. row {row} is {other} row "
                f"{twin}: what is measured there is partly memory",
                f"delete them from one of the two; they belong to {split} alone",
                "blocking" if void else "info" if other != "train" else None,
            )


@rule(
    "split-overlap-normalised",
    "warning",
    "https://arxiv.org/abs/2107.06499: near-duplicates put over 4 % of the validation sets of standard corpora into "
    "their training sets",
)
def split_overlap_normalised(case: Case) -> Iterator[Said]:
    """Rows that are evaluated on are also trained on, but for case, punctuation and spacing."""
    for split, facts, other, found in _overlaps(case):
        more = found["normalised"]["count"] - found["exact"]["count"]
        if more and other == "train":
            exact = [row for row, _ in found["exact"]["examples"]]
            row, twin = next(pair for pair in [*found["normalised"]["examples"], [0, 0]] if pair[0] not in exact)
            example = f", e.g. row {row} is {other} row {twin}" if row else ""
            yield Said(
                f"{more:,} more of {facts['rows']:,} {split} rows ({facts['source']}) differ from a {other} row in "
                f"case, punctuation or spacing alone{example}: a model that remembers one knows the other",
                f"delete them from one of the two; they belong to {split} alone",
            )


def _overlaps(case: Case) -> Iterator[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    for split, facts in _splits(case):
        for other in {"validation": ("train",), "test": ("train", "validation")}.get(split, ()):
            if other in facts["overlap"]:
                yield split, facts, other, facts["overlap"][other]


@rule(
    "duplicate-rows",
    "warning",
    "https://arxiv.org/abs/2107.06499: models trained on deduplicated text emit memorised text ten times less often, "
    "and take fewer steps to the same accuracy",
)
def duplicate_rows(case: Case) -> Iterator[Said]:
    """Rows repeat earlier rows, so they weigh more than the others."""
    for split, facts in _splits(case):
        same, alike = facts["duplicates"], facts["normalised_duplicates"]
        if alike["count"]:
            row, first = alike["examples"][0]
            few = alike["count"] < FEW * facts["rows"]
            yield Said(
                f"{_found(split, facts, alike)} repeat an earlier row, {same['count']:,} of them exactly, e.g. row "
                f"{row} is row {first}: a repeated row has its weight in the {_weight(split)} twice",
                "keep one of each, or, where the weight is meant, say so in a silence",
                "info" if few else None,
            )


def _weight(split: str) -> str:
    return "loss" if split == "train" else "result"


@rule(
    "contradictory-answers",
    "info",
    "https://arxiv.org/abs/2103.14749: at least 3.3 % of the labels of ten much-used test sets are wrong",
)
def contradictory_answers(case: Case) -> Iterator[Said]:
    """The same input has different answers."""
    for split, facts in _splits(case):
        found = facts["contradictions"]
        if found["count"]:
            row, first = found["examples"][0]
            classes = case.data is not None and case.data["class_field"] == ""
            yield Said(
                f"{_found(split, facts, found)} answer an input otherwise than an earlier row, e.g. row {row} and row "
                f"{first}: " + ("at most one label is right" if classes else "no model can give both answers"),
                "decide on one answer, or put what tells the two apart into the input",
                "warning" if classes else None,
            )


# Answers


@rule(
    "empty-answers",
    "warning",
    "TRL 1.16 trains on answers that say nothing without a word (measured: rows whose assistant turns are empty)",
)
def empty_answers(case: Case) -> Iterator[Said]:
    """Answers say nothing: nan, null, n/a, {}, a dash."""
    for _, _, text in _noted(case, "empty"):
        yield Said(
            f"{text} have an answer that says nothing, such as nan or {{}}, which exports write for a missing value: "
            "the model learns to answer so",
            "write the answer, or delete the row",
        )


@rule(
    "answers-not-json",
    "warning",
    f"1,417 of 2,686 targets in {ORIGIN} are not the JSON that their prompt asks for; its evaluation could not read "
    "999 of 1,009 answers as JSON and guessed the label from words in them",
)
def answers_not_json(case: Case) -> Iterator[Said]:
    """The prompt asks for JSON, or most answers are JSON, and answers cannot be parsed as such."""
    for split, facts in _splits(case):
        asked, looks = facts["json"]["asked"], facts["json"]["looks"]
        if asked >= 0.5 * facts["rows"] and looks >= 0.1 * asked:
            found, why = facts["problems"]["asked_unparsed"], f"{asked:,} prompts ask for JSON"
        elif looks >= 0.5 * facts["rows"]:
            found, why = facts["problems"]["json_unparsed"], f"{looks:,} answers begin as JSON does"
        else:
            continue
        if found["count"]:
            yield Said(
                f"{why}, but {_found(split, facts, found)} have an answer that no JSON parser reads: the model learns "
                "a format that the program behind it cannot read",
                "write answers with a JSON library (json.dumps), and read them back once before training",
            )


@rule(
    "unrendered-placeholders",
    "warning",
    f"all 1,417 not_hate targets in {ORIGIN} begin with {{{{: an escape of a format string that was never formatted",
)
def unrendered_placeholders(case: Case) -> Iterator[Said]:
    """Text holds {name} or {{name}}, or an answer begins with {{, as a template leaves it that was never filled in."""
    for problem, place in (("unrendered", "answer"), ("unrendered_prompts", "prompt")):
        for facts, number, text in _noted(case, problem):
            yield Said(
                f"{text} have a placeholder or doubled braces in the {place}, as an unfilled template leaves them: "
                "the model learns the braces",
                "fill in the template ({{ and }} become { and } only in a string that is formatted)",
                "info" if number < FEW * facts["rows"] else None,
            )


# Classes


@rule(
    "surface-gives-class-away",
    "warning",
    f"1,417 of 1,417 not_hate targets in {ORIGIN} begin with {{{{ and none of 1,269 hate targets does; 28 of 28 in "
    "its validation rows",
)
def surface_gives_class_away(case: Case) -> Iterator[Said]:
    """All answers of a class begin with characters that no other class's answers begin with."""
    train = _train(case)
    if train is None or not case.data or not case.data["class_field"]:
        return
    classes, told = _large(train), []
    for name, facts in classes.items():
        others = [other for label, other in classes.items() if label != name]
        start = max(facts["starts"], key=facts["starts"].get)
        only = facts["starts"][start] >= 0.99 * facts["rows"]
        if others and only and all(other["starts"].get(start, 0) <= 0.01 * other["rows"] for other in others):
            number = f"{facts['starts'][start]:,} of {facts['rows']:,}"
            told.append(f"{number} of class {name!r} begin with {start!r} (first row {facts['first_row']})")
    if told:
        yield Said(
            f"train answers ({train['source']}): {'; '.join(told)}; next to none of the other classes do. The class "
            "is decided by the first token, before the model has named or explained anything",
            "write the answers of all classes in the same form",
        )


@rule(
    "constant-answer-per-class",
    "warning",
    f"1,417 not_hate targets in {ORIGIN} are one and the same text, rationale included",
)
def constant_answer_per_class(case: Case) -> Iterator[Said]:
    """All answers of a class are one text, although answers have more than the class to say."""
    train = _train(case)
    if train is None or not case.data:
        return
    if case.data["class_field"]:
        for name, facts in _large(train).items():
            if facts["constant"] is not None and len(facts["fields"]) > 1:
                yield Said(
                    f"all {facts['rows']:,} train answers of class {name!r} are the same text, {facts['constant']!r} "
                    f"(first row {facts['first_row']} of {train['source']}): its {len(facts['fields']) - 1} other "
                    "fields teach nothing, and the loss on them hides the loss on the class",
                    "write what belongs to each row, or leave out the fields that say nothing",
                )
    elif train["answers"]["distinct"] == 1 and train["rows"] >= FORM_ROWS:
        yield Said(
            f"all {train['rows']:,} train rows of {train['source']} have one answer, "
            f"{train['answers']['most_frequent'][0][0]!r}: there is nothing to tell apart",
            "add rows with other answers",
        )


@rule(
    "field-in-one-class",
    "info",
    f"protected_group is a field of the hate targets in {ORIGIN} alone, so writing it is writing the class",
)
def field_in_one_class(case: Case) -> Iterator[Said]:
    """A field of JSON answers is written for one class only."""
    train = _train(case)
    if train is None or not case.data or not case.data["class_field"]:
        return
    classes = _large(train)
    for name, facts in classes.items():
        others = [other for label, other in classes.items() if label != name]
        fields = [
            field
            for field, number in facts["fields"].items()
            if number >= 0.5 * facts["rows"] and not any(field in other["fields"] for other in others)
        ]
        if others and fields:
            yield Said(
                f"only train answers of class {name!r} have the field {', '.join(map(repr, fields))}, e.g. row "
                f"{facts['first_row']} of {train['source']}: the set of fields says the class a second time",
                "give every class the same fields, with null where there is nothing to say",
            )


def _large(split: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: facts for name, facts in split["classes"].items() if facts["rows"] >= FORM_ROWS}


@rule(
    "class-imbalance",
    "info",
    f"the F1 of 0.615 that {ORIGIN} set as its goal is below the 0.623 of always answering hate on the same rows",
)
def class_imbalance(case: Case) -> Iterator[Said]:
    """One class is most of the rows, or ten times another."""
    for split, facts in _splits(case):
        classes = facts["classes"]
        if len(classes) < 2:
            continue
        ordered = list(classes.items())
        (most, first), (least, last) = ordered[0], ordered[-1]
        part = first["rows"] / facts["rows"]
        if part >= 0.8 or first["rows"] >= 10 * last["rows"]:
            yield Said(
                f"{split} ({facts['source']}) has {first['rows']:,} rows of class {most!r} ({share(part, 1)}) and "
                f"{last['rows']:,} of {least!r} (e.g. row {last['first_row']}): always answering {most!r} is right in "
                f"{share(part, 1)}",
                "look at macro-F1 and at each class instead of accuracy, or add rows of the rare classes",
                "warning" if part >= 0.8 else None,
            )


@rule(
    "class-not-in-training",
    "warning",
    f"prompts and labels at evaluation in {ORIGIN} (hate, normal) are others than in training (hate_speech, not_hate)",
)
def class_not_in_training(case: Case) -> Iterator[Said]:
    """A class that is evaluated was never trained."""
    train = _train(case)
    for split, facts in _splits(case):
        unknown = [name for name in facts["classes"] if train and train["classes"] and name not in train["classes"]]
        if unknown:
            where = [f"{name!r} (row {facts['classes'][name]['first_row']})" for name in unknown[:5]]
            yield Said(
                f"{split} ({facts['source']}) has {count(len(unknown), 'class')} that no train row has, "
                f"{', '.join(where)}: every such row is answered wrong",
                "spell classes alike in all files, or add train rows of these",
            )


@rule(
    "small-evaluation-set",
    "info",
    f"the 100 rows that ranked the configurations of {ORIGIN} show differences of 12 points; those it reports as "
    "better and worse (+5.1 and -3.7 points of F1) are within chance (paired permutation test, p 0.20 and 0.21)",
)
def small_evaluation_set(case: Case) -> Iterator[Said]:
    """The held-out rows are too few to show a difference of five points."""
    for split, facts in _splits(case):
        smallest = detectable_accuracy(facts["rows"])
        if split == "train" or smallest <= TELLING:
            continue
        text = f"{100 * smallest:.1f} points of accuracy"
        if facts["classes"]:
            rarest = min(held["rows"] for held in facts["classes"].values()) / facts["rows"]
            text += f" and {100 * detectable_f1(facts['rows'], rarest):.1f} of the rarest class's F1"
        needed = next(rows for rows in range(10, 10**6, 5) if detectable_accuracy(rows) <= TELLING)
        yield Said(
            f"{split} has {count(facts['rows'], 'row')} ({facts['source']}): two models that disagree on "
            f"{share(DISCORDANT, 1)} of rows must differ by {text} to be told apart (5 % two-sided, power 80 %)",
            f"hold out {needed:,} rows for 5 points, or report no smaller difference as one",
            "warning" if smallest > COARSE else None,
        )


def detectable_accuracy(rows: int, discordant: float = DISCORDANT) -> float:
    """The smallest difference of accuracy that two models on the same rows show with power 80 % at two-sided 5 %.

    McNemar's test in its normal approximation: n = (z_a sqrt(d) + z_b sqrt(d - D^2))^2 / D^2 for a difference D and a
    share d of rows on which just one model is right (Connor, Biometrics 43, 1987, p. 207). d is at least D.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        share_of_rows = max(discordant, middle)
        spread = Z_ALPHA * math.sqrt(share_of_rows) + Z_POWER * math.sqrt(share_of_rows - middle**2)
        low, high = (middle, high) if spread**2 / middle**2 > rows else (low, middle)
    return high


def detectable_f1(rows: int, positive: float, discordant: float = DISCORDANT, f1: float = TYPICAL_F1) -> float:
    """The smallest difference of one class's F1 that two models on the same rows show, as above; 1 at most.

    By the delta method on F1 = 2TP / (2TP + FP + FN) at precision = recall = F1: with the class's share p, a row on
    which just one model is right moves the difference by (1 - F1/2) / p if it is of the class and by F1 / 2p if not.
    """
    variance = discordant * (positive * (1 - f1 / 2) ** 2 + (1 - positive) * (f1 / 2) ** 2) / positive**2
    return min(1.0, (Z_ALPHA + Z_POWER) * math.sqrt(variance / rows))


# Tokens


@rule(
    "every-answer-lost",
    "blocking",
    "unslothai/unsloth#2900, #1128 and trl#6668: training on rows without a supervised token shows a loss of 0",
    required=True,
)
def every_answer_lost(case: Case) -> Iterator[Said]:
    """No training row keeps a token of its answer at max_length."""
    for split, facts, left in _cut(case):
        if split != "test" and not left["rows"]:
            shortest = min(map(int, facts["answer_starts"]))
            yield Said(
                f"at max_length {case.recipe['max_length']} all {facts['rows']:,} {split} rows of {facts['source']} "
                f"lose their whole answer{_estimated(case)}; the first answer begins at token {shortest:,}",
                f"set max_length to {_longest(facts):,}, which keeps every row whole",
            )


@rule(
    "answers-lost",
    "warning",
    "TRL 1.16 keeps the start of a row and leaves out those that keep no supervised token "
    "(trl/trainer/sft_trainer.py, _prepare_dataset), without counting them",
)
def answers_lost(case: Case) -> Iterator[Said]:
    """Rows lose their whole answer at max_length, and are left out."""
    for split, facts, left in _cut(case):
        if split != "test" and left["rows"] and left["rows_lost"]:
            yield Said(
                f"at max_length {case.recipe['max_length']} {left['rows_lost']:,} of {facts['rows']:,} {split} rows "
                f"of {facts['source']} lose their whole answer and are left out{_estimated(case)}",
                f"set max_length to {_longest(facts):,}, which keeps every row whole, or shorten their prompts",
            )


@rule(
    "answers-cut",
    "warning",
    "trl#1832, PR #3449: long rows are cut in silence; TRL 1.16 keeps the start (truncation_mode keep_start), so it "
    "is the end of the answer and its stop token that go",
)
def answers_cut(case: Case) -> Iterator[Said]:
    """Answers lose their end, and the stop token, at max_length."""
    for split, facts, left in _cut(case):
        if split != "test" and left["rows_cut"]:
            none_stops = split == "train" and not left["rows_ending_with_eos"]
            few = left["rows_cut"] < FEW * facts["rows"]
            yield Said(
                f"at max_length {case.recipe['max_length']} {left['rows_cut']:,} of {facts['rows']:,} {split} rows of "
                f"{facts['source']} lose the end of their answer{_estimated(case)}: "
                + ("no row is left that teaches when to stop" if none_stops else "they teach not to stop"),
                f"set max_length to {_longest(facts):,}, which keeps every row whole",
                "blocking" if none_stops else "info" if few else None,
            )


def _cut(case: Case) -> Iterator[tuple[str, dict[str, Any], dict[str, int]]]:
    """Each split with what max_length leaves of it; packing cuts no row there, and keep_end keeps the answers."""
    recipe = case.recipe
    if recipe["packing"] or recipe["truncation_mode"] != "keep_start" or recipe["completion_only_loss"] is False:
        return
    for split, facts in _splits(case):
        yield split, facts, survey.at_length(facts, recipe["max_length"])


def _estimated(case: Case) -> str:
    return "" if case.data and case.data["tokens_are"] == "exact" else " (estimated, without the tokenizer)"


def _longest(facts: Mapping[str, Any]) -> int:
    """The longest row, rounded up to a multiple of 64."""
    return -(-max(map(int, facts["lengths"])) // 64) * 64


@rule(
    "chat-template",
    "blocking",
    "TRL 1.16 marks the assistant's turns in templates that it knows word for word (trl/chat_template_utils.py)",
    required=True,
)
def chat_template(case: Case) -> Iterator[Said]:
    """The rows are conversations, and the chat template is missing, or cannot tell the assistant's turns."""
    lacks, base = (case.data or {}).get("template_lacks"), case.recipe["model_name_or_path"]
    if lacks == "template":
        yield Said(
            f"the rows are conversations, and the tokenizer of {base} has no chat template",
            "chat_template_path: template.jinja, the template that the model was trained with",
        )
    elif lacks == "marks" and case.recipe["completion_only_loss"] is not False:
        template = case.recipe["chat_template_path"] or f"the chat template of {base}"
        yield Said(
            f"some rows have several answers, and {template} does not mark them, so the loss cannot be computed on "
            "answers only",
            "chat_template_path: a copy of it with {% generation %} around the assistant's text; or one answer a row",
        )


@rule(
    "no-stop-token",
    "blocking",
    "trl#1623, #2059: models that never stop, because no answer they were trained on ended",
    required=True,
)
def no_stop_token(case: Case) -> Iterator[Said]:
    """No answer ends with a supervised stop token."""
    train = _train(case)
    if train and train["end_of_turn_supervised"] == 0:
        stop = case.data["tokenizer"]["eos_token"] if case.data else ""
        yield Said(
            f"none of {train['rows']:,} train rows of {train['source']} ends with a stop token ({stop}) under "
            "supervision, so the model would never learn to stop",
            "set eos_token to the token that ends a turn in the chat template, or chat_template_path to a template "
            "that puts it inside the assistant's turn",
        )


@rule(
    "some-without-stop-token",
    "warning",
    "trl#1623, #2059: models that never stop, because no answer they were trained on ended",
)
def some_without_stop_token(case: Case) -> Iterator[Said]:
    """Some answers do not end with a supervised stop token."""
    train = _train(case)
    if train and train["end_of_turn_supervised"] and train["problems"]["unstopped"]["count"]:
        yield Said(
            f"{_found('train', train, train['problems']['unstopped'])} do not end with a supervised stop token: they "
            "teach not to stop",
            "look at what these rows have after their answer, and at how the chat template closes it",
        )


@rule(
    "pad-is-eos",
    "info",
    "trl#1623 and PR #3091: collators that mask padding by its token mask the stop token too; TRL 1.16's own masks by "
    "position (measured: 4 of 4 stop tokens stay supervised)",
)
def pad_is_eos(case: Case) -> Iterator[Said]:
    """The padding token is also the stop token."""
    tokenizer = case.data and case.data["tokenizer"]
    if tokenizer and tokenizer["pad_token"] in (tokenizer["eos_token"], None):
        yield Said(
            f"the tokenizer pads with its stop token {tokenizer['eos_token']}: harmless in SFTTrainer, which masks "
            "padding by position, and not in other tools that read the saved tokenizer and mask it by token",
            "leave it for training here; for those, name another pad_token in the saved tokenizer_config.json",
        )


@rule("double-bos", "warning", "huggingface/alignment-handbook#127: BOS from the text and again from the tokenizer")
def double_bos(case: Case) -> Iterator[Said]:
    """Rows begin with two BOS tokens."""
    for _, _, text in _noted(case, "double_bos"):
        yield Said(
            f"{text} begin with the BOS token twice, once from the text and once from the tokenizer or its template: "
            "no prompt at inference begins so",
            "delete the BOS token from the text of the rows",
        )


@rule(
    "special-tokens-in-text",
    "warning",
    "a control token in a row's text becomes the real one: a user's text can open an assistant turn of its own "
    "(measured with TRL 1.16, which neither escapes nor refuses it)",
)
def special_tokens_in_text(case: Case) -> Iterator[Said]:
    """Control tokens of the tokenizer stand in the text of rows."""
    for _, _, text in _noted(case, "special_tokens"):
        yield Said(
            f"{text} hold a control token of the tokenizer in their text, which is tokenised as the real one: the row "
            "has other turns than its roles say",
            "delete the tokens; where rows were rendered by a template before, write their turns as messages",
        )


@rule(
    "prompt-not-a-prefix",
    "warning",
    "trl/data_utils.py, common_prefix_length: the answer then begins where the two differ, and TRL 1.16 warns once",
)
def prompt_not_a_prefix(case: Case) -> Iterator[Said]:
    """A prompt alone is tokenised otherwise than at the head of its row."""
    for _, _, text in _noted(case, "diverging_prompts"):
        plain = " (a prompt that ends in a space merges with the answer)" if case.data and _plain(case.data) else ""
        yield Said(
            f"{text} have a prompt that is tokenised otherwise alone than before its answer{plain}: the model is "
            "trained on another context than it is asked with",
            "end the prompt at a token's end, with the space at the start of the answer; or set chat_template_path to "
            "a template that renders the prompt the same both times",
        )


def _plain(data: Mapping[str, Any]) -> bool:
    return not data["conversational"]


# Privacy


@rule("email-addresses", "info", "https://arxiv.org/abs/2012.07805: e-mail addresses extracted from a trained model")
def email_addresses(case: Case) -> Iterator[Said]:
    """Rows hold e-mail addresses."""
    for _, _, text in _noted(case, "emails"):
        yield Said(
            f"{text} hold an e-mail address: a model can recite what it was trained on",
            "replace them by invented ones, unless they are public and meant to be learnt",
        )


@rule(
    "key-like-strings", "info", "https://arxiv.org/abs/2012.07805: 128-bit identifiers extracted from a trained model"
)
def key_like_strings(case: Case) -> Iterator[Said]:
    """Rows hold what looks like an access key or a private key."""
    for _, _, text in _noted(case, "keys"):
        yield Said(
            f"{text} hold what looks like an access key or a private key: a model can recite what it was trained on",
            "delete it from the rows, and revoke it if it is real",
        )
