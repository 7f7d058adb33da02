"""What the paired differences of an evaluation say together, in one plain line, and what its reader has to know."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sft_recipes.evaluate.terms import IN_SENTENCES, METRICS
from sft_recipes.terminal import count, share

Row = Mapping[str, Any]

# Of fewer scored rows nothing is concluded, and classes of fewer rows are named: docs/intervals.md.
MINIMUM_ROWS = 100
MINIMUM_CLASS = 10
FEW_ROWS = (
    "with so few rows, of all or of a class, the interval of macro F1 may hold the truth in 86 of 100 samples instead of "
    "95, and be too low (docs/intervals.md)"
)


def verdict(result: Mapping[str, Any], rows: Sequence[Row], unseen: int = 0) -> dict[str, Any]:
    """The outcome, one line of text, and the reasons behind it or beside it.

    "better" is better than the base and than every baseline, each at 95 %: an intersection-union test, which needs no
    correction for the number of comparisons (Berger 1982, doi:10.1080/00401706.1982.10487790). "worse" is worse than
    any of them after Holm's correction over all, without which it would be said the more often the more there are.

    Args:
        result: what `metrics.measure` has found.
        rows: the objects of predictions.jsonl.
        unseen: training rows that the TF-IDF baseline was not made from.
    """
    scored = [row for row in rows if not row["leaked"]]
    paired, models = result["paired"], result["models"]
    facts = _facts(result, rows, scored, unseen)
    missing = None
    if not scored:
        missing = "every row's prompt is among the training rows" if rows else "there are no rows"
    elif len(scored) < MINIMUM_ROWS:
        missing = f"{count(len(scored), 'row')} scored, fewer than {MINIMUM_ROWS}"
    elif "tuned" not in models:
        missing = "the tuned model was not scored"
    elif "base" not in models:
        missing = "the base was not scored"
    if missing is not None:
        known = f"; {_clauses(result)}" if paired and len(scored) >= MINIMUM_ROWS else ""
        return {"outcome": "none", "text": f"no verdict: {missing}{known}", "reasons": facts}
    outcomes = {pair["outcome"] for pair in paired.values()}
    outcome = next(word for word in ("worse", "not_distinguishable", "better") if word in outcomes)
    return {"outcome": outcome, "text": _clauses(result), "reasons": facts}


def _clauses(result: Mapping[str, Any]) -> str:
    """What the tuned model is worse than, not distinguishable from and better than, by how much."""
    paired = result["paired"]
    clauses = []
    for outcome, phrase in (("worse", "worse than"), ("not_distinguishable", "not distinguishable from")):
        named = [
            f"{_name(name, result)} ({_amount(paired[name])})" for name in paired if paired[name]["outcome"] == outcome
        ]
        if named:
            clauses.append(f"{phrase} {' and '.join(filter(None, [', '.join(named[:-1]), named[-1]]))}")
    better = [name for name in paired if paired[name]["outcome"] == "better"]
    trivial = [name for name in better if name != "base"]
    beaten = [f"the base ({_amount(paired['base'])})"] if "base" in better else []
    if trivial:
        closest = min(trivial, key=lambda name: paired[name]["difference"]["value"])
        other = "" if len(trivial) == len(paired.keys() - {"base"}) else "other "
        amount = _amount(paired[closest], short=bool(beaten))
        beaten.append(f"every {other}trivial baseline (the best, {_name(closest, result)}, by {amount})")
    if beaten:
        clauses.append(f"better than {' and '.join(beaten)}")
    return "; ".join(clauses)


def _amount(pair: Mapping[str, Any], short: bool = False) -> str:
    """`+0.71 macro F1, 95 % 0.67 to 0.75`, or short, `+0.71, 0.67 to 0.75`."""
    value, low, high = (pair["difference"][key] for key in ("value", "low", "high"))
    digits = 3 if any(number is not None and abs(number) < 0.01 for number in (value, low, high)) else 2
    text = f"{value:+.{digits}f}" if short else f"{value:+.{digits}f} {METRICS[pair['metric']]}"
    if low is not None:
        text = f"{text}, {'' if short else '95 % '}{low:.{digits}f} to {high:.{digits}f}"
        # Where the interval alone would say "worse", the reader sees what keeps that from being said.
        corrected = pair["outcome"] == "not_distinguishable" and high < 0
        return f"{text}, p {pair['p_holm']:.3f} after Holm" if corrected else text
    return f"{text}, {count(pair['differing'], 'row')} {'differs' if pair['differing'] == 1 else 'differ'}"


def _name(name: str, result: Mapping[str, Any]) -> str:
    if name != "always_best":
        return IN_SENTENCES[name]
    always = result["baselines"]["always"]
    return f"always answering `{max(always, key=lambda label: always[label]['macro_f1']['value'])}`"


def _facts(result: Mapping[str, Any], rows: Sequence[Row], scored: Sequence[Row], unseen: int) -> list[str]:
    """What is to be known about the rows and the answers."""
    facts = []
    if 0 < len(scored) < len(rows):
        left_out = f"{count(len(rows) - len(scored), 'row')} of {len(rows):,}"
        facts.append(f"{left_out} left out: the prompt is among the training rows")
    repeated = len(scored) - len({row["id"] for row in scored})
    if repeated:
        facts.append(f"{count(repeated, 'row')} with another row's prompt; the intervals take all rows as independent")
    for model in result["models"]:
        said = Counter(row[model]["prediction"] for row in scored)
        cut = sum(row[model].get("finished") is False for row in scored)
        if len(said) == 1 and len(scored) > 1:
            (only,) = said
            answer = "the same text" if result["labels"] is None else "nothing valid" if only is None else f"`{only}`"
            facts.append(f"{IN_SENTENCES[model]} answers {answer} for every row")
        elif said[None]:
            facts.append(f"{IN_SENTENCES[model]} gives {share(said[None], len(scored))} invalid outputs")
        if cut:
            facts.append(
                f"{IN_SENTENCES[model]} is cut off by max_new_tokens in {share(cut, len(scored))} of the rows"
            )
    if result["labels"] is not None:
        support = Counter(row["gold"] for row in scored)
        rare = [f"`{label}` ({support[label]})" for label in result["labels"] if support[label] < MINIMUM_CLASS]
        rare[10:] = [f"{len(rare) - 10} more"] if len(rare) > 10 else []
        if scored and rare:
            facts.append(f"classes of fewer than {MINIMUM_CLASS} rows, of which little is known: {', '.join(rare)}")
        if scored and (rare or len(scored) < MINIMUM_ROWS):
            facts.append(FEW_ROWS)
    if unseen:
        facts.append(f"the TF-IDF baseline is made from a sample of the training rows, without {unseen:,} of them")
    return facts
