"""Runs beside each other: what is refused, what is told apart and what is not, and what the tables hold."""

import csv
import io
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from finished import BARE
from sklearn.metrics import f1_score

from sft_recipes.errors import InputError
from sft_recipes.evaluate import metrics
from sft_recipes.recipes import schema
from sft_recipes.report import compare, paired, report, tables
from sft_recipes.report.results import Entry, Evaluated

LABELS = ["account", "card", "refund", "transfer"]
RECIPE = {
    "model_name_or_path": ".cache/demo/base",
    "lora_r": 16,
    "lora_alpha": 32,
    "learning_rate": 0.002,
    "max_length": 128,
    "seed": 42,
    "data_seed": 42,
    "dataset_name": ".cache/data/0cd1",
}
MEASURED = {
    "step": 150,
    "training_seconds": 30.12,
    "tokens_per_second": 5515.4,
    "peak_memory_bytes": 811646976,
    "best_checkpoint": None,
    "eval_loss": [],
}


def golds(rows: int = 400) -> list[str]:
    return random.Random(0).choices(LABELS, k=rows)  # noqa: S311, seeded rows, no secrets


def predicted(gold: Sequence[str], accuracy: float, seed: int) -> list[str]:
    """Right on about a share of the rows; the rows are as hard for all seeds."""
    rng, hard = random.Random(seed), random.Random(1)  # noqa: S311
    limits = [hard.gauss(0.5, 0.2) for _ in gold]
    chance = sorted(limits)[int(accuracy * (len(gold) - 1))]
    return [
        label if limit + rng.gauss(0, 0.05) <= chance else LABELS[LABELS.index(label) - 1]
        for label, limit in zip(gold, limits, strict=True)
    ]


def trained_on(fingerprint: str, source: str, rows: int) -> dict[str, Any]:
    """The training rows of a run, as run.json holds them."""
    train = {"source": source, "sha256": "f", "rows": rows, "prepared_rows": rows}
    return BARE["data"] | {"fingerprint": fingerprint, "splits": {"train": train}}


