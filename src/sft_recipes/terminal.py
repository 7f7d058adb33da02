"""How a run speaks: one line a decision, and numbers as people write them."""


def say(label: str, text: str) -> None:
    """Print one decision: what it is about, then what was decided. Continuation lines are indented."""
    first, *rest = text.splitlines()
    print(f"{label:<10} {first}", flush=True)
    for line in rest:
        print(f"{'':<10} {line}", flush=True)


def count(number: int, noun: str) -> str:
    """`1 row`, `2,480 rows`, `4 processes`."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def share(part: float, whole: float) -> str:
    """A share in percent, with a decimal where it is small: `3.4 %`, `71 %`."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def duration(seconds: float) -> str:
    """`48 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
