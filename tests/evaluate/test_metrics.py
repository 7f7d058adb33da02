"""The numbers of an evaluation agree with scikit-learn, and no defect planted into it earns a good verdict."""

import dataclasses
import json
import re
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf
from sklearn import metrics as sklearn_metrics
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sft_recipes.errors import InputError
from sft_recipes.evaluate import baselines, classification, generation, metrics, verdict
from sft_recipes.evaluate.statistics import f1_interval, wilson
from sft_recipes.recipes import json_schemas, task
from sft_recipes.runs import outcome

LABELS = ["cat", "dog", "emu", "fox"]
Rows = list[dict[str, Any]]


def texts_of(classes: Sequence[str], generator: np.random.Generator) -> list[str]:
    """Prompts of which half name their class and half name any."""
    labels = sorted(set(classes))
    return [
        f"what is it {label if generator.random() < 0.5 else generator.choice(labels)} {number}"
        for number, label in enumerate(classes)
    ]


def answered(gold: Sequence[str], accuracy: float, generator: np.random.Generator, invalid: float = 0.0) -> list[Any]:
    """Answers of which so many are right, and so many invalid."""
    labels = sorted(set(gold))
    answers: list[Any] = []
    for label in gold:
        others = [other for other in labels if other != label]
        answers.append(label if generator.random() < accuracy else generator.choice(others))
        if generator.random() < invalid:
            answers[-1] = None
    return answers


def rows_of(gold: Sequence[str], prompts: Sequence[str] | None = None, **models: Sequence[str | None]) -> Rows:
    return [
        {
            "row": number + 1,
            "id": f"{number:016x}",
            "prompt": prompts[number] if prompts else f"row {number}",
            "group": None,
            "gold": gold[number],
            "reference": gold[number],
            "leaked": False,
            **{
                name: {"prediction": said[number], "probabilities": None, "text": said[number], "finished": True}
                for name, said in models.items()
            },
        }
        for number in range(len(gold))
    ]


def with_probabilities(rows: Rows, model: str, probabilities: np.ndarray, labels: Sequence[str] = LABELS) -> None:
    for row, shares in zip(rows, probabilities, strict=True):
        row[model]["probabilities"] = dict(zip(labels, shares.tolist(), strict=True))
        row[model]["prediction"] = labels[int(shares.argmax())]


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def gold(generator: np.random.Generator) -> list[str]:
    return generator.choice(LABELS, size=400, p=[0.4, 0.3, 0.2, 0.1]).tolist()


@pytest.fixture
def train(generator: np.random.Generator) -> list[tuple[str, str]]:
    classes = generator.choice(LABELS, size=400, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    return list(zip(texts_of(classes, generator), classes, strict=True))


def measure(rows: Rows, train: list[tuple[str, str]], labels: Sequence[str] = LABELS, **more: Any) -> dict[str, Any]:
    result = metrics.measure(rows, "classification", train, labels, **({"resamples": 499} | more))
    # As it is written: no NaN, no numpy number.
    return json.loads(json.dumps(result, allow_nan=False))


# Agreement


@pytest.mark.parametrize("invalid", [0.0, 0.1])
def test_every_class_metric_is_scikit_learns(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator, invalid: float
) -> None:
    tuned = answered(gold, 0.7, generator, invalid)
    found = measure(rows_of(gold, base=answered(gold, 0.4, generator), tuned=tuned), train)["models"]["tuned"]
    said = [answer or "invalid" for answer in tuned]
    for average in ("macro", "micro", "weighted"):
        expected = sklearn_metrics.f1_score(gold, said, labels=LABELS, average=average)
        assert found[f"{average}_f1"]["value"] == pytest.approx(expected)
    assert found["accuracy"]["value"] == pytest.approx(sklearn_metrics.accuracy_score(gold, said))
    assert found["mcc"]["value"] == pytest.approx(sklearn_metrics.matthews_corrcoef(gold, said))
    report = sklearn_metrics.classification_report(gold, said, labels=LABELS, output_dict=True)
    for label in LABELS:
        values = {name: found["classes"][label][name]["value"] for name in ("precision", "recall")}
        assert values == pytest.approx({name: report[label][name] for name in values})
        assert found["classes"][label]["f1"]["value"] == pytest.approx(report[label]["f1-score"])
        assert found["classes"][label]["support"] == gold.count(label)
    matrix = sklearn_metrics.confusion_matrix(gold, said, labels=[*LABELS, "invalid"])[:4]
    assert found["confusion"]["counts"] == matrix.tolist()
    assert found["invalid"]["count"] == said.count("invalid")
    for name in ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]


