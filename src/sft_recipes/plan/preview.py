"""The rows as the trainer gets them: which tokens are trained on, which are masked, which `max_length` cuts off.

The rows go through `train.build`, the same as in training, with a tiny model in place of the real one. That happens in
a process of its own, `python -m sft_recipes.plan.preview DIRECTORY`; what is shown of it needs no torch.
"""

import functools
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sft_recipes import children
from sft_recipes.data import refusals, tokens
from sft_recipes.demo import bases, tiny
from sft_recipes.environment import quiet
from sft_recipes.errors import InputError, refuse
from sft_recipes.plan import job as jobs
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes.recipe import Overrides
from sft_recipes.report import page
from sft_recipes.terminal import count, visible

Facts = dict[str, Any]

# What a token can be: its loss is computed; it is read only; it is cut off and never seen.
TRAINED, MASKED, LOST = "trained", "masked", "lost"
# Green, dim, red and struck through.
_COLOURS = {TRAINED: "\x1b[32m", MASKED: "\x1b[2m", LOST: "\x1b[31;9m"}
_MARKS = {TRAINED: ("[[", "]]"), MASKED: ("", ""), LOST: ("{{", "}}")}
_LEGEND = {TRAINED: "trained on", MASKED: "read, not trained on", LOST: "cut off by max_length, never seen"}
_IDLE = {
    "attn_implementation": None,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "model_init_kwargs": None,
    "report_to": "none",
}


def preview(name: str | Path, *, overrides: Overrides = (), rows: int = 5, seed: int | None = None) -> Facts:
    """The first training rows of a recipe as the trainer gets them, or random ones with a seed.

    Returns:
        `recipe`, `model`, `max_length`, `packing`, `of` (training rows in all), `tokens_lost` of the rows shown, and
        `rows`: for each its number `row` among the training rows (counted from 1; the number of a packed sequence if
        the recipe packs), `tokens`, `supervised`, the `tokens_lost` and `supervised_lost` that max_length cuts off,
        whether the whole row is `lost`, `ids`, `labels` (-100 where no loss is computed), and its text as `segments`
        of (state, text).

    Raises:
        InputError: The recipe or its data are wrong, or the model's tokenizer is not on this machine.
    """
    job = jobs.check(name, accel="cpu", overrides=overrides)
    bases.build_if_needed(job.recipe)
    model, revision = job.recipe["model_name_or_path"], job.recipe["model_revision"]
    base = tiny.find(model, revision)
    if base.tokenizer is None:
        raise InputError(
            f"the tokenizer of {model} (revision {revision}) is not on this machine, and nothing is downloaded "
            f"unasked; fetch it with: {tiny.fetch(model, revision)}"
        )
    total = job.prepared.splits["train"]["prepared_rows"]
    numbers = chosen(total, rows, seed)
    check(job, base, numbers)
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), job, base, numbers)
        children.call(
            "sft_recipes.plan.preview",
            None,
            scratch,
            failure="the rows cannot be brought into the trainer's form",
            HF_HUB_OFFLINE="1",
            HF_DATASETS_CACHE=f"{scratch}/cache",
        )
        answer = json.loads(Path(scratch, "answer.json").read_text(encoding="utf-8"))
    if "problems" in answer:
        raise InputError(*(problem.replace(str(base.directory), model) for problem in answer["problems"]))
    return {
        "recipe": str(name),
        "model": model,
        "max_length": job.resolved["max_length"],
        "packing": job.resolved["packing"],
        "of": total,
        **answer,
    }


def check(job: jobs.Job, base: tiny.Base, numbers: list[int]) -> None:
    """What a training would refuse of the tokenizer and these rows, by the functions that a plan asks.

    Raises:
        InputError: There is something.
    """
    if (tokenizer := tokens.find_tokenizer(job.recipe)) is None:
        return
    loaded, measure, _ = tokens.ways(job.prepared, tokenizer)
    rows = {key: getattr(job.prepared, key) for key in ("kind", "conversational", "holds", "variables")}
    config, known = base.config.get("text_config", base.config), refusals.facts(loaded)
    largest, source = 0, job.prepared.splits["train"]["source"]
    for number, row in _rows(job, numbers):
        (size,) = tokens.sizes(measure, [row], number - 1, source, first=number == numbers[0])
        largest = max(largest, size.largest)
    refuse(refusals.of_recipe(job.recipe, known, rows, config, largest))


