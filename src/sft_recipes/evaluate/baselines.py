"""What needs no model: the trivial answers that a tuned model has to beat, made from the training split alone."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[str]

# Han, Hiragana and Katakana are written without spaces between words: there each character is a token.
_UNSPACED = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

# Bounds of time and memory, about 20 seconds and 1 GiB. Of more training rows a seeded sample is taken.
MOST_CHARACTERS = 10_000_000
MOST_ROWS = 100_000
# Each new prompt is compared with every one of these.
MOST_NEIGHBOURS = 20_000
# Terms x classes of the regression: the most frequent terms are kept.
MOST_COEFFICIENTS = 2_000_000


def tokens(text: str) -> list[str]:
    """Words of letters and digits in lower case, and single characters of scripts without spaces.

    For ASCII text these are the tokens of rouge_score, which sees no other letters by itself.
    """
    return TOKEN.findall(text.lower())


def sample(prompts: Texts, seed: int, most_rows: int = MOST_ROWS) -> NDArray[np.intp]:
    """The training rows from which a baseline is made: all, or a seeded sample of what the bounds allow."""
    order = np.random.default_rng(seed).permutation(len(prompts))[:most_rows]
    characters = np.cumsum([len(prompts[i]) for i in order])
    return np.sort(order[: max(1, np.searchsorted(characters, MOST_CHARACTERS, side="right"))])


def classes(
    prompts: Texts, gold: NDArray[np.intp], new_prompts: Texts, labels: int, seed: int
) -> dict[str, NDArray[np.intp]]:
    """Predictions for `new_prompts` of three classifiers fitted on the training rows' `prompts` and `gold` classes.

    - majority: the class of most training rows, the first of equals (scikit-learn's DummyClassifier).
    - stratified: one seeded draw for each row by the classes' shares of the training rows (DummyClassifier).
    - tfidf_logistic_regression: multinomial logistic regression (L2, C = 1, at most 100 epochs of SAG) on TF-IDF of
      words and pairs of words, fitted on the rows of `sample`.
    """
    from sklearn.dummy import DummyClassifier

    result = {}
    for name, strategy in (("majority", "most_frequent"), ("stratified", "stratified")):
        dummy = DummyClassifier(strategy=strategy, random_state=seed).fit(np.zeros((len(gold), 1)), gold)
        result[name] = dummy.predict(np.zeros((len(new_prompts), 1)))
    result["tfidf_logistic_regression"] = _tfidf_classes(prompts, gold, new_prompts, labels, seed)
    return result


def _tfidf_classes(
    prompts: Texts, gold: NDArray[np.intp], new_prompts: Texts, labels: int, seed: int
) -> NDArray[np.intp]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = sample(prompts, seed)
    texts, targets = [prompts[i] for i in rows], gold[rows]
    if len(np.unique(targets)) == 1 or not any(map(tokens, texts)):
        # Nothing to regress on: the intercepts alone would name the majority.
        return np.full(len(new_prompts), np.bincount(targets).argmax())
    # Not the default lbfgs: on the demo it takes 70 times as long and is right as often.
    regression = LogisticRegression(solver="sag", max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (
            make_pipeline(_vectorizer(MOST_COEFFICIENTS // labels), regression)
            .fit(texts, targets)
            .predict(new_prompts)
        )


def answers(prompts: Texts, known: Texts, new_prompts: Texts, seed: int) -> dict[str, list[str]]:
    """Answers for `new_prompts`, of the `known` ones: the most common, and that of the nearest training prompt.

    Nearest by the cosine of TF-IDF of words and pairs of words, the first of equals, among the rows of `sample`.
    """
    common = Counter(known).most_common(1)[0][0]
    rows = sample(prompts, seed, MOST_NEIGHBOURS)
    texts = [prompts[i] for i in rows]
    nearest = np.zeros(len(new_prompts), dtype=int)
    if any(map(tokens, texts)):
        vectorizer = _vectorizer(None)
        old = vectorizer.fit_transform(texts).T.tocsr()
        new = vectorizer.transform(new_prompts)
        # Rows have length 1, so products are cosines. They are dense: a block at a time.
        for start in range(0, len(new_prompts), 256):
            nearest[start : start + 256] = (new[start : start + 256] @ old).toarray().argmax(1)
    return {
        "most_common_answer": [common] * len(new_prompts),
        "nearest_training_row": [known[rows[i]] for i in nearest],
    }


def _vectorizer(most_terms: int | None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=TOKEN.pattern, ngram_range=(1, 2), max_features=most_terms)