@pytest.mark.parametrize("classes", [2, 5])
def test_the_formula_of_the_resamples_is_scikit_learns(classes: int, generator: np.random.Generator) -> None:
    for _ in range(20):
        # Few enough that some classes are neither in the rows nor in the answers.
        gold = generator.integers(classes, size=6)
        said = generator.integers(classes + 1, size=6)
        cells, statistic = classification.table(np.stack([gold, said], axis=1), classes, None)
        found = dict(zip(classification.SCORES, statistic(np.bincount(cells)[None].astype(float))[0, 0], strict=True))
        for average in ("macro", "micro", "weighted"):
            expected = sklearn_metrics.f1_score(
                gold, said, labels=range(classes), average=average, zero_division=np.nan
            )
            assert found[f"{average}_f1"] == pytest.approx(expected)
        # Where it is 0 / 0, scikit-learn says 0.
        assert np.nan_to_num(found["mcc"]) == pytest.approx(sklearn_metrics.matthews_corrcoef(gold, said))
        assert found["accuracy"] == pytest.approx(np.mean(gold == said))


def test_roc_auc_is_scikit_learns_and_its_interval_like_that_of_a_bootstrap(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    codes = np.array([LABELS.index(label) for label in gold])
    logits = generator.normal(size=(400, 4)) + 1.2 * np.eye(4)[codes]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = rows_of(gold, tuned=gold)
    with_probabilities(rows, "tuned", probabilities)
    found = measure(rows, train)["models"]["tuned"]["roc_auc"]

    def auc(chosen: np.ndarray) -> float:
        return sklearn_metrics.roc_auc_score(codes[chosen], probabilities[chosen], multi_class="ovr", average="macro")

    assert found["value"] == pytest.approx(auc(np.arange(400)))
    drawn = [auc(generator.integers(400, size=400)) for _ in range(150)]
    assert found["low"] < found["value"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.15)


def test_calibration_is_measured_in_fifteen_equal_bins(train: list[tuple[str, str]]) -> None:
    gold = ["cat"] * 80 + ["dog"] * 20
    rows = rows_of(gold, tuned=gold)
    with_probabilities(rows, "tuned", np.array([[0.9, 0.1, 0, 0]] * 50 + [[0.7, 0.3, 0, 0]] * 50))
    found = measure(rows, train)["models"]["tuned"]
    # All of the first fifty are right at 0.9, thirty of the others at 0.7.
    assert found["ece"]["value"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert [(part["n"], part["confidence"], part["accuracy"]) for part in found["reliability"]] == [
        (50, pytest.approx(0.7), 0.6),
        (50, pytest.approx(0.9), 1.0),
    ]
    assert found["reliability"][0]["interval"] == pytest.approx(wilson(30, 50))
    assert (found["reliability"][1]["low"], found["reliability"][1]["high"]) == (13 / 15, 14 / 15)


def test_always_each_class_is_the_constant_predictor(gold: list[str], train: list[tuple[str, str]]) -> None:
    gold = ["cat" if label == "fox" else label for label in gold]
    found = measure(rows_of(gold, tuned=gold), train)["baselines"]["always"]
    for label in LABELS:
        for average in ("macro", "weighted"):
            expected = sklearn_metrics.f1_score(gold, [label] * 400, average=average)
            assert found[label][f"{average}_f1"]["value"] == pytest.approx(expected)
        assert found[label]["accuracy"]["value"] == pytest.approx(gold.count(label) / 400)
        assert found[label]["mcc"]["value"] is None


def test_intervals_of_proportions_are_wilsons(gold: list[str], train: list[tuple[str, str]]) -> None:
    tuned = ["cat" if label == "dog" else label for label in gold]
    found = measure(rows_of(gold, tuned=tuned), train)["models"]["tuned"]
    hits, dogs, cats = 400 - gold.count("dog"), gold.count("dog"), gold.count("cat")

    def interval(estimate: dict[str, float]) -> tuple[float, float]:
        return estimate["low"], estimate["high"]

    assert interval(found["accuracy"]) == interval(found["micro_f1"]) == pytest.approx(wilson(hits, 400))
    assert interval(found["classes"]["cat"]["precision"]) == pytest.approx(wilson(cats, cats + dogs))
    assert interval(found["classes"]["cat"]["f1"]) == pytest.approx(f1_interval(cats, dogs))
    assert interval(found["classes"]["dog"]["recall"]) == pytest.approx(wilson(0, dogs))
    assert found["classes"]["dog"]["precision"] == {"value": None, "low": None, "high": None}


def test_the_macro_f1_interval_holds_the_truth_and_equal_models_are_seldom_told_apart() -> None:
    generator = np.random.default_rng(7)
    held, apart = [], []
    for seed in range(120):
        gold = generator.choice(LABELS, size=150).tolist()
        one, other = answered(gold, 0.8, generator), answered(gold, 0.8, generator)
        codes = np.array([[LABELS.index(label) for label in column] for column in (gold, one, other)])
        sample = metrics._class_sample(codes[0], {"one": codes[1], "other": codes[2]}, 4, None)
        drawn = sample.bootstrap([seed], 299)
        bounds = sample.estimates(*drawn, "one")["macro_f1"]
        held.append(bounds["low"] <= 0.8 <= bounds["high"])
        apart.append(metrics._paired(sample, *drawn, "macro_f1", "one", "other")["outcome"])
    assert 0.91 <= np.mean(held) <= 0.99
    assert np.mean([each != "not_distinguishable" for each in apart]) <= 0.08


def test_the_same_seed_gives_the_same_file(gold: list[str], train: list[tuple[str, str]]) -> None:
    rows = rows_of(gold, base=answered(gold, 0.5, np.random.default_rng(1)), tuned=gold)
    assert measure(rows, train) == measure(rows, train)
    assert measure(rows, train)["models"] != measure(rows, train, seed=1)["models"]


# Verdicts


def test_a_good_model_is_better_than_base_and_every_baseline_and_the_other_way_round_worse(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    prompts = texts_of(gold, generator)
    base, tuned = answered(gold, 0.3, generator), answered(gold, 0.95, generator)
    found = measure(rows_of(gold, prompts, base=base, tuned=tuned), train)
    assert set(found["paired"]) == {"base", "majority", "stratified", "tfidf_logistic_regression", "always_best"}
    assert found["verdict"]["outcome"] == "better"
    assert found["verdict"]["text"].startswith("better than the base (+0.6")
    assert "every trivial baseline (the best, TF-IDF + logistic regression, by +0." in found["verdict"]["text"]
    against = found["paired"]["base"]
    assert against["mcnemar"]["only_tuned"] > 200 and against["mcnemar"]["p"] < 1e-9
    assert 0 < against["difference"]["low"] < against["difference"]["value"] < against["difference"]["high"]

    swapped = measure(rows_of(gold, prompts, base=tuned, tuned=base), train)
    assert swapped["verdict"]["outcome"] == "worse"
    assert swapped["verdict"]["text"].startswith("worse than the base (-0.6")
    assert swapped["paired"]["base"]["difference"]["value"] == pytest.approx(-against["difference"]["value"])


def test_an_adapter_that_was_continued_from_has_to_be_beaten_too(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    prompts = texts_of(gold, generator)
    base, between, best = (answered(gold, share, generator) for share in (0.3, 0.8, 0.99))
    found = measure(rows_of(gold, prompts, base=base, earlier=between, tuned=best), train)
    assert [*found["models"]] == ["base", "earlier", "tuned"]
    assert found["verdict"]["outcome"] == "better"
    assert re.match(
        r"better than the base \(\+0\.\d\d macro F1, .*\), the earlier adapter \(\+0\.\d\d macro F1, .*\) and every "
        r"trivial baseline \(the best, TF-IDF",
        found["verdict"]["text"],
    )
    forgot = measure(rows_of(gold, prompts, base=base, earlier=best, tuned=between), train)
    assert forgot["verdict"]["outcome"] == "worse"
    assert forgot["verdict"]["text"].startswith("worse than the earlier adapter (-0.")
    assert "; better than the base (+0." in forgot["verdict"]["text"]


def test_better_than_the_base_alone_is_not_better(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    prompts = texts_of(gold, generator)
    known = [text for text, _ in train], np.array([LABELS.index(label) for _, label in train])
    trivial = baselines.classes(*known, prompts, 4, 0)["tfidf_logistic_regression"]
    tuned = [LABELS[code] for code in trivial]
    tuned[::40] = gold[::40]
    found = measure(rows_of(gold, prompts, base=[None] * 400, tuned=tuned), train)
    assert found["verdict"]["outcome"] == "not_distinguishable"
    assert found["verdict"]["text"].startswith("not distinguishable from TF-IDF + logistic regression (")
    assert "better than the base (+" in found["verdict"]["text"]
    assert "every other trivial baseline (the best, " in found["verdict"]["text"]
    assert "the base answers nothing valid for every row" in found["verdict"]["reasons"]


def test_a_constant_predictor_is_named_and_not_better(gold: list[str], train: list[tuple[str, str]]) -> None:
    found = measure(rows_of(gold, base=["fox"] * 400, tuned=["cat"] * 400), train)
    assert found["verdict"]["outcome"] in ("not_distinguishable", "worse")
    assert "the tuned model answers `cat` for every row" in found["verdict"]["reasons"]
    assert "always answering `cat` (+0.000 macro F1, 0 rows differ)" in found["verdict"]["text"]
    assert found["models"]["tuned"]["mcc"]["value"] is None


def test_a_model_of_broken_labels_is_not_better(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    shuffled = generator.permutation([label for _, label in train]).tolist()
    broken = [(text, label) for (text, _), label in zip(train, shuffled, strict=True)]
    tuned = generator.permutation(gold).tolist()
    found = measure(rows_of(gold, texts_of(gold, generator), base=answered(gold, 0.3, generator), tuned=tuned), broken)
    assert found["verdict"]["outcome"] != "better"


def test_too_few_rows_have_no_verdict(train: list[tuple[str, str]]) -> None:
    gold = LABELS * 24
    found = measure(rows_of(gold, base=["cat"] * 96, tuned=gold), train)
    assert found["verdict"]["outcome"] == "none"
    assert found["verdict"]["text"] == "no verdict: 96 rows scored, fewer than 100"
    assert outcome.verdict(found["verdict"]) == "none: 96 rows scored, fewer than 100"
    # Said once, and with what the intervals are worth; no test beside what is not tested.
    assert found["verdict"]["reasons"] == ["the base answers `cat` for every row", verdict.FEW_ROWS]
    pair = found["paired"]["base"]
    assert (pair["outcome"], pair["p"], pair["p_holm"], pair["mcnemar"]["p"]) == ("none", None, None, None)
    assert pair["difference"]["value"] > 0.8
    gold = LABELS * 25
    assert measure(rows_of(gold, base=["cat"] * 100, tuned=gold), train)["verdict"]["outcome"] == "better"


def test_worse_is_corrected_for_the_number_of_baselines_and_better_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """p of 0.03 against one of three: worse than it alone, not distinguishable among three; better stays."""
    sample = metrics._class_sample(
        np.zeros(200, dtype=int), dict.fromkeys(["tuned", *"abc"], np.zeros(200, int)), 2, None
    )

    def outcomes(**others: tuple[float, float]) -> dict[str, tuple[str, float]]:
        said = {name: {"p": p, "difference": {"value": value}, "mcnemar": {}} for name, (value, p) in others.items()}
        for pair in said.values():
            significant = "better" if pair["difference"]["value"] > 0 else "worse"
            pair["outcome"] = significant if pair["p"] <= 0.05 else "not_distinguishable"
        monkeypatch.setattr(metrics, "_paired", lambda *arguments: said[arguments[-1]])
        chosen = dataclasses.replace(sample, predictors=["tuned", *others])
        pairs = metrics._all_paired(chosen, np.zeros(0), np.zeros(0), "macro_f1")
        return {name: (pair["outcome"], round(pair["p_holm"], 3)) for name, pair in pairs.items()}

    assert outcomes(a=(-0.1, 0.03)) == {"a": ("worse", 0.03)}
    three = outcomes(a=(-0.1, 0.03), b=(0.0, 0.5), c=(0.1, 0.04))
    assert three == {"a": ("not_distinguishable", 0.09), "b": ("not_distinguishable", 0.5), "c": ("better", 0.09)}
    assert outcomes(a=(-0.1, 0.01), b=(0.0, 0.5), c=(0.0, 0.6))["a"] == ("worse", 0.03)


def test_what_is_said_of_few_rows_is_what_was_simulated() -> None:
    page = (ROOT / "docs" / "intervals.md").read_text(encoding="utf-8")
    first, _, worse, *_ = re.findall(r"^\|---.*\n((?:\|.*\n)+)", page.partition("<!-- the tables")[2], re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines()]
    assert f"{100 * min(float(row[3]) for row in rows):.0f} of 100 samples" in verdict.FEW_ROWS
    corrected = [float(line.split("|")[-2]) for line in worse.splitlines()]
    assert max(corrected) < 0.05 < max(float(line.split("|")[-3]) for line in worse.splitlines())


def test_equally_good_as_several_is_seldom_called_worse() -> None:
    """How often without the correction: docs/intervals.md."""
    generator, worse = np.random.default_rng(3), 0
    for seed in range(150):
        gold = generator.integers(0, 2, 200)
        said = {name: np.where(generator.random(200) < 0.2, 1 - gold, gold) for name in ("tuned", *"abcde")}
        sample = metrics._class_sample(gold, said, 2, None)
        pairs = metrics._all_paired(sample, *sample.bootstrap([seed], 299), "macro_f1")
        worse += any(pair["outcome"] == "worse" for pair in pairs.values())
    assert worse <= 6


def test_a_few_rows_that_differ_decide_nothing(gold: list[str], train: list[tuple[str, str]]) -> None:
    base = list(gold)
    for wrong in range(5):
        base[wrong] = None
    against = measure(rows_of(gold, base=base, tuned=gold), train)["paired"]["base"]
    assert against["outcome"] == "not_distinguishable"
    assert against["p"] == against["mcnemar"]["p"] == 2 / 2**5
    assert (against["differing"], against["difference"]["low"]) == (5, None)


def test_all_right_has_no_bootstrap_interval_and_still_wins(gold: list[str], train: list[tuple[str, str]]) -> None:
    found = measure(rows_of(gold, base=[None] * 400, tuned=gold), train)
    assert found["models"]["tuned"]["macro_f1"] == {"value": 1.0, "low": None, "high": None}
    assert found["models"]["tuned"]["accuracy"]["low"] == pytest.approx(wilson(400, 400)[0])
    assert found["models"]["base"]["invalid"]["count"] == 400
    assert found["verdict"]["text"].startswith("better than the base (+1.00 macro F1, 400 rows differ) and every")


def test_leaked_rows_are_never_scored(gold: list[str], train: list[tuple[str, str]]) -> None:
    base = answered(gold, 0.5, np.random.default_rng(1))
    clean = measure(rows_of(gold, base=base, tuned=gold), train)
    rows = rows_of([*gold, *gold], base=[*base, *gold], tuned=[*gold, *["cat"] * 400])
    for row in rows[400:]:
        row["leaked"] = True
    leaky = measure(rows, train)
    assert leaky["verdict"].pop("reasons") == ["400 rows of 800 left out: the prompt is among the training rows"]
    assert clean["verdict"].pop("reasons") == []
    assert leaky == clean
    for row in rows:
        row["leaked"] = True
    nothing = measure(rows, train)
    assert nothing["verdict"]["text"] == "no verdict: every row's prompt is among the training rows"
    assert (nothing["verdict"]["outcome"], nothing["models"]) == ("none", {})


def test_invalid_outputs_are_wrong_counted_and_named(gold: list[str], train: list[tuple[str, str]]) -> None:
    tuned = [None if number < 100 else label for number, label in enumerate(gold)]
    found = measure(rows_of(gold, base=["cat"] * 400, tuned=tuned), train)
    tuned_metrics = found["models"]["tuned"]
    assert tuned_metrics["accuracy"]["value"] == 0.75
    assert tuned_metrics["invalid"]["share"]["value"] == 0.25
    assert sum(counts[-1] for counts in tuned_metrics["confusion"]["counts"]) == 100
    assert "the tuned model gives 25 % invalid outputs" in found["verdict"]["reasons"]


def test_without_the_base_only_baselines_are_compared(gold: list[str], train: list[tuple[str, str]]) -> None:
    found = measure(rows_of(gold, tuned=gold), train)
    assert set(found["models"]) == {"tuned"} and "base" not in found["paired"]
    assert found["verdict"]["outcome"] == "none"
    assert found["verdict"]["text"].startswith(
        "no verdict: the base was not scored; better than every trivial baseline"
    )
    only_base = measure(rows_of(gold, base=gold), train)
    assert only_base["paired"] == {}
    assert only_base["verdict"]["text"] == "no verdict: the tuned model was not scored"


def test_rare_classes_and_repeated_prompts_are_named(train: list[tuple[str, str]]) -> None:
    gold = ["cat", "dog"] * 60 + ["emu"] * 3
    rows = rows_of(gold, base=["cat"] * 123, tuned=gold)
    rows[1]["id"] = rows[0]["id"]
    reasons = measure(rows, train)["verdict"]["reasons"]
    assert "classes of fewer than 10 rows, of which little is known: `emu` (3), `fox` (0)" in reasons
    assert verdict.FEW_ROWS in reasons
    assert "1 row with another row's prompt; the intervals take all rows as independent" in reasons


def test_what_no_scorer_writes_is_refused(gold: list[str], train: list[tuple[str, str]]) -> None:
    rows = rows_of(gold, base=["cat"] * 400, tuned=gold)
    with_probabilities(rows, "tuned", np.full((400, 4), 0.25) + np.array([0.03, -0.01, -0.01, -0.01]))
    rows[0]["tuned"]["prediction"] = "dog"
    rows[1]["tuned"]["probabilities"] = {"cat": 1.0}
    rows[6]["tuned"]["probabilities"]["cat"] += 0.1
    rows[6]["tuned"]["prediction"] = "cat"
    rows[2]["tuned"]["probabilities"] = None
    rows[3]["tuned"]["prediction"] = "cow"
    rows[4]["gold"] = "cow"
    del rows[5]["base"]
    with pytest.raises(InputError) as error:
        measure(rows, [*train, ("what is it", "gnu")])
    assert error.value.problems == [
        "training rows: the class 'gnu' is none of the labels; write it into labels",
        "predictions, row 1: tuned: the prediction 'dog' is not the most probable label; evaluate again",
        "predictions, row 2: tuned: the probabilities are not of all labels or do not add up to 1; evaluate again "
        "(in 2 rows)",
        "predictions, row 3: tuned: only some rows have probabilities; evaluate again",
        "predictions, row 4: tuned: the prediction 'cow' is none of the labels; evaluate again",
        "predictions, row 5: gold is 'cow', which is none of the labels",
        "predictions, row 6: no answer of base, which other rows have; evaluate again",
    ]


# Baselines


def test_a_training_split_of_one_class_and_prompts_without_words_are_baselines_too(gold: list[str]) -> None:
    for train in ([("!", "dog")], [("what", "dog")] * 20, [("?", "dog"), ("!", "cat"), ("!!", "dog")]):
        found = measure(rows_of(gold, ["?"] * 400, base=["cat"] * 400, tuned=gold), train)
        assert found["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"] == gold.count("dog") / 400


def test_a_class_of_one_training_row_does_no_harm(gold: list[str], generator: np.random.Generator) -> None:
    classes = [*LABELS[:3] * 50, "fox"]
    train = list(zip(texts_of(classes, generator), classes, strict=True))
    found = measure(rows_of(gold, texts_of(gold, generator), base=["cat"] * 400, tuned=gold), train)["baselines"]
    assert found["tfidf_logistic_regression"]["accuracy"]["value"] > found["stratified"]["accuracy"]["value"] + 0.1
    assert found["majority"]["accuracy"]["value"] == gold.count("cat") / 400


def test_the_tfidf_baseline_is_scikit_learns_logistic_regression(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    texts, classes = (list(column) for column in zip(*train, strict=True))
    prompts = texts_of(gold, generator)
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=baselines.TOKEN.pattern)
    pipeline = make_pipeline(words, LogisticRegression()).fit(texts, classes)
    codes = np.array([LABELS.index(label) for label in classes])
    found = baselines.classes(texts, codes, prompts, 4, 0)["tfidf_logistic_regression"]
    assert np.mean([LABELS[code] for code in found] == pipeline.predict(prompts)) >= 0.99


def test_the_stratified_baseline_draws_by_the_training_shares(generator: np.random.Generator) -> None:
    known = np.repeat([0, 1, 2], [700, 250, 50])
    drawn = baselines.classes(["x"] * 1000, known, ["x"] * 20_000, 3, 0)["stratified"]
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.7, 0.25, 0.05], abs=0.01)


def test_of_too_many_training_rows_a_named_sample_is_used(
    gold: list[str], train: list[tuple[str, str]], generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(gold, texts_of(gold, generator), base=["cat"] * 400, tuned=gold)
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", 150 * len(train[0][0]))
    found = measure(rows, train)
    (reason,) = [reason for reason in found["verdict"]["reasons"] if "sample" in reason]
    unseen = int(reason.rpartition("without ")[2].split()[0])
    assert 400 - 160 <= unseen <= 400 - 130
    assert found["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"] > 0.45


# Groups


def test_a_planted_gap_is_found_and_a_group_too_small_takes_no_part(
    train: list[tuple[str, str]], generator: np.random.Generator
) -> None:
    gold = LABELS * 125
    groups = ["old"] * 240 + ["new"] * 240 + ["tiny"] * 20
    tuned = [
        *answered(gold[:240], 0.95, generator),
        *answered(gold[240:480], 0.6, generator),
        *answered(gold[480:], 0.0, generator),
    ]
    rows = rows_of(gold, base=["cat"] * 500, tuned=tuned)
    for row, group in zip(rows, groups, strict=True):
        row["group"] = group
    found = measure(rows, train, group_column="age")["groups"]
    assert (found["column"], found["minimum"]) == ("age", 30)
    assert {group: part["n"] for group, part in found["by"].items()} == {"old": 240, "new": 240, "tiny": 20}
    assert found["by"]["tiny"]["tuned"]["accuracy"]["value"] == 0
    gap = found["gaps"]["tuned"]["accuracy"]
    assert (gap["largest"], gap["smallest"]) == ("old", "new")
    assert 0.2 < gap["low"] < gap["value"] < gap["high"] < 0.5
    assert found["gaps"]["base"]["accuracy"]["low"] == 0

    # The rates, from the confusion matrix of the group.
    inside = [number for number, group in enumerate(groups) if group == "new"]
    matrix = sklearn_metrics.multilabel_confusion_matrix(
        [gold[number] for number in inside], [tuned[number] for number in inside], labels=LABELS
    )
    (true_negative, false_positive), (false_negative, true_positive) = matrix.transpose(1, 2, 0)
    numbers = found["by"]["new"]["tuned"]
    assert numbers["fpr"]["value"] == pytest.approx((false_positive / (false_positive + true_negative)).mean())
    assert numbers["fnr"]["value"] == pytest.approx((false_negative / (false_negative + true_positive)).mean())


def test_of_two_labels_the_rarer_one_in_training_is_the_positive(generator: np.random.Generator) -> None:
    gold = ["hate"] * 40 + ["other"] * 60
    tuned = ["hate"] * 30 + ["other"] * 10 + ["hate"] * 12 + [None] * 3 + ["other"] * 45
    rows = rows_of(gold, base=tuned, tuned=tuned)
    for row in rows:
        row["group"] = "all"
    for majority, fpr, fnr in (("other", (12, 60), (10, 40)), ("hate", (10, 40), (15, 60))):
        train = [("a", "hate"), ("b", "other"), ("c", majority)]
        groups = measure(rows, train, ["hate", "other"], group_column="who")["groups"]
        found = groups["by"]["all"]["tuned"]
        for rate, (count, of) in (("fpr", fpr), ("fnr", fnr)):
            assert found[rate]["value"] == pytest.approx(count / of)
            assert (found[rate]["low"], found[rate]["high"]) == pytest.approx(wilson(count, of))
        assert found["invalid"]["count"] == 3
        assert groups["positive"] == ("hate" if majority == "other" else "other")
        assert groups["gaps"]["tuned"]["fpr"] == dict.fromkeys(["value", "low", "high", "largest", "smallest"])


def test_groups_are_resampled_independently_of_each_other(train: list[tuple[str, str]]) -> None:
    gold, tuned = LABELS * 30, [*LABELS[:3], "cat"] * 30
    rows = rows_of(gold, base=tuned, tuned=tuned)
    for number, row in enumerate(rows):
        row["group"] = "first" if number < 60 else "second"
    gap = measure(rows, train, group_column="half")["groups"]["gaps"]["tuned"]["accuracy"]
    assert (gap["value"], gap["low"]) == (0, 0)
    assert gap["high"] > 0.1


def test_equal_groups_seldom_have_a_gap(generator: np.random.Generator) -> None:
    found = []
    for seed in range(80):
        gold = generator.integers(2, size=5 * 40)
        said = np.where(generator.random(200) < 0.8, gold, 1 - gold)
        sample = metrics._class_sample(gold, {"one": said}, 2, None)
        drawn = {
            str(group): sample.bootstrap([seed, group], 199, np.arange(group * 40, group * 40 + 40))
            for group in range(5)
        }
        found.append(metrics._gap(drawn, 0, 0)["low"] > 0)
    assert np.mean(found) <= 0.1


# Generation


def answers_of(number: int, generator: np.random.Generator, wrong: float, references: Sequence[str] = ()) -> list[str]:
    words = ["the", "parcel", "leaves", "today", "and", "will", "be", "at", "your", "door", "by", "friday"]
    if not references:
        return [" ".join(generator.choice(words, size=8)) for _ in range(number)]
    return [
        " ".join(generator.choice(words) if generator.random() < wrong else word for word in text.split())
        for text in references
    ]


def test_generated_texts_are_scored_by_rouge_score_and_sacrebleu(generator: np.random.Generator) -> None:
    references = answers_of(50, generator, 0)
    texts = answers_of(50, generator, 0.4, references)
    found = generation.scores(references, texts, None)
    scorer = RougeScorer(["rougeL"])
    for reference, text, (equal, rouge, chrf) in zip(references, texts, found, strict=True):
        assert equal == (reference == text)
        assert rouge == pytest.approx(scorer.score(reference, text)["rougeL"].fmeasure)
        assert chrf == pytest.approx(sentence_chrf(text, [reference]).score / 100)


def test_rouge_sees_other_scripts() -> None:
    references, texts = ["привет мир", "我喜欢苹果", "…", "yes"], ["привет друг", "我喜欢苹果派", "…", ""]
    found = generation.scores(references, texts, None)
    assert found[:, 1] == pytest.approx([0.5, 10 / 11, 1, 0])


def test_a_generation_task_has_its_own_baselines_and_verdict(generator: np.random.Generator) -> None:
    references = answers_of(120, generator, 0)
    prompts = [f"question {number}" for number in range(120)]
    train = [(f"question {number}", f"answer {number}") for number in range(60)] + [("x", "no")] * 2
    rows = rows_of(references, prompts, base=answers_of(120, generator, 0.9, references), tuned=references)
    rows[0]["base"]["finished"] = False
    found = metrics.measure(rows, "generation", train, resamples=299)
    assert found["labels"] is None and found["primary"] == "rougeL"
    assert set(found["baselines"]) == set(found["paired"]) - {"base"} == {"most_common_answer", "nearest_training_row"}
    assert found["verdict"]["outcome"] == "better"
    assert "ROUGE-L" in found["verdict"]["text"]
    assert found["models"]["tuned"]["exact_match"]["value"] == 1
    assert found["models"]["tuned"]["valid_json"] is None
    assert found["models"]["base"]["unfinished"]["count"] == 1
    nearest = baselines.answers(*map(list, zip(*train, strict=True)), prompts[:60], 0)
    assert nearest["most_common_answer"] == ["no"] * 60
    assert nearest["nearest_training_row"] == [f"answer {number}" for number in range(60)]


def test_with_a_schema_the_primary_metric_is_valid_json() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    texts = ['{"n": 1}', '{"n": "1"}', '{"n": 1} thanks', "NaN", "[" * 100_000] * 30
    rows = rows_of(['{"n": 2}'] * 150, base=["no"] * 150, tuned=texts)
    found = metrics.measure(rows, "generation", [("a", '{"n": 3}')], json_schema=schema, resamples=199)
    assert found["primary"] == "valid_json"
    assert found["models"]["tuned"]["valid_json"]["value"] == 0.2
    assert found["paired"]["base"]["outcome"] == "better"
    assert found["verdict"]["outcome"] == "worse"
    assert found["verdict"]["text"].startswith("worse than the most common answer (-0.80 valid JSON, 95 % ")


def test_calls_are_matched_on_the_rows_that_ask_for_them() -> None:
    call, other = (task.calls_text([{"name": name, "arguments": {}}]) for name in "fg")
    rows = rows_of([call] * 40 + ["text"] * 80, base=[other] * 120, tuned=[call] * 30 + [other] * 10 + ["text"] * 80)
    for row in rows[:40]:
        row["call"] = True
    found = metrics.measure(rows, "generation", [("a", call)], resamples=199)
    tuned, base = (found["models"][model]["call_match"] for model in ("tuned", "base"))
    low, high = wilson(30, 40)
    assert tuned == {"value": 0.75, "low": pytest.approx(low), "high": pytest.approx(high)} and base["value"] == 0
    assert found["models"]["tuned"]["exact_match"]["value"] == pytest.approx(110 / 120)
    without = metrics.measure([{**row, "call": False} for row in rows], "generation", [("a", call)], resamples=199)
    assert without["models"]["tuned"]["call_match"] is None
    assert without["paired"] == found["paired"]


def test_a_schema_is_checked_before_use_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    schema = {
        "properties": {"a": {"$ref": "https://example.com/a.json"}, "b": {"$ref": "#/$defs/b"}},
        "items": {"$ref": "#/$defs/c"},
        "$defs": {"c": {"type": "string"}},
    }
    with pytest.raises(InputError) as error:
        json_schemas.validator(schema)
    assert len(error.value.problems) == 2
    assert "'https://example.com/a.json', which is not in it, and nothing is fetched" in error.value.problems[1]
    with pytest.raises(InputError, match="not valid at"):
        json_schemas.validator({"type": "text"})
    assert not generation.is_valid("NaN", json_schemas.validator(True))
    del schema["properties"]
    assert generation.is_valid('["x"]', json_schemas.validator(schema))
    assert not generation.is_valid("[1]", json_schemas.validator(schema))