def make_run(
    name: str,
    tuned: Sequence[str | None],
    *,
    gold: Sequence[str] | None = None,
    base: Sequence[str | None] | None = None,
    recipe: dict[str, Any] | None = None,
    topology: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    task: str = "classification",
    numbers: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """A finished and evaluated run, its files as train and evaluate write them."""
    gold = golds(len(tuned)) if gold is None else gold
    directory = Path("runs") / name
    directory.mkdir(parents=True)
    classes = task == "classification"
    rows = [
        {
            "row": number,
            "id": f"{number:016x}",
            "prompt": f"message {number}",
            "group": None,
            "gold": label if classes else None,
            "reference": label,
            "leaked": number == 1,
            "base": {"prediction": before, "probabilities": None, "text": before, "finished": True},
            "tuned": {"prediction": after, "probabilities": None, "text": after, "finished": True},
        }
        for number, (label, before, after) in enumerate(
            zip(gold, base or ["refund"] * len(gold), tuned, strict=True), start=1
        )
    ]
    train = [(f"message {number}", label) for number, label in enumerate(LABELS * 5)]
    numbers = numbers or metrics.measure(rows, task, train, LABELS if classes else None, resamples=200)
    settings = dict.fromkeys(["labels", "label_field", "label_pattern", "json_schema", "group_column"])
    settings |= {"max_new_tokens": 32, "source": "data/demo/test.jsonl"}
    written = {
        "schema": 1,
        "run": name,
        "recipe": "demo",
        "task": task,
        "predict_by": "generation",
        "split": "test",
        "settings": settings,
        "fingerprint": "f" * 64,
        "rows": len(rows),
        "leaked": 1,
        "scored": len(rows) - 1,
        **numbers,
        "measured": {"models": {"tuned": {"seconds": 1.0, "rows": len(rows), "rows_per_second": 640.1}}},
    }
    run = {
        "schema": 1,
        "name": name,
        "recipe": "demo",
        "rehearsal": False,
        "status": "finished",
        "own": {key: entry["default"] for key, entry in schema.own().items()} | {"task": task},
        "topology": {"name": "cpu", "backend": "single", "processes": 1, "zero_stage": None, "use_cpu": True}
        | (topology or {}),
        "data": trained_on("0cd1" * 16, "data/demo/train.jsonl", 2400),
        "git": {"commit": "e57e9ee", "dirty": False},
        "versions": {"trl": "1.16.0", "torch": "2.13.0"},
        "python": "3.11.7",
        "gpus": [],
        "cpus": 2,
        "in_effect": {"adapter": {"trainable_parameters": 139264}},
        "measured": MEASURED,
        "seconds": 41.5,
        **facts,
    }
    values = RECIPE | {"output_dir": f"runs/{name}", "run_name": name} | (recipe or {})
    (directory / "run.json").write_text(json.dumps(run))
    (directory / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (directory / "metrics.json").write_text(json.dumps(written | (evaluation or {})))
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(*names: str) -> list[str]:
    with pytest.raises(InputError) as refused:
        compare.compare(names)
    return refused.value.problems


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# What is refused


def test_everything_that_forbids_a_comparison_is_said_at_once() -> None:
    gold = golds(200)
    good = predicted(gold, 0.8, 1)
    make_run("fine", good)
    make_run("rehearsed", good, rehearsal=True)
    make_run("stopped", good, status="interrupted")
    (make_run("unscored", good) / "metrics.json").unlink()
    (make_run("lost", good) / "predictions.jsonl").unlink()
    assert problems("fine", "fine", "rehearsed", "stopped", "unscored", "lost", "unknown") == [
        "fine is named twice; keep one",
        "rehearsed is a rehearsal, whose model is tiny and random: no result; leave it out",
        "runs/stopped is interrupted, not finished; finish it first: make resume NAME=stopped",
        "unscored is not evaluated on test (no metrics.json); make evaluate RUN=unscored",
        "lost is not evaluated on test (no predictions.jsonl); make evaluate RUN=lost",
        "no run 'unknown' in runs/; there are fine, lost, rehearsed, stopped, unscored",
    ]


def test_one_run_is_no_comparison() -> None:
    make_run("a", predicted(golds(), 0.8, 1))
    assert problems("a") == ["name at least two runs: RUNS='a b'; there are a"]
    assert problems() == ["name at least two runs: RUNS='a b'; there are a"]


def test_other_training_data_are_refused_with_the_runs_on_each_side() -> None:
    good = predicted(golds(), 0.8, 1)
    make_run("a", good)
    make_run("b", good)
    other = trained_on("beef" * 16, "mine.jsonl", 100)
    make_run("c", good, data=other)
    (problem,) = problems("a", "b", "c")
    assert "different training data: a, b: data/demo/train.jsonl, 2,400 rows, fingerprint 0cd10cd10cd1" in problem
    assert "; c: mine.jsonl, 100 rows, fingerprint beefbeefbeef. Instead: " in problem


def test_the_same_rows_from_another_path_and_labels_in_another_order_are_the_same() -> None:
    gold = golds()
    said = predicted(gold, 0.8, 1)
    make_run("a", said)
    copy = trained_on("0cd1" * 16, "copy.jsonl", 2400)
    make_run("b", said, data=copy, evaluation={"labels": LABELS[::-1]})
    (pair,) = compare.compare(["a", "b"])["pairs"]
    assert (pair["difference"]["value"], pair["unequal_rows"]) == (0, 0)
    assert len(compare.leaderboard()["boards"]) == 1


def test_other_rows_and_another_task_are_refused() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    make_run("fewer", predicted(gold[:300], 0.8, 1), gold=gold[:300])
    (problem,) = problems("a", "fewer")
    assert "different scored rows: a: data/demo/test.jsonl, 399 rows" in problem and "fewer: " in problem
    make_run("written", predicted(gold, 0.8, 1), task="generation")
    rows, task = problems("a", "written")
    assert "different scored rows" in rows
    assert "different task: a: classification by macro_f1 of account, card" in task
    assert "written: generation by rougeL" in task


def test_another_label_of_one_row_is_another_set_of_rows() -> None:
    gold = golds()
    said = predicted(gold, 0.8, 1)
    make_run("a", said, gold=gold)
    make_run("b", said, gold=[*gold[:-1], LABELS[LABELS.index(gold[-1]) - 1]])
    assert "different scored rows" in problems("a", "b")[0]


def test_a_changed_prediction_is_found() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    path = make_run("b", predicted(gold, 0.8, 2)) / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = next(row for row in rows[1:] if row["tuned"]["prediction"] != row["gold"])
    wrong["tuned"]["prediction"] = wrong["gold"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = problems("a", "b")
    assert "b: its predictions give macro_f1" in problem
    assert problem.endswith("one of the two was changed; make evaluate RUN=b")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-5]))
    assert "on 394 rows" in problems("a", "b")[0]


