"""Rows are tokenised once, and what is trained on is what TRL makes of them."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader
from conftest import alpaca_rows, write_rows
from torch.utils.data import DataLoader

from sft_recipes.data import survey, tokenised, tokens, workers
from sft_recipes.errors import InputError
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.train import rows as kept_rows
from sft_recipes.train import train as worker

pytest_plugins = ["forks"]

Train = Callable[..., Any]
Rows = list[dict[str, Any]]

# An empty block of reasoning before answers that have none of their own.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{% if '<think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def plain(rows: Rows) -> Rows:
    return [{"prompt": f"{row['instruction']} {row['input']}", "completion": f" {row['output']}."} for row in rows]


def talks(rows: Rows) -> Rows:
    """Rows of two rounds, the second of which writes a control token into a text."""
    found = []
    for number, row in enumerate(rows):
        later = f"Not <|im_start|> {number}" if number % 3 else row["input"]
        said = [("user", row["input"]), ("assistant", row["output"]), ("user", later), ("assistant", f"é {number}\n")]
        found.append({"messages": [{"role": role, "content": text} for role, text in said]})
    return found


# Others are trained on by tests of surveys, previews and families, which look at the rows too.
CASES: dict[str, tuple[Callable[[Rows], Rows], dict[str, Any]]] = {
    "packed": (plain, {"packing": True, "max_length": 64}),
    "reasoning": (talks, {"mask_empty_reasoning": True, "chat_template_path": "mine.jinja", "max_length": 40}),
}


def checked(**overrides: Any) -> jobs.Job:
    Path("mine.jinja").write_text(THINKING, encoding="utf-8")
    words = [f"{key}={json.dumps(json.dumps(value))}" for key, value in overrides.items()]
    return jobs.check("tiny", overrides=words)


def made(job: jobs.Job, directory: Path | None) -> Any:
    """The trainer of a job, with its rows from files, or from TRL."""
    values = job.resolved.upstream() | {"output_dir": "out", "use_cpu": True, "bf16": False}
    return worker.build(values, mask_empty_reasoning=job.recipe["mask_empty_reasoning"], tokens=directory)


def tokens_of(job: jobs.Job) -> Path:
    found = survey.for_training(job.prepared, tokens.find_tokenizer(job.recipe))
    return Path(found["tokens"])


def trained_on(trainer: Any) -> list[Any]:
    names = ("input_ids", "labels", "seq_lengths")
    both = (trainer.train_dataset, trainer.eval_dataset)
    return [[[row[name] for name in names if name in row] for row in rows] for rows in both]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_rows_of_the_plan_are_those_that_trl_makes(project: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(tokenised, "PART", 50)
    rows, overrides = CASES[case]
    write_rows(Path("data/train.jsonl"), rows(alpaca_rows(120, seed=5)))
    write_rows(Path("data/validation.jsonl"), rows(alpaca_rows(30, seed=6)))
    job = checked(**overrides)
    ours, theirs = made(job, tokens_of(job)), made(job, None)
    # Each second of 120 rows, and all of 30.
    assert (ours.compared, theirs.compared) == (60 + 30, 0)
    found = trained_on(ours)
    assert found == trained_on(theirs)
    for batch in (each.data_collator([each.train_dataset[0]]) for each in (ours, theirs)):
        assert (batch["labels"] != -100).any()
    if not overrides.get("packing"):
        assert max(len(row[0]) for row in found[0]) == overrides["max_length"]


def test_a_row_is_tokenised_once_between_plan_and_training(
    project: Path, train_here: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import sft_trainer

    calls = {"ours": 0, "trl": 0}
    sizes, tokenize = tokens._Exact.sizes, sft_trainer._tokenize

    def counted(self: Any, batch: Rows) -> Any:
        # The first row is looked at alone before, lest its template never end.
        calls["ours"] += len(batch) if len(batch) > 1 else 0
        return sizes(self, batch)

    def by_trl(*given: Any, **named: Any) -> Any:
        calls["trl"] += 1
        return tokenize(*given, **named)

    monkeypatch.setattr(tokens._Exact, "sizes", counted)
    monkeypatch.setattr(sft_trainer, "_tokenize", by_trl)
    monkeypatch.setattr(kept_rows, "SAMPLE", 4)
    job = jobs.lint_or_raise(checked())
    assert calls == {"ours": 64 + 8, "trl": 0}
    jobs.lint_or_raise(checked())
    data = train_here(run=launch.create(job, "once"), name="once").facts()["in_effect"]["data"]
    # Prompt and whole of each row of the samples.
    assert calls == {"ours": 64 + 8, "trl": 2 * (4 + 4)}
    assert (data["rows"], data["rows_compared"]) == (64, 8)


@pytest.mark.promise("damage", "a byte of the kept tokens is changed, and a file of them is cut off")
def test_tokens_that_are_damaged_are_made_again_or_refused(project: Path) -> None:
    job = checked()
    directory = tokens_of(job)
    file = directory / "train-00000.arrow"
    whole = file.read_bytes()
    # A label that is ignored, -100.
    last = whole.rindex(b"\x9c\xff\xff\xff")
    for damaged in (whole[:-100], whole[:last] + b"\x05" + whole[last + 1 :]):
        assert damaged != whole
        file.write_bytes(damaged)
        if len(damaged) == len(whole):
            with pytest.raises(InputError, match=r"^row \d+ of the train rows: .* not those that TRL makes of it"):
                made(job, directory)
        else:
            with pytest.raises(InputError, match="are not as they were written; start again"):
                made(job, directory)
        assert tokens_of(job) == directory and file.read_bytes() == whole


def test_tokens_are_kept_with_their_rows_the_last_used_ones(project: Path) -> None:
    def of(token: str) -> Path:
        return tokens_of(checked(eos_token=token))

    first = of("<|im_end|>")
    others = [of("<|endoftext|>"), of("<|im_start|>")]
    assert of("<|im_end|>") == first and len({first, *others}) == tokenised.KEPT
    last = tokens_of(checked(chat_template_path="mine.jinja"))
    assert {*first.parent.iterdir()} == {first, others[1], last}


@pytest.mark.usefixtures("forks")
def test_processes_count_what_one_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenised, "PART", 20)
    write_rows(Path("data/train.jsonl"), talks(alpaca_rows(64, seed=5)) * 2)
    write_rows(Path("data/validation.jsonl"), talks(alpaca_rows(8, seed=6)))
    told: list[int] = []
    job = checked()
    tokenizer = tokens.find_tokenizer(job.recipe)
    alone = survey.survey(job.prepared, tokenizer, cache=Path("alone"))
    monkeypatch.setattr(workers, "WORTH_IT", 0)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    files = {path.name: path.read_bytes() for path in tokens_of(job).glob("*.arrow")}
    (tokens_of(job) / tokenised.FACTS).unlink()
    together = survey.survey(job.prepared, tokenizer, cache=Path("together"), on_progress=told.append)
    assert together == alone and together["splits"]["train"]["duplicates"]["count"] > 60
    assert {path.name: path.read_bytes() for path in tokens_of(job).glob("*.arrow")} == files and len(files) == 8
    assert told[-1] == 128 + 8 and sorted(told) == told
    Path("mine.jinja").write_text(
        "{% if '43' in messages[-1].content %}{{ raise_exception('no 43') }}{% endif %}" + THINKING, encoding="utf-8"
    )
    strict = tokens.find_tokenizer(jobs.check("tiny", overrides=["chat_template_path=mine.jinja"]).recipe)
    with pytest.raises(InputError, match=r"^data/train.jsonl row 44: the model's chat template refuses it: no 43"):
        survey.survey(job.prepared, strict, cache=Path("strict"))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_each_step_has_its_own_rows_sorted_on_all_processes(processes: int, shuffled: bool) -> None:
    """What accelerate makes of loaders, without and with our order: the same rows a step, and less padding."""
    lengths = np.array([(7 * number) % 31 + 1 for number in range(40)])
    batch, micro = 16, 4

    def epochs(by_length: bool) -> Rows:
        """The rows of each step of two epochs, in order, and the positions that they are padded to."""
        loaders = []
        for process in range(processes):
            loader = DataLoader(range(len(lengths)), batch_size=micro, shuffle=shuffled, collate_fn=list)
            how = {"num_processes": processes, "process_index": process, "use_seedable_sampler": True, "data_seed": 3}
            loaders.append(prepare_data_loader(loader, put_on_device=False, **how))
            if by_length:
                loaders[-1].set_sampler(kept_rows.ByLength(kept_rows.sampler_of(loaders[-1]), lengths, batch))
        found, at_once = [], batch // (micro * processes)
        for epoch in range(2):
            for loader in loaders:
                loader.set_epoch(epoch)
            taken = [[*loader] for loader in loaders]
            for start in range(0, len(taken[0]), at_once):
                batches = [each for own in taken for each in own[start : start + at_once]]
                padded = sum(int(lengths[each].max()) * len(each) for each in batches)
                found.append({"rows": sorted(itertools.chain(*batches)), "padded": padded})
        return found

    written, ours = epochs(by_length=False), epochs(by_length=True)
    assert [step["rows"] for step in ours] == [step["rows"] for step in written]
    assert [len(step["rows"]) for step in ours] == [16, 16, 8] * 2
    assert sum(step["padded"] for step in ours) < 0.9 * sum(step["padded"] for step in written)
    assert shuffled == (ours[:3] != ours[3:])
