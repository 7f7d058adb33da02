"""Do the intervals of an evaluation hold? `python scripts/validate_intervals.py`, half an hour on one core.

Draws samples from known populations and counts how often the intervals of `sft_recipes.evaluate.metrics` hold the
truth, and how often equally good models are called different, or one of them worse. Rewrites the tables at the end of
docs/intervals.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_recipes.evaluate import classification, metrics

PAGE = Path(__file__).parents[1] / "docs" / "intervals.md"
MARK = "<!-- the tables below are written by scripts/validate_intervals.py -->\n"
SAMPLES = 400
# With 999 the bounds are a little noisier than with the 2,000 of an evaluation, not other on average.
RESAMPLES = 999
SIZES = (30, 50, 100, 200, 500)
PRIORS = {
    "2 equal": np.full(2, 0.5),
    "2, 80 % and 20 %": np.array([0.8, 0.2]),
    "8, 41 % to 1 %": 0.6 ** np.arange(8) / (0.6 ** np.arange(8)).sum(),
}
POPULATION = 1_000_000

Codes = NDArray[np.intp]


def draw(
    generator: np.random.Generator, prior: Any, size: int, error: float, shared: float = 0.0, models: int = 2
) -> list[Codes]:
    """Classes of rows and the answers of models that err equally often, in part (`shared`) alike."""
    classes = len(prior)
    gold = generator.choice(classes, size, p=prior)
    alike = generator.random(size) < shared
    answers: list[Codes] = []
    for _ in range(models):
        wrong = (gold + generator.integers(1, classes, size)) % classes
        answer = np.where(generator.random(size) < error, wrong, gold)
        answers.append(np.where(alike, answers[0], answer) if answers else answer)
    return [gold, *answers]


def coverage() -> Iterator[list[str]]:
    yield [
        "classes",
        "accuracy",
        "rows",
        "macro F1 covered",
        "truth above it",
        "no interval",
        "MCC covered",
        "no interval",
    ]
    generator = np.random.default_rng(0)
    at = [classification.SCORES.index(name) for name in ("macro_f1", "mcc")]
    for name, prior in PRIORS.items():
        for accuracy in (0.6, 0.9, 0.97):
            cells, statistic = classification.table(
                np.stack(draw(generator, prior, POPULATION, 1 - accuracy), axis=1), len(prior), None
            )
            truth = statistic(np.bincount(cells)[None].astype(float))[0, 0, at]
            for size in SIZES:
                held, above, given = np.zeros(2), np.zeros(2), np.zeros(2)
                for number in range(SAMPLES):
                    gold, said, _ = draw(generator, prior, size, 1 - accuracy)
                    sample = metrics._class_sample(gold, {"first": said}, len(prior), None)
                    estimates = sample.estimates(*sample.bootstrap([number], RESAMPLES), "first")
                    for column, score in enumerate(("macro_f1", "mcc")):
                        low, high = estimates[score]["low"], estimates[score]["high"]
                        if low is not None and high is not None:
                            given[column] += 1
                            held[column] += low <= truth[column] <= high
                            above[column] += truth[column] > high
                f1, mcc = zip(held / given, above / given, 1 - given / SAMPLES, strict=True)
                yield [name, str(accuracy), str(size), *(f"{part:.2f}" for part in (*f1, mcc[0], mcc[2]))]


def false_alarms() -> Iterator[list[str]]:
    yield ["classes", "accuracy", *(f"{size} rows" for size in SIZES)]
    generator = np.random.default_rng(1)
    for name, prior in PRIORS.items():
        for accuracy in (0.6, 0.9, 0.97):
            shares = []
            for size in SIZES:
                called = 0
                for number in range(SAMPLES):
                    gold, one, other = draw(generator, prior, size, 1 - accuracy, shared=0.5)
                    sample = metrics._class_sample(gold, {"one": one, "other": other}, len(prior), None)
                    drawn = sample.bootstrap([number], RESAMPLES)
                    pair = metrics._paired(sample, *drawn, "macro_f1", "one", "other")
                    called += pair["outcome"] != "not_distinguishable"
                shares.append(f"{called / SAMPLES:.3f}")
            yield [name, str(accuracy), *shares]


def called_worse() -> Iterator[list[str]]:
    yield ["classes", "rows", "as good as", "called worse without correction", "called worse"]
    generator = np.random.default_rng(4)
    for name, prior in PRIORS.items():
        for size in (100, 500):
            for others in (1, 2, 3, 5):
                alone = corrected = 0
                for number in range(SAMPLES):
                    gold, *said = draw(generator, prior, size, 0.2, shared=0.5, models=others + 1)
                    names = ["tuned", *map(str, range(others))]
                    sample = metrics._class_sample(gold, dict(zip(names, said, strict=True)), len(prior), None)
                    pairs = metrics._all_paired(sample, *sample.bootstrap([number], RESAMPLES), "macro_f1").values()
                    alone += any(pair["p"] <= 0.05 and pair["difference"]["value"] < 0 for pair in pairs)
                    corrected += any(pair["outcome"] == "worse" for pair in pairs)
                yield [name, str(size), str(others), f"{alone / SAMPLES:.3f}", f"{corrected / SAMPLES:.3f}"]


def gaps() -> Iterator[list[str]]:
    yield ["groups", "rows of each", "true gap of accuracy", "covered", "low above 0"]
    generator = np.random.default_rng(2)
    for number in (2, 4, 10):
        for size in (30, 100, 300):
            for spread in (0.0, 0.1, 0.3):
                held = apart = 0
                errors = np.repeat(0.2 + np.linspace(0, spread, number), size)
                for sampled in range(SAMPLES):
                    gold, said, _ = draw(generator, PRIORS["2 equal"], number * size, 0.0)
                    said = np.where(generator.random(len(gold)) < errors, 1 - gold, gold)
                    sample = metrics._class_sample(gold, {"first": said}, 2, None)
                    members = np.arange(number * size).reshape(number, size)
                    drawn = {
                        str(group): sample.bootstrap([sampled, group], RESAMPLES, inside)
                        for group, inside in enumerate(members)
                    }
                    gap = metrics._gap(drawn, 0, 0)
                    held += gap["low"] is not None and gap["low"] <= spread <= gap["high"]
                    apart += gap["low"] is not None and gap["low"] > 0
                yield [str(number), str(size), str(spread), f"{held / SAMPLES:.3f}", f"{apart / SAMPLES:.3f}"]


def calibration() -> Iterator[list[str]]:
    yield ["overconfidence", "rows", "true ECE", "mean estimate", "covered"]
    generator = np.random.default_rng(3)

    def sample(size: int, excess: float) -> tuple[Codes, Codes, NDArray[np.float64]]:
        confidence = (1 + generator.beta(5, 1, size)) / 2
        right = generator.random(size) < np.clip(confidence - excess, 0, 1)
        return np.where(right, 0, 1), np.zeros(size, dtype=int), np.stack([confidence, 1 - confidence], axis=1)

    for excess in (0.0, 0.03, 0.1, 0.3):
        truth = classification.calibration(*sample(POPULATION, excess), seed=0, resamples=1)[0]["value"] or 0.0
        truth *= excess > 0
        for size in (100, 400, 1600):
            held, total = 0, 0.0
            for number in range(SAMPLES):
                found = classification.calibration(*sample(size, excess), seed=number, resamples=RESAMPLES)[0]
                total += found["value"] or 0.0
                held += found["low"] is not None and found["low"] <= truth <= (found["high"] or 0.0)
            yield [str(excess), str(size), f"{truth:.3f}", f"{total / SAMPLES:.3f}", f"{held / SAMPLES:.3f}"]


def table(rows: Iterator[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *body]) + "\n"


def main() -> None:
    sections = {
        "Intervals of one model": coverage(),
        "Equally good models that are called different": false_alarms(),
        "A model as good as others that is called worse than one of them": called_worse(),
        "The largest gap between groups": gaps(),
        "Calibration error": calibration(),
    }
    tables = "".join(f"\n## {title}\n\n{table(rows)}" for title, rows in sections.items())
    prose = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(prose + MARK + tables, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
