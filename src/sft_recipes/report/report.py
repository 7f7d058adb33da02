"""What happened in a run, and how several compare, each as one page that opens from the disk.

A run's page is made from its directory alone, a comparison's from the facts of `compare`.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.errors import InputError
from sft_recipes.evaluate.terms import METRICS, NAMES
from sft_recipes.files import write_whole
from sft_recipes.recipes.schema import as_yaml
from sft_recipes.report import charts, page, quality
from sft_recipes.report.page import DASH, estimate, folded, number, pairs, side, table, text
from sft_recipes.report.quality import OUTCOMES
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration

Facts = dict[str, Any]
GIB = 2**30
# What is drawn of log.jsonl: title, and what evaluations log beside it.
CURVES = {
    "loss": ("loss, nats per supervised token", "eval_loss"),
    "learning_rate": ("learning rate", None),
    "grad_norm": ("gradient norm", None),
    "tokens_per_second": ("tokens a second", None),
}


def write(run: Run) -> Path:
    """Write runs/NAME/report.html, whole or not at all, and give its path.

    Raises:
        InputError: The run is a rehearsal.
    """
    facts = run.facts()
    if facts.get("rehearsal"):
        raise InputError(
            f"{run.directory} is a rehearsal, whose model was tiny and random: it is no result and gets no report; "
            f"train in earnest with: make train RECIPE={facts['recipe']}"
        )
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    metrics, predictions = evaluation(run)
    parts = [_head(run, facts, metrics)]
    if metrics is not None:
        parts += quality.sections(metrics, predictions)
    parts += [_training(facts, charts.read_log(run), metrics), _recipe(facts, recipe), _findings(facts)]
    parts += [_in_effect(facts), _data(facts, metrics), _environment(facts)]
    path = run.directory / "report.html"
    write_whole(path, page.document(f"{run.name}: {facts['recipe']}", "\n".join(filter(None, parts))))
    return path


def evaluation(run: Run) -> tuple[Facts | None, list[Facts]]:
    """Metrics and predictions of the test rows, else of the validation rows, else of another split.

    Returns:
        None and no rows if nothing was evaluated.
    """
    others = sorted(path.name for path in run.directory.glob("metrics-*.json"))
    for path in (run.directory / name for name in ("metrics.json", "metrics-validation.json", *others)):
        if path.is_file():
            rows = path.with_name(f"{path.stem.replace('metrics', 'predictions', 1)}.jsonl")
            lines = rows.read_text(encoding="utf-8").split("\n") if rows.is_file() else []
            return json.loads(path.read_text(encoding="utf-8")), [json.loads(line) for line in lines if line]
    return None, []


def picture(run: Run, path: Path) -> None:
    """Write a PNG of the primary and a second metric: tuned model, base and trivial baselines, with intervals.

    Raises:
        InputError: The run was not evaluated, or no row of it could be scored.
    """
    metrics, _ = evaluation(run)
    if metrics is None or not metrics["models"]:
        raise InputError(f"{run.directory} has no evaluation to draw; make one with: make evaluate RUN={run.name}")
    lines = quality.lines(metrics)
    panels = [quality.panel(lines, key, title) for key, title in quality.drawn(metrics).items()]
    charts.save(path, panels, (6.4, 0.6 + 0.26 * len(lines)))


def _head(run: Run, facts: Facts, metrics: Facts | None) -> str:
    idea = facts["own"].get("description")
    ended = f" {_time(facts['ended'])}, after {duration(facts['seconds'])}" if "ended" in facts else ""
    parts = [
        f"<h1>Run {text(run.name)}</h1>",
        f"<p>Recipe <b>{text(facts['recipe'])}</b>{f': {text(idea)}' if idea else ''}</p>",
        f'<p class="faint">{text(facts["status"] + ended)}</p>',
    ]
    if facts["status"] != "finished":
        reason = facts.get("error") or "its figures are not final"
        parts.append(_verdict("none", f"the run is {facts['status']}", reason))
    if metrics is None:
        hint = f"nothing says whether the model got better. Evaluate it with: make evaluate RUN={run.name}"
        parts.append(_verdict("none", "not evaluated", hint))
    else:
        verdict = metrics["verdict"]
        parts.append(_verdict(verdict["outcome"], OUTCOMES[verdict["outcome"]], verdict["text"], verdict["reasons"]))
    return "\n".join(parts)


def _verdict(outcome: str, word: str, sentence: str, reasons: Iterable[str] = ()) -> str:
    """A sentence that begins with its outcome, which is put before it where it does not."""
    rest = sentence[len(word) :] if sentence.lower().startswith(word) else f": {sentence}"
    items = "".join(f"<li>{text(reason)}</li>" for reason in reasons)
    more = f"<ul>{items}</ul>" if items else ""
    return f'<div class="verdict {outcome}"><p><b>{text(word.capitalize())}</b>{text(rest)}</p>{more}</div>'


def _training(facts: Facts, log: Sequence[Facts], metrics: Facts | None) -> str:
    drawn = [
        charts.svg(
            f"curve-{key}",
            f"{title}, over optimizer steps",
            functools.partial(charts.curve, log=log, key=key, title=title, held_out=held_out),
        )
        for key, (title, held_out) in CURVES.items()
        if any(key in entry for entry in log)
    ]
    curves = side(drawn) if drawn else "<p>No step was logged.</p>"
    return f"<h2>Training</h2>{curves}{pairs('Time and memory', _measured(facts, metrics))}"


def _measured(facts: Facts, metrics: Facts | None) -> Iterator[tuple[str, str]]:
    """What was measured in training and evaluation, as (quantity, text)."""
    if measured := facts.get("measured"):
        kind = "resident" if facts["topology"]["use_cpu"] else "allocated on the GPU"
        yield "steps", f"{measured['step']:,} in {duration(measured['training_seconds'])}"
        if speed := measured["tokens_per_second"]:
            yield "throughput", f"{speed:,.0f} tokens/s within steps, padding not counted"
        yield "peak memory", f"{measured['peak_memory_bytes'] / GIB:.2f} GiB in the largest process, {kind}"
        if losses := measured["eval_loss"]:
            first, best = losses[0], min(losses, key=lambda entry: entry["eval_loss"])
            form = "{eval_loss:.4f} at step {step:,}"
            yield "held-out loss", f"{form.format(**first)}, at its lowest {form.format(**best)}"
        if measured["best_checkpoint"]:
            yield "best checkpoint", measured["best_checkpoint"]
        if adapter := measured.get("adapter"):
            yield "adapter", f"{count(adapter['tensors'], 'tensor')}, norm of lora_B {adapter['lora_b_norm']:.3f}"
    if "seconds" in facts:
        yield "in all", f"{duration(facts['seconds'])}, with loading, evaluations while training, and saving"
    for each in facts.get("resumed", []):
        yield "resumed", f"{_time(each['at'])} at step {each['step']:,}; speed and memory are those of the last launch"
    if metrics is not None and (scored := metrics["measured"]):
        speeds = ", ".join(f"{name} {each['rows_per_second']:,.0f} rows/s" for name, each in scored["models"].items())
        yield "evaluation", f"{speeds} on {scored['device']}, {scored['peak_memory_bytes'] / GIB:.2f} GiB at its peak"


def _recipe(facts: Facts, recipe: Facts) -> str:
    values = {**facts["own"], **recipe}
    base = {each["key"]: each["base"] for each in facts.get("differences", [])}
    own: list[list[str]] = []
    others: list[list[str]] = []
    for key, origin in facts["origins"].items():
        if key == "description":
            continue
        name, value = f"<code>{text(key)}</code>", text(as_yaml(values.get(key)), 300)
        if origin == "SET" or Path(origin.rpartition(":")[0]).stem == facts["recipe"]:
            before = text(as_yaml(base[key]), 300) if key in base and facts.get("extends") else DASH
            own.append([name, value, before, text(origin)])
        else:
            others.append([name, value, text(origin)])
    extends = facts.get("extends")
    header = ["key", "value", f"in {text(extends)}" if extends else "before", "written in"]
    said = table(f"Said by {facts['recipe']} itself or by SET=", header, own, "words")
    taken = table("Taken over from its base recipe, or derived", ["key", "value", "written in"], others, "words")
    more = folded(f"{count(len(others), 'value')} taken over or derived", taken) if others else ""
    return f"<h2>Recipe</h2>{said}{more}"


def _findings(facts: Facts) -> str:
    rows = []
    for each in facts["findings"]:
        more = {"Instead": each["instead"], "Evidence": each["evidence"], "Kept by the recipe": each["silenced"]}
        below = "".join(f'<p class="faint">{name}: {text(said)}</p>' for name, said in more.items() if said)
        rows.append([f"<code>{text(each['rule'])}</code>", text(each["severity"]), text(each["message"]) + below])
    found = table("By the rules, before the start", ["rule", "severity", "what it found"], rows, "words")
    return f"<h2>Findings</h2>{found or '<p>None.</p>'}"


def _in_effect(facts: Facts) -> str:
    parts = [
        pairs(part.capitalize(), [(key.replace("_", " "), _plain(key, value)) for key, value in found.items()])
        for part, found in (facts.get("in_effect") or {}).items()
    ]
    said = "Read off the loaded model, its rows and the trainer; what differs from the recipe stops a run."
    return f"<h2>What took effect</h2><p>{said if parts else 'The run ended before this was seen.'}</p>{side(parts)}"


def _plain(key: str, value: Any) -> str:
    """A fact of run.json as people read it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key.endswith("_share"):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _data(facts: Facts, metrics: Facts | None) -> str:
    data = facts["data"]
    rows = []
    for name, split in data["splits"].items():
        numbers = (split.get(key) for key in ("rows", "prepared_rows"))
        figures = [DASH if found is None else f"{found:,}" for found in numbers]
        digest = f"<code>{text(split['sha256'])}</code>" if split.get("sha256") else DASH
        rows.append([text(name), text(split["source"]), *figures, digest])
    prints = [("format", f"{data['format']}, {data['kind']}"), ("fingerprint of all", data["fingerprint"])]
    if metrics is not None:
        prints.append(("of what was evaluated", metrics["fingerprint"]))
    files = table("Files", ["split", "file", "rows", "prepared", "SHA-256"], rows, "words")
    return f"<h2>Data</h2>{files}{pairs('Format and fingerprints', prints)}"