def test_lost_rows_are_found_also_where_all_are_right() -> None:
    gold = golds()
    make_run("a", gold)
    path = make_run("b", gold) / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert any(
        "give macro_f1 1.0000 on 398 rows, and its metrics say 1.0000 on 399" in each for each in problems("a", "b")
    )


def test_another_split_has_its_own_evaluation() -> None:
    for name, seed in (("a", 1), ("b", 2)):
        directory = make_run(name, predicted(golds(), 0.8, seed), evaluation={"split": "validation"})
        for file in ("metrics.json", "predictions.jsonl"):
            (directory / file).rename(directory / file.replace(".", "-validation."))
    assert "a is not evaluated on test (no metrics.json); make evaluate RUN=a" in problems("a", "b")
    assert compare.compare(["a", "b"], split="validation")["split"] == "validation"
    assert len(compare.leaderboard(split="validation")["boards"][0]["rows"]) == 4
    with pytest.raises(InputError, match=r"not evaluated on train .* make evaluate RUN=a SPLIT=train"):
        compare.compare(["a", "b"], split="train")


def test_a_broken_file_is_a_message() -> None:
    good = predicted(golds(), 0.8, 1)
    make_run("a", good)
    directory = make_run("b", good)
    for file in ("run.json", "metrics.json", "predictions.jsonl", "recipe.yaml"):
        whole = (directory / file).read_text()
        for text in ("", "{", "[1]", "null", "1", "a: [", "\x00", '{"schema": 1', "\udcff"):
            (directory / file).write_text(text, errors="surrogateescape")
            (problem,) = problems("a", "b")
            unscored = file == "predictions.jsonl" and not text
            assert problem.startswith("b: no row" if unscored else f"runs/b/{file}"), (text, problem)
            assert problem.endswith("make evaluate RUN=b") == (file in ("metrics.json", "predictions.jsonl"))
        (directory / file).write_text(whole)


def test_whatever_is_missing_in_a_file_is_a_message() -> None:
    make_run("a", predicted(golds(40), 0.8, 1))
    for file in ("run.json", "metrics.json"):
        whole = json.loads(Path(f"runs/a/{file}").read_text())
        for path in paths(whole):
            broken = json.loads(json.dumps(whole))
            inner = broken
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
            Path(f"runs/a/{file}").write_text(json.dumps(broken))
            facts = compare.leaderboard()
            tables.as_markdown(facts)
            for row in facts["left_out"]:
                broken_file = f"runs/a/{file} is not as it was written: "
                expected = (broken_file, "a: its files are not as they are written (KeyError")
                assert row["reason"].startswith(expected), (path, row)
        Path(f"runs/a/{file}").write_text(json.dumps(whole))
    assert compare.leaderboard()["left_out"] == []


def paths(values: Any, above: tuple = ()) -> list[tuple]:
    """The keys of nested mappings, not those of the details that only report.html shows."""
    if not isinstance(values, dict) or above[-1:] in [("classes",), ("confusion",), ("paired",), ("own",)]:
        return []
    return [path for key, value in values.items() for path in [(*above, key), *paths(value, (*above, key))]]


# What is told apart