def _rows(job: jobs.Job, numbers: list[int]) -> Iterator[tuple[int, Facts]]:
    """The training rows of these numbers, each with its own."""
    wanted = set(numbers)
    with (job.prepared.directory / "train.jsonl").open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(itertools.islice(lines, max(wanted)), 1):
            if number in wanted:
                yield number, json.loads(line)


def chosen(total: int, rows: int, seed: int | None) -> list[int]:
    """The numbers of the rows to show, counted from 1: the first, or random ones with a seed."""
    wanted = min(rows, total)
    if seed is None:
        return list(range(1, wanted + 1))
    return sorted(random.Random(seed).sample(range(1, total + 1), wanted))  # noqa: S311, a choice of rows, no secret


def write(directory: Path, job: jobs.Job, base: tiny.Base, numbers: list[int]) -> None:
    """What `main` reads: the recipe with a tiny model, that model, and the rows of these numbers.

    Each row has its number in a column `row`, which TRL carries through to the rows it trains on.
    """
    resolved = job.resolved.derive(
        model_name_or_path=(str(base.directory), "a tiny model"),
        dataset_name=(str(directory / "rows"), "the rows to show"),
        output_dir=(str(directory / "output"), "nothing is kept"),
        # Nothing is computed, and none of these has a say in the rows; some of them need a GPU.
        **{key: (value, "nothing is computed") for key, value in _IDLE.items()},
    )
    (directory / "recipe.yaml").write_text(recipes.dump(resolved.upstream()), encoding="utf-8")
    model = {
        "directory": str(base.directory),
        "config": base.config,
        "tokenizer": str(base.tokenizer),
        **{key: getattr(job.prepared, key) for key in ("conversational", "holds", "variables")},
        "mask_empty_reasoning": job.recipe["mask_empty_reasoning"],
    }
    (directory / "model.json").write_text(json.dumps(model), encoding="utf-8")
    rows = [json.dumps({**row, "row": number}, ensure_ascii=False) + "\n" for number, row in _rows(job, numbers)]
    (directory / "rows").mkdir()
    # Held out too, so that the recipe's evaluation keys stay as they are.
    for split in ("train", "validation"):
        (directory / "rows" / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8", newline="\n")


def look(recipe: Facts, *, mask_empty_reasoning: bool = False) -> Facts:
    """Build the trainer of a resolved recipe and read its rows off, with what is not in them any more."""
    from sft_recipes.train import train

    build = functools.partial(train.build, mask_empty_reasoning=mask_empty_reasoning)
    trainer = build(recipe)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    # The same rows once more, uncut, to see what was cut off and which rows are gone.
    whole = {row["row"]: row for row in build({**recipe, "max_length": None, "packing": False}).train_dataset}
    if trainer.args.packing:
        packed = [seen(tokenizer, trainer, number, row) for number, row in enumerate(trainer.train_dataset, 1)]
        lost = sum(len(row["input_ids"]) for row in whole.values()) - sum(row["tokens"] for row in packed)
        return {"tokens_lost": lost, "rows": packed}
    kept = {row["row"]: row for row in trainer.train_dataset}
    rows = [seen(tokenizer, trainer, number, kept.get(number), whole[number]) for number in sorted(whole)]
    return {"tokens_lost": sum(row["tokens_lost"] for row in rows), "rows": rows}


def seen(tokenizer: Any, trainer: Any, number: int, row: Facts | None, whole: Facts | None = None) -> Facts:
    """One row, its labels as the collator hands them to the model.

    `row` is None if the trainer has dropped it, and `whole`, as it was before it was cut, if it cannot have been cut.
    """
    ids: list[int] = []
    labels: list[int] = []
    if row is not None:
        batch = trainer.data_collator(
            [{key: row[key] for key in ("input_ids", "labels", "seq_lengths") if key in row}]
        )
        length = len(row["input_ids"])
        ids, labels = (batch[key][0][:length].tolist() for key in ("input_ids", "labels"))
    states = [MASKED if label == -100 else TRAINED for label in labels]
    everything, lost_labels = ids, []
    if whole is not None:
        everything, missing = whole["input_ids"], len(whole["input_ids"]) - len(ids)
        from_start = trainer.args.truncation_mode == "keep_end"
        states = [LOST] * missing + states if from_start else states + [LOST] * missing
        lost_labels = whole["labels"][:missing] if from_start else whole["labels"][len(ids) :]
    return {
        "row": number,
        "tokens": len(ids),
        "supervised": states.count(TRAINED),
        "tokens_lost": states.count(LOST),
        "supervised_lost": sum(label != -100 for label in lost_labels),
        "lost": row is None,
        "ids": ids,
        "labels": labels,
        "segments": list(_segments(tokenizer, everything, states)),
    }


def _segments(tokenizer: Any, ids: list[int], states: list[str]) -> Iterator[tuple[str, str]]:
    """The text of each stretch of tokens in one state, special tokens included."""
    before, start = "", 0
    for state, stretch in itertools.groupby(states):
        end = start + len(list(stretch))
        # Decoded from the row's start, because a tokenizer may drop the space before the first token it is given. A
        # character whose bytes lie on both sides of the border is shown as broken, as it is.
        until = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if until.startswith(before):
            yield state, until[len(before) :]
        else:
            yield (
                state,
                tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False),
            )
        before, start = until, end


