"""Run the tests that break something on purpose, print what became of each promise, and write docs/reliability.md.

Exit code 1 where something was lost, or a promise was not tried. The page is left alone then, and where tests were
skipped, since it shows all or nothing.
"""

import ast
import collections
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.terminal import table

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "reliability.md"
SOAK = ROOT / "docs" / "soak.json"
KINDS = ("killed", "within")
PROMISES: dict[str, dict[str, str]] = yaml.safe_load((TESTS / "promises.yaml").read_text(encoding="utf-8"))
HEAD = """\
# Reliability

What a run promises, and what it does not. Each promise is held by tests that break something on purpose:
`make faults` runs them and writes this page. They are a part of `make test`.
"""


def marked() -> Iterator[tuple[str, str]]:
    """Promise and what is injected, of each marker in the tests."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                name, injected = (ast.literal_eval(argument) for argument in node.args)
                yield name, injected


def run(file: Path) -> int:
    """Run the marked tests; gives pytest's exit code."""
    options = ["-m", "promise", "-n", "2", "--dist", "worksteal", "-q", "--durations=10", f"--faults={file}"]
    return subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT).returncode


def counted(file: Path) -> dict[tuple[str, str], collections.Counter[str]]:
    """How much of each promise and injection was injected and survived, or skipped."""
    tests: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tests.setdefault(row["test"], []).append(row)
    found: dict[tuple[str, str], collections.Counter[str]] = {}
    for rows in tests.values():
        outcomes = {row["outcome"] for row in rows}
        outcome = next(each for each in ("failed", "skipped", "passed") if each in outcomes)
        for name, injected in rows[-1]["promises"]:
            found.setdefault((name, injected), collections.Counter())[outcome] += rows[-1]["number"]
    return found


def summed(found: dict[tuple[str, str], collections.Counter[str]]) -> list[tuple[str, int, int, int]]:
    """Of each promise its name, and how much was injected, survived and lost."""
    lines = []
    for name in PROMISES:
        of = sum((outcomes for (which, _), outcomes in found.items() if which == name), collections.Counter[str]())
        lines.append((name, of["passed"] + of["failed"], of["passed"], of["failed"]))
    return lines


def page(found: dict[tuple[str, str], collections.Counter[str]]) -> str:
    """docs/reliability.md of what was injected and survived."""
    lines = [HEAD, "| promise | injected | survived | lost |", "|---|---|---|---|"]
    lines += [f"| [{name}](#{name}) | {' | '.join(map(str, numbers))} |" for name, *numbers in summed(found)]
    lines += ["", "Injected is how often something was broken: once a case of a test, or as often as the test counts."]
    for name, words in PROMISES.items():
        lines += ["", f"## {name}", "", words["promise"], "", f"Not covered: {words['not']}", ""]
        of = {text: outcomes["passed"] for (which, text), outcomes in found.items() if which == name}
        lines += [f"- {text} ({of[text]})" for text in sorted(of, key=str.lower)]
    return "\n".join([*lines, "", "## The soak", "", *soak()]) + "\n"


def soak() -> Iterator[str]:
    """What `make soak` did when it last came to its end."""
    done = json.loads(SOAK.read_text(encoding="utf-8"))
    killed, within = (", ".join(f"{name} ({n})" for name, n in sorted(done[key].items())) for key in KINDS)
    yield (
        f"`make soak` killed processes of tiny runs by SIGKILL {done['kills']} times at random moments, and continued "
        f"until {done['runs']} runs of one and of two processes were finished; {done['launches']} launches came so "
        "far that they trained, the others were killed before. Each run ended as one that nobody had killed: the same "
        "adapter, optimizer, schedule, random numbers, log and totals, to the bit."
    )
    yield ""
    yield f"- killed: {killed}"
    yield f"- in the middle of: {within}"


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "outcomes.jsonl"
        code = run(file)
        found = counted(file) if file.exists() else {}
    lines = summed(found)
    print(table([("promise", "injected", "survived", "lost"), *((name, *map(str, rest)) for name, *rest in lines)]))
    skipped = sorted({f"{name}: {text}" for (name, text), outcomes in found.items() if outcomes["skipped"]})
    if code or any(lost or not injected for _, injected, _, lost in lines):
        print("error: something was lost, or a promise was not tried", file=sys.stderr)
        return 1
    if skipped:
        print("\n".join(["skipped here, so docs/reliability.md is left as it is:", *skipped]))
    else:
        PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