def test_identical_predictions_are_not_distinguishable() -> None:
    said = predicted(golds(), 0.8, 1)
    make_run("a", said)
    make_run("b", said, recipe={"lora_r": 64})
    (pair,) = compare.compare(["a", "b"])["pairs"]
    assert (pair["outcome"], pair["p"], pair["unequal_rows"]) == ("not_distinguishable", 1.0, 0)
    assert pair["difference"] == {"value": 0.0, "low": None, "high": None}
    assert pair["mcnemar"] == {"only_a": 0, "only_b": 0, "p": 1.0, "p_holm": 1.0}
    assert pair["text"] == "a and b: not distinguishable (macro F1 +0.000, p 1.000)"


def test_a_clear_difference_is_one_whichever_is_named_first() -> None:
    gold = golds()
    make_run("good", predicted(gold, 0.9, 1))
    make_run("poor", predicted(gold, 0.6, 2))
    (pair,) = compare.compare(["good", "poor"])["pairs"]
    (turned,) = compare.compare(["poor", "good"])["pairs"]
    assert (pair["outcome"], turned["outcome"]) == ("better", "worse")
    assert pair["text"] == turned["text"]
    assert pair["text"].startswith("good better than poor (macro F1 +0.")
    assert pair["difference"]["low"] == pytest.approx(-turned["difference"]["high"])
    assert 0 < pair["difference"]["low"] < pair["difference"]["value"] < pair["difference"]["high"]
    assert pair["mcnemar"]["only_a"] == turned["mcnemar"]["only_b"] > pair["mcnemar"]["only_b"]


def test_the_test_agrees_with_counted_resamples() -> None:
    """With the paired bootstrap of metrics.json, where p is large enough to be counted."""
    gold = golds()
    one, other = predicted(gold, 0.80, 1), predicted(gold, 0.77, 2)
    make_run("a", one)
    make_run("b", other)
    (pair,) = compare.compare(["a", "b"])["pairs"]
    rows = [
        {"row": k, "id": str(k), "prompt": f"row {k}", "leaked": k == 0, "gold": label}
        | {"tuned": {"prediction": x}, "base": {"prediction": y}}
        for k, (label, x, y) in enumerate(zip(gold, one, other, strict=True))
    ]
    trained = [(f"trained {k}", label) for k, label in enumerate(LABELS)]
    counted = metrics.measure(rows, "classification", trained, LABELS)["paired"]["base"]
    for key in ("value", "low", "high"):
        assert pair["difference"][key] == pytest.approx(counted["difference"][key], abs=0.003)
    assert pair["p"] == pytest.approx(counted["p"], abs=0.01)
    assert pair["mcnemar"]["p"] == counted["mcnemar"]["p"]


def test_holm_corrects_over_all_pairs() -> None:
    """A difference that counts alone does not count as the largest of many looked at."""
    gold = golds()
    for name, accuracy, seed in [("a", 0.83, 1), ("b", 0.75, 2), ("c", 0.8, 3), ("d", 0.8, 4), ("e", 0.8, 5)]:
        make_run(name, predicted(gold, accuracy, seed))
    (alone,) = compare.compare(["a", "b"])["pairs"]
    assert (alone["outcome"], alone["p_holm"]) == ("better", alone["p"])
    pairs = compare.compare(["a", "b", "c", "d", "e"])["pairs"]
    assert (pairs[0]["a"], pairs[0]["b"]) == ("a", "b")
    assert pairs[0]["p"] == pytest.approx(alone["p"], abs=1e-9)
    assert pairs[0]["outcome"] == "not_distinguishable"
    assert "after Holm over 10 pairs" in pairs[0]["text"]
    ordered = sorted(pairs, key=lambda pair: pair["p"])
    assert ordered[0]["p_holm"] == pytest.approx(min(1, 10 * ordered[0]["p"]))
    assert ordered[1]["p_holm"] == pytest.approx(min(1, max(10 * ordered[0]["p"], 9 * ordered[1]["p"])))


