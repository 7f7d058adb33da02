"""What is broken on purpose, and whether the promise of promises.yaml survived it."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

PROMISES = yaml.safe_load((Path(__file__).parent / "promises.yaml").read_text(encoding="utf-8"))


@contextlib.contextmanager
def fault(promise: str, injected: str, number: int = 1) -> Iterator[None]:
    """What is asserted within shows that the promise holds although something is broken.

    Args:
        promise: an id of promises.yaml.
        injected: what is broken, in words.
        number: how often.
    """
    assert promise in PROMISES, f"{promise} is no promise of promises.yaml"
    survived = False
    try:
        yield
        survived = True
    finally:
        # For `make faults`, which makes the table of docs/reliability.md from it.
        if path := os.environ.get("FAULTS"):
            row = {"promise": promise, "injected": injected, "number": number, "survived": survived}
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