def _environment(facts: Facts) -> str:
    git, where = facts["git"], facts["topology"]
    commit = f"{git['commit']}{' and uncommitted changes' if git['dirty'] else ''}" if git else "no repository"
    ran = {
        "command": facts["command"],
        "started": _time(facts["started"]),
        "hardware": "; ".join([*facts["gpus"], count(facts["cpus"], "CPU core")]),
        "topology": f"{where['name']}: {where['backend']}, {count(where['processes'], 'process')}",
        "git commit": commit,
        "Python": facts["python"],
    }
    both = side([pairs("What it ran on", ran.items()), pairs("Packages", facts["versions"].items())])
    return f"<h2>Environment</h2>{both}"


def _time(stamp: str) -> str:
    """A time of run.json without its seconds: `2026-11-25 02:52 +0000`."""
    return f"{stamp[:10]} {stamp[11:16]} {stamp[19:]}"


def comparison(facts: Facts, path: Path) -> None:
    """Write the page of a comparison, whole or not at all.

    Args:
        facts: what `compare.compare` gives.
        path: of the page.
    """
    entries, references, runs, data = (facts[key] for key in ("entries", "references", "runs", "data"))
    columns = {key: METRICS.get(key, key) for key in facts["metrics"]}
    drawn = {key: name for key, name in columns.items() if key in METRICS}
    lines: list[tuple[str, Facts]] = [(each["name"], {"tuned": each["metrics"]}) for each in entries]
    named = {each["name"]: {"runs": len(each["runs"]), **each["metrics"]} for each in entries}
    for each in references:
        name, role = NAMES.get(each["name"], each["name"]), "base" if each["kind"] == "base" else "other"
        lines.append((name, {role: each["metrics"]}))
        named[name] = each["metrics"]
    found = "".join(f"<li>{text(pair['text'])}</li>" for pair in facts["pairs"])
    title = f"Comparison of {'; '.join(each['name'] for each in entries)}"
    body = f"""\
<h1>{text(title)}</h1>
<p>The same {count(data["scored"], "row")} of {text(data["rows_source"])} ({text(facts["split"])}) for all, \
trained on {text(data["train_source"])}. Brackets hold {100 * facts["confidence"]:g} % intervals.</p>
{found and f'<div class="verdict"><ul>{found}</ul></div>'}
{"".join(f"<p>{text(note)}</p>" for note in facts["notes"])}
<h2>Differences</h2>
{_by_run(facts, "differences", "What the runs do differently")}
<h2>Quality</h2>
{quality.plots("compared", lines, dict(list(drawn.items())[:2]))}
{quality.estimates("Metrics, of several seeds the mean", named, columns, ("runs", "runs"), "numbers stacked")}
{_seeds(entries, runs, columns) if len(entries) < len(runs) else ""}
{_tests(facts["pairs"], columns[facts["primary"]])}
<h2>Cost</h2>
{_cost(entries)}
<h2>Environment</h2>
{_by_run(facts, "environment", "What the runs ran on differently")}
{pairs("Data", [("fingerprint", data["fingerprint"]), ("of the rows scored", data["rows_fingerprint"])])}"""
    write_whole(path, page.document(title, body))