def test_few_unequal_rows_tell_nothing_and_few_rows_are_not_tested() -> None:
    gold = golds()
    make_run("all", gold)
    make_run("five", [*([None] * 6), *gold[6:]])
    make_run("six", [*([None] * 7), *gold[7:]])
    five, six, _ = compare.compare(["all", "five", "six"])["pairs"]
    assert (five["unequal_rows"], five["p"]) == (5, 0.0625)
    assert (six["unequal_rows"], six["p"] < 0.05) == (6, True)
    make_run("small", gold[:100])
    make_run("smaller", predicted(gold[:100], 0.2, 1))
    facts = compare.compare(["small", "smaller"])
    (pair,) = facts["pairs"]
    assert (pair["outcome"], pair["p"], pair["p_holm"], pair["mcnemar"]) == ("none", None, None, None)
    assert "not tested, because fewer than 100 rows" in pair["text"]
    (small,) = [board for board in compare.leaderboard()["boards"] if board["data"]["scored"] == 99]
    for shown in (facts, {"boards": [small]}):
        text = "\n".join(line for _, line in tables.render(shown))
        assert "not tested" in text and not re.search(r"\bp [0-9<]", text)
        assert "86 of 100 samples instead of 95" in text
    report.comparison(facts, Path("page.html"))
    page = Path("page.html").read_text(encoding="utf-8")
    (line,) = re.findall(r"<tr><th[^>]*>\s*small against smaller\s*</th>(.*?)</tr>", page, re.DOTALL)
    cells = [" ".join(re.sub("<.*?>", "", cell).split()) for cell in line.split("</td>")]
    assert cells[1:] == ["\u2013", "\u2013", "not tested", "\u2013", "\u2013", "rows", ""]
    assert "No step was logged." in page and "small (none; make report RUN=small)" in page


def test_a_difference_without_an_error_has_a_p_value_and_json_is_json() -> None:
    """Every resample has the same difference: one is right on each row, the other gives nothing valid."""
    gold = ["account"] * 400
    make_run("right", gold, gold=gold)
    make_run("wrong", [None] * 400, gold=gold)
    facts = compare.compare(["right", "wrong"])
    (pair,) = facts["pairs"]
    assert (pair["p"], pair["outcome"], pair["unequal_rows"]) == (2 * 0.5**399, "better", 399)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert "p < 0.001" in pair["text"]


# Seeds


def test_runs_that_differ_in_their_seeds_are_one_entry() -> None:
    gold = golds()
    for seed, accuracy in [(42, 0.78), (43, 0.80), (44, 0.82)]:
        make_run(f"x-seed{seed}", predicted(gold, accuracy, seed), recipe={"seed": seed, "data_seed": seed})
    make_run("y", predicted(gold, 0.6, 9), recipe={"lora_r": 64})
    facts = compare.compare(["x-seed42", "y", "x-seed43", "x-seed44"])
    group, single = facts["entries"]
    assert (group["name"], group["seeds"], single["name"]) == ("x, seeds 42 43 44", [42, 43, 44], "y")
    values = [run["metrics"]["macro_f1"]["value"] for run in facts["runs"] if run["entry"] == group["name"]]
    macro = group["metrics"]["macro_f1"]
    assert macro["value"] == pytest.approx(sum(values) / 3)
    assert (macro["min"], macro["max"], macro["over"]) == (min(values), max(values), "seeds")
    assert macro["low"] < min(values) and macro["high"] > max(values)
    (pair,) = facts["pairs"]
    assert (pair["outcome"], pair["includes"], pair["mcnemar"]) == ("better", ["rows", "seeds"], None)
    assert any("of y one seed ran: the spread over seeds of the others" in note for note in facts["notes"])
    assert "x, seeds 42 43 44: least to most" in "".join(text for _, text in tables.render(facts))


def test_the_luck_of_a_seed_is_no_difference_of_recipes() -> None:
    """Two runs that differ beyond what rows explain do not, once their recipes' other seeds are known."""
    gold = golds()
    for recipe, accuracies in {"x": (0.85, 0.75, 0.72), "y": (0.74, 0.81, 0.69)}.items():
        for seed, accuracy in enumerate(accuracies):
            values = {"seed": seed, "data_seed": seed, "lora_r": 8 if recipe == "x" else 16}
            make_run(f"{recipe}-seed{seed}", predicted(gold, accuracy, hash_of(recipe, seed)), recipe=values)
    (lucky,) = compare.compare(["x-seed0", "y-seed0"])["pairs"]
    assert lucky["outcome"] == "better"
    names = [f"{recipe}-seed{seed}" for recipe in "xy" for seed in range(3)]
    (pair,) = compare.compare(names)["pairs"]
    assert pair["outcome"] == "not_distinguishable"
    assert pair["p"] > 0.2