def as_text(facts: Facts, *, colour: bool) -> str:
    """The rows for a terminal, in colours, or with marks where there are none."""

    def painted(state: str, text: str) -> str:
        if not colour:
            opening, closing = _MARKS[state]
            shown, last = visible(text), "\n" if text.endswith("\n") else ""
            return f"{opening}{shown.removesuffix(last)}{closing}{last}"
        # Line by line, because pagers forget a colour at the end of a line.
        return "\n".join(f"{_COLOURS[state]}{line}\x1b[0m" if line else "" for line in visible(text).split("\n"))

    legend = "  ".join(painted(state, meaning) for state, meaning in _LEGEND.items())
    parts = [f"{heading(facts)}\n{legend}"]
    for row in facts["rows"]:
        text = "".join(painted(state, text) for state, text in row["segments"])
        parts.append(f"{describe(row, facts)}\n{text}".removesuffix("\n"))
    return "\n\n".join(parts) + "\n"


def heading(facts: Facts) -> str:
    """What is shown, in one line."""
    limit = f"max_length {facts['max_length']}" if facts["max_length"] is not None else "no max_length"
    shown = count(len(facts["rows"]), "packed sequence" if facts["packing"] else "row")
    text = f"{facts['recipe']}: {shown} as the trainer gets them, of {count(facts['of'], 'training row')}; "
    text += f"{visible(facts['model'])}, {limit}"
    if facts["packing"]:
        text += f"; packed from the rows shown alone, {count(facts['tokens_lost'], 'token')} of them cut off"
    return text


def describe(row: Facts, facts: Facts) -> str:
    """A row's counts, in one line."""
    title = f"{'sequence' if facts['packing'] else 'row'} {row['row']}"
    if row["lost"]:
        return (
            f"{title}: lost; none of its {count(row['supervised_lost'], 'supervised token')} is within max_length "
            f"{facts['max_length']} ({count(row['tokens_lost'], 'token')}), so TRL drops it"
        )
    text = f"{title}: {count(row['tokens'], 'token')}, {row['supervised']:,} supervised"
    if row["tokens_lost"]:
        text += f"; {row['tokens_lost']:,} more cut off, {row['supervised_lost']:,} of them supervised"
    return text


def as_html(facts: Facts) -> str:
    """The rows as one page that asks the network for nothing and runs nothing."""
    rows = [{"title": describe(row, facts), "segments": row["segments"]} for row in facts["rows"]]
    return page.html("preview.html", title=heading(facts), legend=_LEGEND, rows=rows)


def main(directory: Path) -> None:
    """The process with torch in it: `recipe.yaml`, `model.json` and `rows/` to `answer.json`."""
    quiet()
    from sft_recipes.train import verify

    recipe = yaml.safe_load((directory / "recipe.yaml").read_text(encoding="utf-8"))
    model = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    if not Path(model["directory"]).is_dir():
        tiny.build(Path(model["directory"]), model["config"], Path(model["tokenizer"]))
    try:
        verify.model_files(recipe, model)
        answer = look(recipe, mask_empty_reasoning=model["mask_empty_reasoning"])
    except InputError as error:
        answer = {"problems": error.problems}
    (directory / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
