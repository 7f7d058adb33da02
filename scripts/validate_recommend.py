"""Recommend recipes for made data sets on machines from a laptop to eight H100, and check that each can be trusted.

`python scripts/validate_recommend.py` recommends for every pair, and says of each what was chosen and what is wrong
with it: a recipe has to load as it was decided, to fit by the memory model, to have no blocking finding, and to
train on nearly every row. A test does the same for some of them.

`python scripts/validate_recommend.py --estimate qwen.tiktoken` counts how far 4 bytes a token are off: `qwen.tiktoken`
is the vocabulary of Qwen's models, as the package dashscope carries it; it needs `pip install tiktoken faker`.
"""

import argparse
import base64
import contextlib
import csv
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.plan import fit, memory, recommend, recommended
from sft_recipes.recipes import recipe as recipes

ROOT = Path(__file__).parents[1]
MACHINES: dict[str, tuple[str, int | None]] = {
    "laptop": ("laptop", None),
    "rtx-4090": ("rtx-4090", 1),
    "a100-80gb": ("a100-80gb", 1),
    "4 x a100-80gb": ("a100-80gb", 4),
    "8 x h100-80gb": ("h100-80gb", 8),
}
WORDS = ("order", "invoice", "parcel", "refund", "delivery", "account", "address", "broken", "late", "twice", "please")
RUSSIAN = ("заказ", "счёт", "посылка", "возврат", "доставка", "адрес", "сломан", "поздно", "дважды", "пожалуйста")
CLASSES = ("refund", "delivery", "account", "other")
Row = dict[str, Any]


def text(rng: random.Random, least: int, most: int, words: tuple[str, ...] = WORDS) -> str:
    return " ".join(rng.choices(words, k=rng.randint(least, most)))


def labels(rng: random.Random) -> Iterator[Row]:
    for _ in range(1000):
        yield {"prompt": text(rng, 5, 60), "completion": rng.choice(CLASSES)}


def numbers(rng: random.Random) -> Iterator[Row]:
    for _ in range(600):
        yield {"prompt": text(rng, 5, 60), "completion": rng.randint(0, 2)}


def table(rng: random.Random) -> Iterator[Row]:
    """Written as CSV."""
    for _ in range(700):
        yield {"prompt": text(rng, 5, 30), "completion": text(rng, 20, 60)}


def json_labels(rng: random.Random) -> Iterator[Row]:
    for _ in range(600):
        answer = {"label": rng.choice(CLASSES), "reason": text(rng, 8, 20)}
        yield {"instruction": "Classify as JSON.", "input": text(rng, 10, 80), "output": json.dumps(answer)}


def extraction(rng: random.Random) -> Iterator[Row]:
    for _ in range(600):
        answer = {"name": text(rng, 2, 2), "item": text(rng, 1, 3), "number": rng.randint(1, 10**6)}
        yield {"prompt": "As JSON: " + text(rng, 20, 90), "completion": json.dumps(answer)}


def instructions(rng: random.Random) -> Iterator[Row]:
    for _ in range(3000):
        yield {"instruction": text(rng, 4, 20), "input": text(rng, 0, 60), "output": text(rng, 20, 120)}


def conversations(rng: random.Random) -> Iterator[Row]:
    for _ in range(300):
        turns = 2 * rng.randint(1, 6)
        yield {
            "messages": [
                {"role": ("user", "assistant")[turn % 2], "content": text(rng, 5, 120)} for turn in range(turns)
            ]
        }


def long(rng: random.Random) -> Iterator[Row]:
    for _ in range(60):
        yield {"prompt": text(rng, 1500, 3000), "completion": text(rng, 50, 200)}


def outlier(rng: random.Random) -> Iterator[Row]:
    for _ in range(1000):
        yield {"prompt": text(rng, 5, 60), "completion": text(rng, 10, 80)}
    yield {"prompt": text(rng, 20_000, 20_000), "completion": text(rng, 10, 80)}


def few(rng: random.Random) -> Iterator[Row]:
    for _ in range(60):
        yield {"prompt": text(rng, 10, 60), "completion": text(rng, 10, 60)}


def many(rng: random.Random) -> Iterator[Row]:
    for _ in range(52_000):
        yield {"prompt": text(rng, 3, 12), "completion": text(rng, 3, 12)}


def russian(rng: random.Random) -> Iterator[Row]:
    for _ in range(1000):
        yield {"prompt": text(rng, 10, 60, RUSSIAN), "completion": text(rng, 10, 60, RUSSIAN)}


def imbalanced(rng: random.Random) -> Iterator[Row]:
    for number in range(1000):
        yield {"prompt": text(rng, 5, 60), "completion": "spam" if number % 30 == 0 else "ham"}


def dirty(rng: random.Random) -> Iterator[Row]:
    """A class in two spellings, rows twice, an answer that a template left."""
    rows = [{"prompt": text(rng, 5, 60), "completion": rng.choice(("yes", "Yes", "no"))} for _ in range(400)]
    yield from (*rows, *rows[:40], {"prompt": "Is {name} there?", "completion": "no"})