def hash_of(recipe: str, seed: int) -> int:
    return 10 * seed + (recipe == "y")


def test_equal_recipes_with_seeds_that_scatter_are_rarely_called_different() -> None:
    """Of 30, 1.5 in expectation; more than 6 has a chance of 0.1 %. Over rows alone it is every second."""
    rng = np.random.default_rng(0)
    called = {1: 0, 3: 0}
    for _ in range(30):
        easy = rng.normal(1.6, 1.5, 200)
        runs = [simulated(easy + rng.normal(0, 0.3) + rng.normal(0, 0.5, 200) > 0, seed) for seed in range(6)]
        for seeds in called:
            entries = [Entry(runs[:seeds]), Entry(runs[3 : 3 + seeds])]
            (pair,) = paired.tested(entries)
            called[seeds] += pair["outcome"] != "not_distinguishable"
    assert called[1] > 8
    assert called[3] <= 6


def simulated(right: Any, seed: int) -> Evaluated:
    """A run that is right on these rows, of two classes."""
    gold = np.arange(len(right)) % 2
    evaluation = {"primary": "macro_f1", "labels": ["no", "yes"]}
    return Evaluated(f"{seed}", {}, {"seed": seed}, evaluation, "", gold, np.where(right, gold, 1 - gold), right)


def test_a_repeat_with_the_same_seed_is_no_second_seed() -> None:
    said = predicted(golds(), 0.8, 1)
    make_run("a", said)
    make_run("again", said)
    facts = compare.compare(["a", "again"])
    assert [entry["name"] for entry in facts["entries"]] == ["a", "again"]
    assert facts["differences"] == []


def test_another_topology_is_another_entry() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    make_run("b", predicted(gold, 0.8, 2), recipe={"seed": 43}, topology={"name": "ddp", "processes": 2})
    assert len(compare.compare(["a", "b"])["entries"]) == 2


# Tables


def test_differences_are_of_what_is_learned_and_where_it_ran() -> None:
    gold = golds()
    own = {key: entry["default"] for key, entry in schema.own().items()}
    make_run("a", predicted(gold, 0.8, 1), own=own)
    make_run(
        "b",
        predicted(gold, 0.8, 2),
        recipe={"lora_r": 64, "dataset_name": ".cache/data/elsewhere", "lora_dropout": 0.0, "use_cpu": False},
        own=own | {"global_batch_size": 32, "description": "another", "train_file": "copy.jsonl"},
        topology={"name": "ddp", "processes": 2},
        evaluation={"predict_by": "likelihood"},
        versions={"trl": "1.17.0", "torch": "2.13.0"},
    )
    facts = compare.compare(["a", "b"])
    assert [(each["of"], each["key"], each["values"]["a"], each["values"]["b"]) for each in facts["differences"]] == [
        ("recipe", "lora_r", "16", "64"),
        ("recipe", "lora_dropout", "0.05", "0.0"),
        ("recipe", "global_batch_size", "64", "32"),
        ("topology", "name", "cpu", "ddp"),
        ("topology", "processes", "1", "2"),
        ("evaluation", "predict_by", "generation", "likelihood"),
    ]
    assert facts["environment"] == [{"key": "trl", "values": {"a": "1.16.0", "b": "1.17.0"}}]
    assert any("some are scored by generation and some by likelihood" in note for note in facts["notes"])


