"""Other tools' SFT files, key by key in our words, and the recipe they make.

Nothing is guessed: a key that no table knows is unknown, and what a recipe cannot say is named with what to do
instead. Of a key that holds a secret only the name is shown, and its value reaches neither the recipe nor a message.
"""

import dataclasses
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError, refuse
from sft_recipes.interop import importers, tables
from sft_recipes.interop.importers import PROCESSES, TOOLS
from sft_recipes.interop.recognition import flat, lines, plain, recognise, refuse_other
from sft_recipes.interop.tables import Translation
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, secrets, topology
from sft_recipes.recipes.recipe import Value
from sft_recipes.terminal import count, table

OUTCOMES = ("kept", "translated", "added", "dropped", "assumed", "missing", "inexpressible", "unknown")
# What a person has to look at before the recipe says what the file said.
OPEN = ("assumed", "missing", "inexpressible", "unknown")
# What the file does not say itself.
_OURS = ("added", "assumed", "missing")


_HEADINGS = {
    "Model and quantisation": r"model_|dtype|attn_|load_in_|bnb_|use_bnb|chat_template|eos_token",
    "Data": r"train_file|validation_|data_|dataset_|max_length|packing|eval_packing|completion_only|assistant_only",
    "LoRA": r"use_peft|lora_|use_dora|use_rslora|adapter_",
    "Training hyperparameters": r"learning_rate|num_train|max_steps|per_device|global_batch|warmup|lr_sched|seed",
    "Logging and checkpointing": r"log|eval_|save_|report_to|load_best|metric_for|greater|early_|hub_|project|trackio",
    "Optimisation": r"",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What became of one key of the file, or of one that it needed and does not have (`line` None)."""

    key: str
    line: int | None
    outcome: str
    text: str
    sets: tuple[str, ...] = ()  # the recipe's keys that it decided


@dataclasses.dataclass(frozen=True)
class Audit:
    """A foreign file, read: every key's outcome, the recipe, and what our own loader says of it."""

    source: Path
    tool: str
    signs: tuple[str, ...]
    """The keys by which the tool was recognised; empty when it was named, or when only TRL's own keys are there."""
    processes: int
    entries: tuple[Entry, ...]
    recipe: dict[str, Any]
    template: str | None
    """The text of a chat template that stood in the file; `write` saves it beside the recipe."""
    problems: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the recipe says all that the file said, and loads."""
        return not self.problems and not any(entry.outcome in OPEN for entry in self.entries)


def audit(path: Path, tool: str | None = None, processes: int | None = None) -> Audit:
    """Read a file of another tool and say what becomes of each key.

    Raises:
        InputError: The file cannot be read, is a recipe of ours, is of no known tool, or trains something else.
    """
    values = _read(path)
    tool, signs = recognise(path, values, tool)
    file = flat(values, tool)
    refuse_other(path, tool, file)
    number, why = _processes(path, file, processes)
    added = importers.defaults(tool, file, number)
    whole = file | added
    result = _Result(tool, lines(path), added)
    accumulation = TOOLS[tool].accumulation
    together = (accumulation, "batch_size") if tool == "axolotl" else (accumulation,)
    for key, value in file.items():
        if value is None and key in (*added, *together):
            result.add(key, "dropped", importers.empty(tool).why)
        elif key not in together:
            result.take(key, value, whole)
    for key, value in added.items():
        if key != accumulation:
            result.default(key, value, file)
    result.batch(whole, number, why)
    result.state_rest(number)
    entries = sorted(result.entries, key=lambda entry: (entry.line is None, entry.line or 0))
    if "description" not in result.recipe:
        result.recipe = {"description": f"Translated from {TOOLS[tool].title}'s {plain(path.name)}."} | result.recipe
    made = Audit(path, tool, signs, number, tuple(entries), _ordered(result.recipe), result.template)
    return dataclasses.replace(made, problems=tuple(_problems(made)))


def write(audit: Audit, out: Path) -> list[Path]:
    """Write the recipe, and the chat template beside it if there is one; what exists is never overwritten.

    Returns:
        The files that were written.

    Raises:
        InputError: One exists already, or cannot be written, or our own loader would refuse the recipe.
    """
    refuse(f"{out} is not written: {problem}" for problem in audit.problems)
    if out.suffix != ".yaml" or not recipes.NAME.fullmatch(out.stem):
        raise InputError(f"{out} is not a recipe file; write one such as recipes/NAME.yaml")
    template = out.with_suffix(".jinja")
    files = {template: audit.template} if audit.template is not None else {}
    files[out] = text(audit, template if audit.template is not None else None)
    refuse(f"{path} exists and is never overwritten; choose another name" for path in files if path.exists())
    for path, content in files.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return list(files)


def text(audit: Audit, template: Path | None = None) -> str:
    """The recipe as YAML under its headings, with a line of comment for every key that is not as the file has it."""
    said: dict[str, list[Entry]] = {}
    for entry in audit.entries:
        if entry.outcome != "kept":
            for key in entry.sets:
                said.setdefault(key, []).append(entry)
    lines = [f"# {plain(audit.source.name)} of {TOOLS[audit.tool].title}, translated by `sft-recipes audit`."]
    still_open = [entry for entry in audit.entries if entry.outcome in OPEN and not entry.sets]
    if still_open:
        lines += ["# Not said here:", *(f"#   {entry.key}: {entry.text}" for entry in still_open)]
    heading, commented = "", set()
    for key, value in audit.recipe.items():
        if key not in ("description", "accelerate_config") and _heading(key) != heading:
            heading = _heading(key)
            lines += ["", f"# {heading}"]
        for entry in said.get(key, []):
            # A key of theirs that decides several of ours is explained once.
            if entry not in commented:
                commented.add(entry)
                own = entry.outcome in _OURS and entry.key in entry.sets
                lines.append(f"# {entry.outcome if own else entry.key}: {entry.text}")
        lines.append(recipes.line(key, str(template) if key == "chat_template_path" and template else value))
    return "\n".join(lines) + "\n"


def render(audit: Audit) -> str:
    """The audit as a table: `line  key  outcome  what`, then the sum and what our own loader says."""
    rows = [("line", "key", "outcome", "what")]
    rows += [("" if e.line is None else str(e.line), e.key, e.outcome, e.text) for e in audit.entries]
    width = max(len(line) for line, *_ in rows)
    lines = table([[line.rjust(width), *others] for line, *others in rows])
    more = f" and {len(audit.signs) - 4} more of its keys" if len(audit.signs) > 4 else ""
    by = f", by {', '.join(audit.signs[:4])}{more}" if audit.signs else ""
    totals = Counter(entry.outcome for entry in audit.entries)
    sums = ", ".join(f"{totals[outcome]} {outcome}" for outcome in OUTCOMES if totals[outcome])
    return "\n".join([f"{plain(str(audit.source))}: {TOOLS[audit.tool].title}{by}", lines, sums, *audit.problems])


def facts(audit: Audit) -> dict[str, Any]:
    """The same for machines."""
    return {
        "file": str(audit.source),
        "tool": audit.tool,
        "signs": list(audit.signs),
        "processes": audit.processes,
        "complete": audit.complete,
        "entries": [dataclasses.asdict(entry) for entry in audit.entries],
        "recipe": audit.recipe,
        "problems": list(audit.problems),
    }


class _Result:
    """What is collected while the keys of one file are taken."""

    def __init__(self, tool: str, lines: Mapping[str, int], added: Mapping[str, Any]) -> None:
        self.tool = tool
        self.lines = lines
        self.added = added  # the tool's defaults that count, of keys that the file does not set
        self.entries: list[Entry] = []
        self.recipe: dict[str, Any] = {}
        self.template: str | None = None
        self.by: dict[str, str] = {}  # which key of theirs decided a key of ours

    def add(self, key: str, outcome: str, words: str, sets: tuple[str, ...] = ()) -> None:
        line = None if outcome in ("added", "missing") else self.lines.get(key)
        self.entries.append(Entry(plain(key, 60), line, outcome, plain(words), sets))

    def take(self, key: str, value: Any, file: Mapping[str, Any]) -> None:
        """One key that the file sets."""
        if said := next(secrets.secrets_of(key, value), None):
            outcome = "dropped" if secrets.named(key) else "inexpressible"
            return self.add(key, outcome, f"{said}: {secrets.REMEDY}")
        if key in ("chat_template", "chat_template_jinja") and isinstance(value, str) and "{" in value:
            why = "its text is written to a .jinja file beside the recipe"
            self.apply(key, None, Translation("translated", why, {"chat_template_path": "chat_template.jinja"}))
            if self.by.get("chat_template_path") == key:
                self.template = value
            return None
        self.apply(key, value, importers.translate(self.tool, key, value, file))

    def apply(self, key: str, value: Any, said: Translation, outcome: str | None = None) -> None:
        """Put what a key says into the recipe, as far as it can stand there.

        Args:
            outcome: instead of the one that was said, if every value can stand.
        """
        taken, wrong, reasons = {}, [], [said.why] if said.why else []
        for ours, wanted in said.values.items():
            wanted, reason = _repaired(ours, wanted)
            if problem := schema.problem(ours, wanted):
                wrong.append(problem)
            elif ours in self.recipe and self.recipe[ours] != wanted:
                wrong.append(
                    f"{ours} is {_shown(self.recipe[ours])} by {self.by[ours]} already, and {_shown(wanted)} here; "
                    "keep one"
                )
            else:
                taken[ours] = wanted
                reasons += [reason] if reason else []
        self.recipe |= taken
        self.by |= dict.fromkeys(taken, key)
        arrow = ", ".join(f"{ours}: {_shown(wanted)}" for ours, wanted in taken.items())
        same = taken == {key: value} and type(taken[key]) is type(value)
        if wrong:
            return self.add(key, "inexpressible", "; ".join([arrow, *wrong] if arrow else wrong), tuple(taken))
        if outcome is None:
            outcome = "kept" if same and said.outcome == "translated" else said.outcome
        words = [] if value is None else [_shown(value) if same or not taken else f"{_shown(value)} -> {arrow}"]
        return self.add(key, outcome, "; ".join([*words, *reasons]), tuple(taken))

    def default(self, key: str, value: Any, file: Mapping[str, Any]) -> None:
        """A default of the tool, stated, since ours is another."""
        said = importers.translate(self.tool, key, value, {**file, **self.added})
        why, assumed = importers.default_why(self.tool, key, file)
        default = f"{TOOLS[self.tool].title}'s default, which the file does not set"
        why = "; ".join(filter(None, (said.why, why, default)))
        if said.values:
            self.apply(key, value, dataclasses.replace(said, why=why), "assumed" if assumed else "added")

    def batch(self, file: Mapping[str, Any], processes: int, why: str) -> None:
        """Micro-batch x accumulation x processes is our one fact, global_batch_size."""
        key = TOOLS[self.tool].accumulation
        size, steps = self.recipe.get("per_device_train_batch_size"), file.get(key)
        total = file.get("batch_size") if self.tool == "axolotl" else None
        if total is not None and steps is None:
            # Axolotl's batch_size is the rows of one process.
            key, steps = "batch_size", total // size if isinstance(total, int) and isinstance(size, int) else None
        elif total is not None:
            self.add("batch_size", "dropped", f"{_shown(total)}; {key} says it")
        if "global_batch_size" in self.recipe:
            if key in file:
                self.add(key, "dropped", f"{_shown(file[key])}; it follows from global_batch_size")
            return None
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1 or not isinstance(size, int):
            words = f"{_shown(file.get(key))}; set global_batch_size, which is micro-batch x accumulation x processes"
            return self.add(key, "inexpressible", words)
        who = why or "assumed, the file does not say: --gpus (GPUS=) does"
        words = f"{size} per device x {steps} accumulation x {count(processes, 'process')} ({who})"
        said = Translation("translated", words, {"global_batch_size": size * steps * processes})
        self.apply(key, file.get(key), said, ("added" if key in self.added else None) if why else "assumed")

    def state_rest(self, processes: int) -> None:
        """State what our loader wants and the file leaves to its tool, and say what only a person can."""
        for rule in tables.DATA["stated"]:
            if self.tool not in rule.get("tools", TOOLS) or not tables.all_hold(
                rule["if"], self.recipe | {"processes": processes}
            ):
                continue
            key, outcome = rule["key"], next(name for name in ("missing", "assumed", "cannot", "why") if name in rule)
            words = tables.sentence(rule[outcome])
            if outcome == "cannot":
                self.add(key, "inexpressible", f"{_shown(self.recipe.get(key))}; {words}", (key,))
                continue
            before = f"; not {_shown(self.recipe[key])}" if self.recipe.get(key) else ""
            self.recipe[key] = value = rule["value"]
            self.add(key, "added" if outcome == "why" else outcome, f"{_shown(value)}{before}; {words}", (key,))


def _read(path: Path) -> dict[str, Value]:
    values = recipes.read(path)
    if "extends" in values:
        raise InputError(f"{path} is a recipe already; `sft-recipes show {path}` checks it")
    return values


def _processes(path: Path, file: Mapping[str, Any], given: int | None) -> tuple[int, str]:
    """How many processes compute one step, and who says so."""
    if given is not None:
        return given, "as given"
    config = file.get("accelerate_config")
    said: list[tuple[Any, str]] = [(file.get(key), key) for key in PROCESSES]
    if isinstance(config, str):
        own = "" if config == "single_gpu" else "TRL's "
        said.append((tables.DATA["accelerate_configs"].get(config), f"{own}accelerate_config {config}"))
        beside = path.parent / config
        if beside.suffix in (".yaml", ".yml") and beside.is_file() and (number := _read(beside).get("num_processes")):
            said.append((number.value, plain(config, 60)))
    numbers = ((number, who) for number, who in said if isinstance(number, int) and number is not True and number > 0)
    return next(numbers, (1, ""))


def _repaired(key: str, value: Any) -> tuple[Any, str]:
    """A value in the type that its key has today, if it says the same: text for a list, `4.0` for 4, `"2e-4"`."""
    if isinstance(value, str) and value in (names := tables.DATA["values"].get(key, {})):
        return names[value][0], names[value][1]
    types = (schema.known().get(key) or {"types": []})["types"]
    if isinstance(value, str) and "str" not in types:
        if "list[str]" in types:
            return [part.strip() for part in value.split(",")], "a list here"
        if "float" in types or "int" in types:
            try:
                value = float(value)
            except ValueError:
                return value, ""
    if isinstance(value, float) and "int" in types and "float" not in types and value.is_integer():
        return int(value), ""
    return value, ""


def _problems(audit: Audit) -> list[str]:
    """What our own loader says of the recipe, as `sft-recipes show` would."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "recipe.yaml"
        template = path.with_name("chat_template.jinja") if audit.template is not None else None
        if template:
            template.write_text(audit.template or "", encoding="utf-8")
        path.write_text(text(audit, template), encoding="utf-8")
        try:
            recipe = recipes.load(path)
            if recipe["accelerate_config"]:
                topology.resolve(recipe, topology.read(recipe["accelerate_config"], "the recipe", audit.processes))
        except InputError as error:
            return [problem.replace(f"{path}", "recipe") for problem in error.problems]
    return []


def _heading(key: str) -> str:
    return next(heading for heading, pattern in _HEADINGS.items() if re.match(pattern, key))


def _ordered(recipe: Mapping[str, Any]) -> dict[str, Any]:
    first = ("description", "accelerate_config")
    places = {key: index for index, key in enumerate((*first, *_HEADINGS))}
    return dict(sorted(recipe.items(), key=lambda item: places.get(item[0], places[_heading(item[0])])))


def _shown(value: Any) -> str:
    return plain(schema.as_yaml(value), 80)
