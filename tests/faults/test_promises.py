"""Every promise is tried, and the page says what is promised in the words of tests/promises.yaml."""

import sys
import warnings

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import reliability


def test_every_promise_is_tried_and_nothing_else_is_one() -> None:
    assert {name for name, _ in reliability.marked()} == reliability.PROMISES.keys()
    assert all({*words} == {"promise", "not"} for words in reliability.PROMISES.values())


def test_the_page_shows_every_promise_with_what_is_injected() -> None:
    lines = reliability.PAGE.read_text(encoding="utf-8").splitlines()
    for name, words in reliability.PROMISES.items():
        start = lines.index(f"## {name}")
        assert lines[start + 2 : start + 5] == [words["promise"], "", f"Not covered: {words['not']}"]
    shown = {line.rpartition(" (")[0] for line in lines if line.startswith("- ")}
    assert not {f"- {injected}" for _, injected in reliability.marked()} - shown
    assert "\n".join(lines).endswith("\n".join(reliability.soak()))


@pytest.mark.promise("versions", "a warning that something will be taken away")
@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_what_the_libraries_will_take_away_is_an_error(kind: type[Warning]) -> None:
    with pytest.raises(kind):
        warnings.warn("it goes away", kind, stacklevel=1)