def test_base_and_best_baseline_are_there_once_and_another_base_by_its_runs() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    make_run("b", predicted(gold, 0.8, 2))
    one, best = compare.compare(["a", "b"])["references"]
    assert (one["name"], one["kind"], one["runs"], best["kind"]) == ("base", "base", ["a", "b"], "baseline")
    every = json.loads(Path("runs/a/metrics.json").read_text())["baselines"]
    flat = [model for name, model in every.items() if name != "always"] + [*every["always"].values()]
    assert best["metrics"]["macro_f1"]["value"] == max(model["macro_f1"]["value"] for model in flat)
    make_run("c", predicted(gold, 0.8, 3), base=["card"] * len(gold), recipe={"model_name_or_path": "other"})
    names = [each["name"] for each in compare.compare(["a", "b", "c"])["references"]]
    assert names[:2] == ["base of a, b", "base of c"]


def test_generation_is_compared_by_its_primary_metric() -> None:
    references = [f"the answer is {number} of {number % 7}" for number in range(150)]
    make_run("exact", references, gold=references, task="generation")
    make_run("short", [text[:12] for text in references], gold=references, task="generation")
    facts = compare.compare(["exact", "short"])
    (pair,) = facts["pairs"]
    assert (facts["primary"], pair["outcome"], pair["mcnemar"]["only_a"]) == ("rougeL", "better", 149)
    assert facts["metrics"][:3] == ["rougeL", "exact_match", "chrf"]


def test_a_resumed_run_of_which_only_the_last_launch_was_measured_has_no_training_time() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    make_run("b", predicted(gold, 0.8, 2), resumed=[{"at": "", "step": 50}])
    a, b = (run["cost"] for run in compare.compare(["a", "b"])["runs"])
    assert (a["training_seconds"], b["training_seconds"]) == (30.12, None)
    assert (a["hardware"], a["trainable_parameters"]) == ("CPU, 2 cores", 139264)
    text = dict(tables.render(compare.compare(["a", "b"])))["cost"]
    assert "not known (resumed)" in text
    # Since launches are listed, the figures are those of all of them.
    make_run(
        "c", predicted(gold, 0.8, 3), resumed=[{"at": "", "step": 50}], launches=[{"from_step": 0}, {"from_step": 50}]
    )
    assert compare.compare(["a", "c"])["runs"][1]["cost"]["training_seconds"] == 30.12


# What moves a cursor is refused in a recipe, and in a name below.
HOSTILE = "a|b\n`c` <script>alert(1)</script> [x](y) \\"


@pytest.mark.promise("hostile", "HTML, Markdown and escape codes in every form of a comparison")
def test_what_comes_from_the_runs_is_escaped_in_every_form() -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.8, 1))
    make_run("b", predicted(gold, 0.8, 2), recipe={"project": HOSTILE, "lora_r": 64})
    make_run(
        "c",
        predicted(gold, 0.8, 2),
        recipe={"project": "=cmd|' /C calc'!A0"},
    )
    facts = compare.compare(["a", "b", "c"])
    text = "\n".join(text for _, text in tables.render(facts))
    assert "a|b\\n`c`" in text
    page = tables.as_markdown(facts)
    row = next(line for line in page.splitlines() if line.startswith("| project"))
    assert r"a\|b\\n\`c\` &lt;script&gt;alert(1)&lt;/script&gt;" in row
    assert len([mark for k, mark in enumerate(row) if mark == "|" and row[k - 1] != "\\"]) == 5
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO(tables.as_csv(facts), newline=""))}
    assert lines["b"]["project"] == HOSTILE
    assert lines["c"]["project"] == "'=cmd|' /C calc'!A0"
    assert (lines["b"]["lora_r"], lines["base"]["lora_r"]) == ("64", "")
    assert float(lines["a"]["macro_f1"]) == facts["entries"][0]["metrics"]["macro_f1"]["value"]


def test_the_whole_text_of_a_comparison(capsys: pytest.CaptureFixture) -> None:
    gold = golds()
    make_run("a", predicted(gold, 0.9, 1))
    make_run("b", predicted(gold, 0.6, 2), recipe={"lora_r": 64})
    subjects = [subject for subject, _ in tables.render(compare.compare(["a", "b"]))]
    assert subjects == ["rows", "differs", "metrics", "tests", "cost", "note"]
    said = dict(tables.render(compare.compare(["a", "b"])))
    assert said["differs"] == "key     a   b\nlora_r  16  64"
    for row in ("a", "b", "base", "stratified"):
        assert any(line.startswith(f"{row} ") for line in said["metrics"].splitlines())