def _by_run(facts: Facts, part: str, caption: str) -> str:
    names = [each["name"] for each in facts["runs"]]
    rows = []
    for each in facts[part]:
        rows.append([f"<code>{text(each['key'])}</code>", *(text(each["values"].get(n, ""), 200) for n in names)])
    return table(caption, ["", *map(text, names)], rows, "words") or "<p>None.</p>"


def _seeds(entries: Sequence[Facts], runs: Sequence[Facts], columns: dict[str, str]) -> str:
    """Every run, and for each group of seeds the least and the greatest of a metric."""
    rows = [[text(each["name"]), *(estimate(each["metrics"].get(key)) for key in columns)] for each in runs]
    for each in (each for each in entries if len(each["runs"]) > 1):
        spans = (each["metrics"].get(key) for key in columns)
        ends = [f"{number(span['min'])} to {number(span['max'])}" if span else DASH for span in spans]
        rows.append([f"{text(each['name'])}, least to most", *ends])
    return table("Every run", ["", *map(text, columns.values())], rows, "numbers stacked")


def _tests(found: Sequence[Facts], primary: str) -> str:
    rows = []
    for pair in found:
        test = pair["mcnemar"]
        chance = [f"{pair[key]:.2g}" for key in ("p", "p_holm")]
        only = [f"{test['only_a']:,} and {test['only_b']:,}", f"{test['p_holm']:.2g}"] if test else [DASH, DASH]
        names = f"{text(pair['a'])} against {text(pair['b'])}"
        ends = [OUTCOMES[pair["outcome"]], *only, text(" and ".join(pair["includes"]))]
        rows.append([names, estimate(pair["difference"], "+"), *chance, *ends])
    header = ["", primary, "p", "p, Holm", "the first is", "only one right", "McNemar p, Holm", "over"]
    return table("Paired tests on the same rows", header, rows, "numbers stacked")


def _cost(entries: Sequence[Facts]) -> str:
    rows = []
    for each in entries:
        cost = each["cost"]
        seconds, memory = cost["training_seconds"], cost["peak_memory_bytes"]
        numbers = (cost[key] for key in ("tokens_per_second", "steps", "trainable_parameters"))
        figures = [DASH if found is None else f"{found:,.0f}" for found in numbers]
        figures.append(DASH if memory is None else f"{memory / GIB:.2f} GiB")
        time = "not known, resumed" if seconds is None else duration(seconds)
        rows.append([text(each["name"]), time, duration(cost["seconds"]), *figures, text(cost["hardware"])])
    header = ["", "training", "in all", "tokens/s", "steps", "trainable", "peak memory", "hardware"]
    return table("What each took", header, rows)
