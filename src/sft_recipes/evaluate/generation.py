"""How near a generated text is to its reference, row by row."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from sft_recipes.evaluate.baselines import tokens

SCORES = ("exact_match", "rougeL", "chrf", "valid_json", "call_match")


class Words:
    """Tokens for rouge_score, which by itself sees nothing but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


def is_valid(text: str, checker: Draft202012Validator) -> bool:
    """Whether the whole text is one JSON value of the schema; NaN and Infinity are no JSON."""
    try:
        return bool(checker.is_valid(json.loads(text, parse_constant=_no_constant)))
    except (ValueError, RecursionError):
        return False


def _no_constant(name: str) -> None:
    raise ValueError(name)


def scores(
    references: Sequence[str],
    texts: Sequence[str],
    checker: Draft202012Validator | None,
    calls: Sequence[bool] = (),
) -> NDArray[np.float64]:
    """The `SCORES` of each row, all in 0 to 1, NaN where a score is not of the row.

    Shape (rows, 3), one more with a schema, and one more where any of the rows asks for a call of a tool (`calls`).

    - exact_match: equal but for white space at the ends.
    - rougeL: F1 of the longest common subsequence of tokens (Lin 2004, aclanthology.org/W04-1013), by rouge_score
      without stemming; 1 also where neither text has a token and they are equal.
    - chrf: character n-gram F-score, n up to 6, beta 2 (Popovic 2015, doi:10.18653/v1/W15-3049), by sacrebleu,
      divided by 100.
    - valid_json: whether the text is JSON of the schema; the reference plays no part.
    - call_match: of rows that ask for calls, whether these are made and no others, in this order, with the same names
      and arguments that are equal as JSON; the texts are `task.calls_text` then, so it is whether they are equal.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    rouge = RougeScorer(["rougeL"], tokenizer=Words())
    chrf = CHRF()

    @cache
    def score(reference: str, text: str) -> tuple[float, ...]:
        equal = float(reference.strip() == text.strip())
        longest = rouge.score(reference, text)["rougeL"].fmeasure
        overlap = chrf.sentence_score(text, [reference]).score / 100
        return equal, max(equal, longest), max(equal, overlap), *([float(is_valid(text, checker))] if checker else [])

    found = np.array([score(reference, text) for reference, text in zip(references, texts, strict=True)])
    return np.column_stack([found, np.where(calls, found[:, 0], np.nan)]) if any(calls) else found


def table(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.intp], Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """Each row as a cell of its own, and the means of `values` (rows, predictors, scores) from counts of the rows.

    A mean is over the rows that have the score, and NaN where none has.
    """
    rows = len(values)
    known = ~np.isnan(values.reshape(rows, -1))
    held = np.where(known, values.reshape(rows, -1), 0)

    def means(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            found = counts @ held / (counts @ known.astype(float))
        return found.reshape(len(counts), *values.shape[1:])

    return np.arange(rows), means