# The leaderboard


def test_a_board_for_each_set_of_runs_that_compare_would_take() -> None:
    gold = golds()
    make_run("best", predicted(gold, 0.89, 4), recipe={"lora_r": 1})
    make_run("near", predicted(gold, 0.89, 7), recipe={"lora_r": 2})
    make_run("poor", predicted(gold, 0.3, 3), recipe={"lora_r": 3})
    make_run("elsewhere", predicted(gold[:200], 0.9, 1), gold=gold[:200])
    make_run("rehearsed", predicted(gold, 0.9, 1), rehearsal=True)
    (make_run("unscored", predicted(gold, 0.9, 1)) / "metrics.json").unlink()
    facts = compare.leaderboard()
    board, other = facts["boards"]
    assert [row["name"] for row in board["rows"] if row["kind"] == "run"] == ["best", "near", "poor"]
    values = [row["metrics"]["macro_f1"]["value"] for row in board["rows"]]
    assert values == sorted(values, reverse=True)
    assert {row["kind"] for row in board["rows"]} == {"run", "base", "baseline"}
    assert [row["name"] for row in other["rows"] if row["kind"] == "run"] == ["elsewhere"]
    assert [each["run"] for each in facts["left_out"]] == ["rehearsed", "unscored"]
    text = "\n".join(text for _, text in tables.render(facts))
    line = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "the first" in line["best"] and "not distinguishable (p " in line["near"]
    assert "worse (p < 0.001)" in line["poor"]
    assert "first in part by luck" in text
    assert "rehearsed is a rehearsal" in tables.as_markdown(facts)
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(facts))))
    assert {row["name"]: row["against_first"] for row in rows if row["kind"] == "run"} == {
        "best": "",
        "near": "not distinguishable",
        "poor": "worse",
        "elsewhere": "",
    }


@pytest.mark.promise("hostile", "a hostile name of a run in a leaderboard")
def test_a_foreign_run_of_a_hostile_name_is_escaped_in_every_leaderboard() -> None:
    name = "a|b\n`c` <img src=x onerror=alert(1)> \x1b[31m"
    make_run(name, predicted(golds(), 0.8, 1), recipe={"project": HOSTILE})
    make_run("b", predicted(golds(), 0.8, 2))
    (make_run("damaged \x1b[2J <img>", predicted(golds(), 0.8, 2)) / "run.json").write_text("[]")
    facts = compare.leaderboard()
    assert {each["run"] for each in facts["left_out"]} == {name, "damaged \x1b[2J <img>"}
    text = "\n".join(text for _, text in tables.render(facts))
    page = tables.as_markdown(facts)
    assert "\x1b" not in text + page
    assert "<img" not in page and "&lt;img" in page
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")}) == 1
    assert {row["kind"] for row in csv.DictReader(io.StringIO(tables.as_csv(facts), newline=""))} == {
        "run",
        "base",
        "baseline",
    }


def test_a_leaderboard_without_runs() -> None:
    with pytest.raises(InputError, match="no run in runs/; make train RECIPE=demo makes one"):
        compare.leaderboard()
    make_run("rehearsed", predicted(golds(), 0.8, 1), rehearsal=True)
    facts = compare.leaderboard()
    assert facts["boards"] == []
    assert [subject for subject, _ in tables.render(facts)] == ["left out"]


def test_200_runs_are_ranked_in_seconds() -> None:
    """Of processor time, because a test machine may be busy."""
    gold = golds(300)
    numbers = json.loads((make_run("r0", predicted(gold, 0.7, 0)) / "metrics.json").read_text())
    for seed in range(1, 200):
        said = predicted(gold, 0.7, seed)
        numbers["models"]["tuned"]["macro_f1"]["value"] = f1_score(gold[1:], said[1:], average="macro")
        make_run(f"r{seed}", said, recipe={"lora_r": seed}, numbers=numbers)
    began = time.process_time()
    (board,) = compare.leaderboard()["boards"]
    assert time.process_time() - began < 5
    assert len(board["rows"]) == 202