MADE: dict[str, Callable[[random.Random], Iterator[Row]]] = {
    each.__name__: each
    for each in (
        *(labels, numbers, table, json_labels, extraction, instructions, conversations),
        *(long, outlier, few, many, russian, imbalanced, dirty),
    )
}


def write(name: str, folder: Path) -> Path:
    """The rows of a made data set, as a file of that name."""
    rows = [*MADE[name](random.Random(name))]  # noqa: S311, seeded rows, no secrets
    path = folder / f"{name}.{'csv' if name == 'table' else 'jsonl'}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if name == "table":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def recommended_for(data: Path, machine: str) -> dict[str, Any]:
    """The recommendation for a file on one of the machines, without alternatives."""
    chosen = recommend.machine_of(*MACHINES[machine])
    rows = recommend.rows_of(str(data), {})
    return recommend.facts_of(rows, chosen, recommend.decide(rows, chosen, {}), [])


def problems(facts: dict[str, Any], file: Path) -> Iterator[str]:
    """What is wrong with a recommendation, whose recipe is written to a file beside the shipped ones."""
    costs = facts["costs"]
    file.write_text(recommended.written(facts), encoding="utf-8")
    loaded = recipes.load(file)
    for key, each in facts["recipe"].items():
        if loaded[key] != each["value"]:
            yield f"{key} is written as {loaded[key]!r} and was {each['value']!r}"
        if key != "description" and not each["reason"]:
            yield f"{key} has no reason"
    if facts["blocking"]:
        yield f"blocking: {', '.join(each['rule'] for each in facts['findings'] if each['severity'] == 'blocking')}"
    if costs["fits"] is False or (facts["machine"]["gpu"] is None and costs["bytes"] > memory.HEADROOM * host()):
        yield f"does not fit: {fit.gib(costs['bytes'])}"
    if costs["whole"] < recommend.LEFT[0]:
        yield f"only {costs['whole']:.0%} of the rows are whole"
    if not costs["steps"]:
        yield "no steps"
    if any(each["rule"] == "does-not-fit" for each in facts["findings"]):
        yield "the plan says that it does not fit"


def host() -> float:
    """Bytes of this machine's memory."""
    return recommend.machine_of("cpu", None).gib * fit.GIB


def row(name: str, machine: str, facts: dict[str, Any]) -> str:
    """What was chosen, in a line."""
    value = {key: each["value"] for key, each in facts["recipe"].items()}
    model = value["model_name_or_path"].rpartition("/")[2]
    batch = f"{value['per_device_train_batch_size']}/{value['global_batch_size']} x {value['num_train_epochs']}"
    used = f"{facts['machine']['used']} {value['accelerate_config']}"
    costs = facts["costs"]
    return (
        f"{name:<14} {machine:<14} {facts['data']['kind']:<15} {model:<11} {costs['method']:<17} {used:<12} "
        f"{value['max_length']:>6} {batch:>9} {costs['steps']:>6} {fit.gib(costs['bytes']):>9}  {costs['time']}"
    )


def estimates(vocabulary: Path) -> None:
    """How many times the tokens that 4 bytes count for a text has, of several kinds of text."""
    import faker
    import tiktoken

    lines = (line.split() for line in vocabulary.read_bytes().splitlines() if line.strip())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pattern = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{words}"
    encoding = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = {suffix: [*ROOT.glob(f"src/**/*.{suffix}")] for suffix in ("py", "json", "yaml")}
    found = {name: "\n".join(path.read_text(encoding="utf-8") for path in paths) for name, paths in texts.items()}
    found["demo"] = (ROOT / "data" / "demo" / "train.jsonl").read_text(encoding="utf-8")
    for locale in ("en_US", "de_DE", "fr_FR", "pl_PL", "ru_RU", "el_GR", "ar_AA", "zh_CN", "ja_JP", "th_TH", "bn_BD"):
        faker.Faker.seed(1)
        made = faker.Faker(locale)
        found[locale] = "\n".join(made.text(400) for _ in range(200))
    for name, each in found.items():
        print(f"{name:<6} {len(encoding.encode(each, disallowed_special=())) / (len(each.encode()) / 4):.2f}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--estimate", type=Path, metavar="FILE", help="the vocabulary of Qwen's models")
    options.add_argument("--only", nargs="*", default=MADE, help="these data sets")
    asked = options.parse_args()
    if asked.estimate:
        estimates(asked.estimate)
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(ROOT / "recipes", "recipes")
        Path(".cache").mkdir()
        # What models are made of is counted once.
        Path(".cache/models").symlink_to(ROOT / ".cache" / "models")
        for name in asked.only:
            data = write(name, Path())
            for machine in MACHINES:
                try:
                    facts = recommended_for(data, machine)
                except InputError as error:
                    print(f"{name:<14} {machine:<14} refused: {error}", flush=True)
                    wrong += 1
                    continue
                print(row(name, machine, facts), flush=True)
                for problem in problems(facts, Path("recipes/recommended.yaml")):
                    wrong += 1
                    print(f"{'':<29} PROBLEM: {problem}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
