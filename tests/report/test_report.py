"""The report of a run and of a comparison, looked at in a real browser that has no network."""

import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import MadeOnce

from sft_recipes.errors import InputError
from sft_recipes.evaluate import forgetting
from sft_recipes.launch import launch
from sft_recipes.plan import job as jobs
from sft_recipes.plan import preview
from sft_recipes.report import charts, quality, report, rows, sweeps
from sft_recipes.runs.run import Run

pytest_plugins = ["finished"]

LABELS = ["account", "cancel", "refund", "tracking"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&lt; \x1b[31m \u202eevil\u202c שלום $x_1$"
HOSTILE += " {{ 7*7 }}{% raw %}\n</svg>"


def estimate(value: float | None, width: float = 0.04) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": max(0.0, value - width), "high": min(1.0, value + width)}


def classified(rows: Sequence[dict[str, Any]], model: str, labels: list[str], sure: bool) -> dict[str, Any]:
    """Metrics in the form of metrics.json; counts are right, intervals only plausible."""
    predicted = [*labels, "invalid"]
    counts = [[0] * len(predicted) for _ in labels]
    for row in rows:
        said = row[model]["prediction"]
        counts[labels.index(row["gold"])][predicted.index("invalid" if said is None else said)] += 1
    support = [sum(line) for line in counts]
    right = [counts[i][i] for i in range(len(labels))]
    columns = [sum(line[i] for line in counts) for i in range(len(labels))]
    f1 = [2 * right[i] / (support[i] + columns[i]) if support[i] + columns[i] else 0.0 for i in range(len(labels))]
    accuracy, macro = sum(right) / len(rows), sum(f1) / len(labels)
    wrong = sum(line[-1] for line in counts)
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "n": 10 * i,
            "confidence": i / 10 + 0.05 if i else None,
            "accuracy": i / 10 + 0.02 if i else None,
            "interval": [i / 10 - 0.05, i / 10 + 0.06] if i else [None, None],
        }
        for i in range(10)
    ]
    return {
        "accuracy": estimate(accuracy),
        "macro_f1": estimate(macro),
        "micro_f1": estimate(accuracy),
        "weighted_f1": estimate(macro),
        "mcc": estimate(max(0.0, macro - 0.1)),
        "roc_auc": estimate(0.9) if sure else None,
        "ece": estimate(0.03, 0.01) if sure else None,
        "invalid": {"count": wrong, "share": estimate(wrong / len(rows), 0.01)},
        "classes": {
            label: {
                "precision": estimate(right[i] / columns[i] if columns[i] else None),
                "recall": estimate(right[i] / support[i] if support[i] else None),
                "f1": estimate(f1[i]),
                "support": support[i],
            }
            for i, label in enumerate(labels)
        },
        "confusion": {"gold": labels, "predicted": predicted, "counts": counts},
        "reliability": bins if sure else None,
    }


def generated(value: float) -> dict[str, Any]:
    return {
        "exact_match": estimate(value),
        "rougeL": estimate(value + 0.1),
        "chrf": estimate(value + 0.2),
        "valid_json": None,
        "unfinished": {"count": 3, "share": estimate(0.01, 0.01)},
    }


def evaluate(
    run: Run,
    rows: list[dict[str, Any]],
    *,
    task: str = "classification",
    labels: Sequence[str] = LABELS,
    groups: bool = False,
    outcome: str = "better",
    split: str = "test",
) -> None:
    """Write an evaluation of these rows into a run, as `evaluate` does."""
    models: dict[str, Any]
    baselines: dict[str, Any]
    if task == "classification":
        sure = bool(rows[0]["tuned"]["probabilities"])
        models = {name: classified(rows, name, labels, sure) for name in ("base", "tuned")}
        guess = {"majority": 0.14, "stratified": 0.12, "tfidf_logistic_regression": 0.78}
        baselines = {
            name: {**models["base"], "roc_auc": None, "ece": None, "reliability": None}
            | dict.fromkeys(("accuracy", "macro_f1", "micro_f1", "weighted_f1", "mcc"), estimate(value))
            for name, value in guess.items()
        }
        baselines["always"] = dict.fromkeys(labels, baselines["majority"])
        primary = "macro_f1"
    else:
        models = {"base": generated(0.2), "tuned": generated(0.7)}
        baselines = {"most_common_answer": generated(0.05), "nearest_training_row": generated(0.3)}
        primary = "rougeL"
    by = sorted({row["group"] for row in rows}) if groups else []
    keys = ("accuracy", "macro_f1", "fpr", "fnr") if task == "classification" else ("exact_match", "rougeL", "chrf")
    figures = {name: {key: estimate(0.8 if name == "tuned" else 0.3, 0.1) for key in keys} for name in models}
    gap = {**estimate(0.1, 0.05), "largest": by[0] if by else None, "smallest": by[-1] if by else None}
    metrics = {
        "schema": 1,
        "run": run.name,
        "recipe": "demo",
        "task": task,
        "predict_by": "likelihood" if task == "classification" and sure else "generation",
        "split": split,
        "settings": {
            "labels": None,
            "label_field": None,
            "label_pattern": None,
            "max_new_tokens": None,
            "json_schema": None,
            "group_column": "group" if groups else None,
            "source": "data/demo/test.jsonl",
        },
        "fingerprint": "ab" * 32,
        "rows": len(rows),
        "leaked": 0,
        "scored": len(rows),
        "labels": labels if task == "classification" else None,
        "primary": primary,
        "seed": 0,
        "resamples": 2000,
        "confidence": 0.95,
        "models": models,
        "baselines": baselines,
        "paired": {
            name: {
                "metric": primary,
                "difference": estimate(0.3),
                "p": 0.0005,
                "p_holm": 0.001,
                "outcome": outcome,
                "mcnemar": {"only_tuned": 300, "only_other": 12, "p": 1.2e-40},
            }
            for name in ("base", *(name for name in baselines if name != "always"))
        },
        "groups": {
            "column": "group",
            "minimum": 30,
            "by": {name: {"n": sum(row["group"] == name for row in rows), **figures} for name in by},
            "gaps": {name: dict.fromkeys(keys, gap) for name in models},
        }
        if groups
        else None,
        "verdict": {
            "outcome": outcome,
            "text": "macro F1 0.93, at least 0.10 above the base model and every trivial baseline",
            "reasons": ["against TF-IDF + logistic regression +0.15 [+0.12, +0.18]"],
        },
        "measured": {
            "device": "cpu",
            "load_seconds": 3.1,
            "process_seconds": 14.2,
            "peak_memory_bytes": 812000000,
            "models": {name: {"seconds": 1.2, "rows": len(rows), "rows_per_second": 640.1} for name in models},
        },
    }
    end = "" if split == "test" else f"-{split}"
    (run.directory / f"metrics{end}.json").write_text(json.dumps(metrics), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run.directory / f"predictions{end}.jsonl").write_text(lines, encoding="utf-8")


def classification_rows(
    number: int,
    labels: Sequence[str] = LABELS,
    *,
    prompt: str = "Name the intent of this message of a customer:\n\nmessage {n}",
    sure: bool = True,
) -> list[dict[str, Any]]:
    """Predictions of a base model that guesses and of a tuned one that is mostly right."""
    rng = random.Random(7)  # noqa: S311, seeded rows, no secrets

    def said(gold: str, right: float) -> dict[str, Any]:
        prediction = gold if rng.random() < right else rng.choice(labels)
        if not sure:
            prediction = prediction if rng.random() < 0.97 else None
            return {
                "prediction": prediction,
                "probabilities": None,
                "text": prediction or "none of <these>",
                "finished": True,
            }
        top = rng.uniform(0.4, 1.0)
        rest = (1 - top) / max(1, len(labels) - 1)
        odds = {label: top if label == prediction else rest for label in labels}
        return {"prediction": prediction, "probabilities": odds, "text": None, "finished": None}

    rows = []
    for n in range(1, number + 1):
        gold = rng.choice(labels)
        rows.append(
            {
                "row": n,
                "id": f"{n:016x}",
                "prompt": prompt.replace("{n}", str(n)),
                "group": rng.choice(["formal", "casual", "terse"]),
                "gold": gold,
                "reference": gold,
                "leaked": False,
                "base": said(gold, 0.2),
                "tuned": said(gold, 0.9),
            }
        )
    return rows


def answer_rows(number: int, prompt: str = "Say {n} in words.") -> list[dict[str, Any]]:
    """Predictions of a generation task; the tuned model has two of three right."""
    rows = []
    for n in range(1, number + 1):
        answer = f"the number {n} in a few words"
        said = {"probabilities": None, "finished": True}
        tuned = answer if n % 3 else "something else entirely"
        rows.append(
            {
                "row": n,
                "id": f"{n:016x}",
                "prompt": prompt.replace("{n}", str(n)),
                "group": None,
                "gold": None,
                "reference": answer,
                "leaked": False,
                "base": {"prediction": "the number", "text": "the number", **said},
                "tuned": {"prediction": tuned, "text": tuned, **said},
            }
        )
    return rows


def logged(steps: int) -> str:
    """A log as training writes it, with one spike of the gradient norm and evaluations."""
    entries: list[dict[str, Any]] = [{"step": 0, "epoch": 0, "time": 0.0, "eval_loss": 1.2}]
    for step in range(1, steps + 1):
        entries.append(
            {
                "step": step,
                "loss": 1 / step,
                "grad_norm": 25.0 if step == steps // 3 else 0.5,
                "learning_rate": 2e-4 * (1 - step / steps),
                "tokens_per_second": 5000.0 + step % 7,
            }
        )
        if step % max(1, steps // 4) == 0:
            entries.append({"step": step, "eval_loss": 0.2 + 1 / step})
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def trained(directory: Path) -> None:
    """A finished run, everything in it but the training itself as a launch makes it."""
    made = launch.create(jobs.lint_or_raise(jobs.check("tiny")), "seen")
    made.log.write_text(logged(8), encoding="utf-8")
    made.update(
        status="finished",
        ended="2026-11-25T02:52:49+0000",
        seconds=41.5,
        in_effect={
            "base": {"four_bit_layers": 14, "parameters": 837248, "four_bit_share": 0.7827, "dtypes": ["float32"]},
            "data": {"rows": 64, "supervised_token_share": 0.0544, "pad_is_eos": False},
            "adapter": {"trainable_parameters": 139264, "dtypes": ["float32"], "modules": {"q_proj": 2, "v_proj": 2}},
            "run": {"peak_learning_rate": 0.002, "zero_stage": None, "device": "cpu"},
        },
        measured={
            "step": 8,
            "training_seconds": 30.12,
            "tokens_per_second": 5515.4,
            "samples_per_second": 100.3,
            "waiting_share": 0.0123,
            "mfu": 0.412,
            "peak_memory_bytes": 811646976,
            "best_checkpoint": "runs/seen/checkpoint-8",
            "eval_loss": [{"step": 0, "eval_loss": 1.2}, {"step": 8, "eval_loss": 0.325}],
            "adapter": {"tensors": 56, "lora_b_norm": 6.58},
        },
    )
    made.directory.rename(directory)


@pytest.fixture
def run(project: Path, made_once: MadeOnce) -> Run:
    """The run `seen`, which is made once for all tests."""
    return Run(Path(shutil.copytree(made_once("run-seen", trained), "runs/seen")))


@pytest.fixture
def reported(run: Run, made_once: MadeOnce) -> Run:
    """The run with an evaluation of 200 rows, whose report is written once for all tests."""

    def write(directory: Path) -> None:
        evaluate(run, classification_rows(200), groups=True)
        report.write(run)
        run.directory.rename(directory)

    written = made_once("run-reported", write)
    shutil.rmtree(run.directory, ignore_errors=True)
    shutil.copytree(written, run.directory)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        missing = "no Chromium to look at pages with; install one: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page that must ask for nothing, say nothing on the console and run nothing of others."""
    contexts = []

    def open_page(path: Path, width: int = 900, scheme: str = "light", **options: Any) -> Any:
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, **options))
        opened, complaints = contexts[-1].new_page(), []
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        opened.on("request", lambda request: complaints.append(request.url))
        opened.goto(path.absolute().as_uri(), wait_until="load")
        assert complaints == [path.absolute().as_uri()]
        return opened

    yield open_page
    for context in contexts:
        context.close()


# For each chart its label and size, how many marks it has, and what of it lies outside of its view.
CHARTS = """() => [...document.querySelectorAll("svg")].map(svg => {
  const view = svg.getBoundingClientRect()
  const marks = [...svg.querySelectorAll("path, use, text")].filter(each => !each.closest("defs, clipPath"))
  const outside = marks.filter(each => {
    const box = each.getBoundingClientRect()
    return box.left < view.left - 1 || box.right > view.right + 1 || box.top < view.top - 1
      || box.bottom > view.bottom + 1
  })
  return {label: svg.getAttribute("aria-label"), role: svg.getAttribute("role"), width: view.width,
    height: view.height, marks: marks.filter(each => each.getBoundingClientRect().width > 0).length,
    outside: outside.map(each => each.outerHTML)}
})"""

# The least contrast of text with what is behind it (WCAG 2.2), and that text.
CONTRAST = """() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number)
  const over = (top, below) => { const a = top.length > 3 ? top[3] : 1
    return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)) }
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const behind = element => {
    const up = element.parentElement ? behind(element.parentElement) : [255, 255, 255]
    return over(parse(getComputedStyle(element).backgroundColor), up) }
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  let least = [21, ""]
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement
    if (!texts.currentNode.data.trim() || element.closest("[aria-hidden], style, title, script")) continue
    const style = getComputedStyle(element), paper = behind(element)
    const ink = over(parse(element.closest("svg") ? style.fill : style.color), paper)
    const [high, low] = [light(ink), light(paper)].sort((a, b) => b - a)
    const ratio = (high + 0.05) / (low + 0.05)
    if (ratio < least[0]) least = [ratio, texts.currentNode.data]
  }
  return least
}"""

# Elements whose id is not theirs alone, and references that lead nowhere.
BROKEN_IDS = """() => {
  const ids = [...document.querySelectorAll("[id]")].map(each => each.id)
  const used = [...document.documentElement.outerHTML.matchAll(/(?:href="|url\\()#([^")]+)/g)].map(found => found[1])
  return [...ids.filter((id, n) => ids.indexOf(id) !== n), ...used.filter(id => !ids.includes(id))]
}"""


# Elements that none of our pages has, and scripts besides the two of its rows.
FOREIGN = """[...document.querySelectorAll("script, img, iframe, object, [onerror]")]
  .filter(each => each.id !== "rows-data" && !each.matches("#rows-data + script:last-of-type")).length"""


def fits(opened: Any) -> bool:
    return opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def words(opened: Any) -> str:
    """The text of a page without its script, folded parts too, with one space between words and between cells."""
    opened.evaluate("document.querySelectorAll('script, #browser').forEach(each => each.remove())")
    opened.evaluate("document.querySelectorAll('td, th, small, li').forEach(each => each.before(' '))")
    return " ".join(opened.evaluate("document.body.textContent").split())


@pytest.mark.parametrize(("scheme", "width"), [("light", 900), ("dark", 900), ("light", 380)])
def test_a_report_is_drawn_readable_and_quiet(
    reported: Run, look: Callable[..., Any], scheme: str, width: int
) -> None:
    opened = look(reported.report, width, scheme)
    drawn = opened.evaluate(CHARTS)
    assert len(drawn) == 2 + 2 + 4 + 4, "models, reliability, groups, curves"
    for chart in drawn:
        assert chart["role"] == "img" and chart["label"]
        assert chart["width"] > 250 and chart["height"] > 80 and chart["marks"] > 10
        assert chart["outside"] == []
    assert opened.evaluate(BROKEN_IDS) == []
    ratio, text = opened.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    assert fits(opened)
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[scheme]


def test_a_report_says_what_the_run_directory_says(reported: Run, look: Callable[..., Any]) -> None:
    said = words(look(reported.report))
    metrics = json.loads((reported.directory / "metrics.json").read_text(encoding="utf-8"))
    tuned = metrics["models"]["tuned"]
    macro, refund = tuned["macro_f1"], tuned["classes"]["refund"]
    assert said.startswith("Run seen Recipe tiny: A tiny model on a CPU. finished 2026-11-25 02:52 +0000, after 42 s")
    assert f"Better: {metrics['verdict']['text']} {metrics['verdict']['reasons'][0]}" in said
    assert f"tuned model 0 {macro['value']:.3f} [{macro['low']:.3f}, {macro['high']:.3f}]" in said
    assert f"refund {refund['support']} {refund['precision']['value']:.3f}" in said
    assert "TF-IDF + logistic regression +0.300 [+0.260, +0.340] 0.0005 0.001 better 300 12 1.2e-40" in said
    assert "peak memory 0.76 GiB in the largest process, resident" in said
    assert "5,515 tokens/s and 100.3 rows/s within steps, padding not counted; MFU 41 %" in said
    assert "waiting for rows 1.2 % of the time of steps" in said
    assert "modules q_proj 2, v_proj 2" in said
    assert "supervised token share 5.4 %" in said
    assert reported.facts()["data"]["fingerprint"] in said
    lora, inherited = (
        said.index("lora_r 8 32 recipes/tiny.yaml:"),
        said.index("lora_task_type CAUSAL_LM recipes/default.yaml:"),
    )
    assert lora < said.index("values taken over or derived") < inherited


def test_the_confusion_matrix_is_that_of_the_predictions(run: Run, look: Callable[..., Any]) -> None:
    rows = classification_rows(200, sure=False)
    evaluate(run, rows)
    opened = look(report.write(run))
    lines = opened.evaluate(
        """() => [...document.querySelector(".matrix").rows].slice(1).map(row =>
           [...row.cells].slice(1).map(cell => Number(cell.textContent.replace("·", "0"))))"""
    )
    said = [*LABELS, None]
    assert lines == [
        [sum(row["gold"] == gold and row["tuned"]["prediction"] == each for row in rows) for each in said]
        for gold in LABELS
    ]
    assert "invalid none of <these>" in words(opened)
    assert "Reliability" not in words(opened)


def shown(opened: Any) -> tuple[str, list[str]]:
    """What the filters of a page leave: how many rows they say, and the titles of those listed."""
    return opened.inner_text("output"), opened.locator(".list .row > p").all_inner_texts()


def test_every_row_is_there_to_filter_and_a_cell_of_the_matrix_leads_to_its_rows(
    reported: Run, look: Callable[..., Any]
) -> None:
    each = classification_rows(200)
    opened = look(reported.report)
    wrong = [row for row in each if row["tuned"]["prediction"] != row["gold"]]
    told, listed = shown(opened)
    assert told == f"{len(wrong)} of 200 rows, {min(25, len(wrong))} shown"
    assert [int(text.split()[1]) for text in listed] == [row["row"] for row in wrong][:25]
    opened.select_option("[name=group]", label="terse")
    opened.select_option("[name=outcome]", label="wrong where another is right")
    lost = [row for row in wrong if row["group"] == "terse" and row["base"]["prediction"] == row["gold"]]
    assert shown(opened)[0] == f"{len(lost)} of 200 rows, {len(lost)} shown"
    opened.click("button[type=reset]")
    opened.fill("[name=text]", "MESSAGE 19")
    opened.select_option("[name=outcome]", label="any")
    opened.select_option("[name=order]", label="surest first")
    odds = [row["tuned"]["probabilities"][row["tuned"]["prediction"]] for row in each if "19" in str(row["row"])[:2]]
    found = [float(re.search(r"tuned model \w+ ([\d.]+)", text)[1]) for text in shown(opened)[1]]
    assert found == [round(value, 3) for value in sorted(odds, reverse=True)]
    pair = [row["row"] for row in each if (row["gold"], row["base"]["prediction"]) == ("cancel", "refund")]
    place = f"[data-pair='1 {LABELS.index('cancel')} {LABELS.index('refund')}'] button"
    assert opened.inner_text(place) == str(len(pair))
    opened.click(place)
    opened.wait_for_function(f"document.querySelector('output').textContent.startsWith('{len(pair)} of')")
    assert [int(text.split()[1]) for text in shown(opened)[1]] == pair[:25]
    # The policy lets no other script run, whoever puts it there.
    opened.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'globalThis.ran = 1'}))"
    )
    assert opened.evaluate("globalThis.ran") is None
    # Without a script the page is whole but for its filters.
    opened = look(reported.report, java_script_enabled=False)
    assert opened.locator("#browser").is_hidden() and opened.get_by_text("Filters need JavaScript").is_visible()
    assert opened.get_by_text("Wrong by the tuned model").is_visible()
    assert opened.locator(".matrix button").count() == 0 and opened.locator(".matrix td").count() > 10


def test_of_more_rows_than_a_page_has_room_for_it_says_so_and_keeps_the_misses() -> None:
    each = classification_rows(12_000, prompt="<b>é</b>{n} " + "x" * 500)
    found = rows.browser(each, {"tuned model": [row["tuned"] for row in each]}, LABELS, "wrong")
    assert (found["rows"], found["of"], found["limit"]) == (10_000, 12_000, 80)
    kept = {row[0] for row in found["data"]["rows"]}
    assert {row["row"] for row in each if row["tuned"]["prediction"] != row["gold"]} <= kept
    assert len(json.dumps(found["data"], ensure_ascii=False, separators=(",", ":"))) < 2_000_000


def test_a_report_has_contents_values_on_its_points_and_explains_its_terms(run: Run, look: Callable[..., Any]) -> None:
    evaluate(run, classification_rows(200), groups=True)
    path = run.directory / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    metrics["models"]["tuned"]["ece"] = estimate(0.2, 0.01)
    path.write_text(json.dumps(metrics), encoding="utf-8")
    opened = look(report.write(run))
    assert opened.locator("nav a").all_inner_texts() == opened.locator("h2").all_inner_texts()
    assert opened.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    values = opened.locator("svg use > title").evaluate_all("found => found.map(each => each.textContent)")
    macro = metrics["models"]["tuned"]["macro_f1"]
    for value in (
        f"tuned model: macro F1 {macro['value']:.3f} ({macro['low']:.3f} to {macro['high']:.3f})",
        "terse (",
        "10 rows of mean confidence 0.150: accuracy 0.120 (0.050 to 0.160)",
        "training, step 4: 0.25",
        "eval loss, step 8: 0.325",
    ):
        assert any(each.startswith(value) for each in values), value
    terms = opened.locator(".terms dt").all_inner_texts()
    assert {"MCC", "ECE", "FPR", "FNR", "McNemar", "Holm"} <= {*terms}
    marked = opened.locator("abbr").evaluate_all("found => found.map(each => [each.textContent, each.title])")
    assert all(title for _, title in marked) and "McNemar p" in [name for name, _ in marked]
    regions = "[...document.querySelectorAll('.scroll')].every(each => each.tabIndex === 0 && each.ariaLabel)"
    assert opened.evaluate(regions)
    assert (
        "Calibration got worse than that of the base: ECE 0.200 (0.190 to 0.210) against 0.030 (0.020 to 0.040). On "
        "average the tuned model's confidence is 0.683 and its accuracy 0.653, so it is too sure of its answers."
    ) in words(opened)
    metrics["models"]["base"]["ece"] = estimate(0.19, 0.02)
    (sentence,) = quality.less_calibrated(metrics["models"])
    assert "0.190 (0.170 to 0.210), whose intervals overlap." in sentence
    metrics["models"]["base"]["ece"] = estimate(0.21)
    assert [*quality.less_calibrated(metrics["models"])] == []


def test_what_a_run_forgot_has_a_section_with_its_sentence_and_table(run: Run, look: Callable[..., Any]) -> None:
    right = {
        name: {str(row): float(row < share) for row in range(200)} for name, share in (("base", 150), ("tuned", 120))
    }
    tasks = {"sums": {"metric": "acc", "higher_is_better": True, "values": right}}
    tasks["opposites"] = tasks["sums"] | {"values": {"base": right["base"], "tuned": right["base"]}}
    (run.directory / forgetting.FILE).write_text(json.dumps({"tasks": forgetting.compared(tasks)}), encoding="utf-8")
    opened = look(report.write(run), 380)
    assert opened.locator("nav a").first.inner_text() == opened.locator("h2").first.inner_text() == "What it forgot"
    assert fits(opened) and opened.evaluate(CONTRAST)[0] >= 4.5
    said = words(opened)
    assert "Worse on sums than the base, by Holm over 2 tasks." in said
    assert "sums (acc) 200 0.750 [0.686, 0.805] 0.600 [0.531, 0.665] \N{MINUS SIGN}0.150 [" in said
    assert "] 3.7e-09 worse opposites (acc) 200 0.750 " in said and "1 no real difference" in said


def test_a_dark_report_is_printed_dark_on_white_with_nothing_folded(reported: Run, look: Callable[..., Any]) -> None:
    opened = look(reported.report, scheme="dark")
    folded = """[...document.querySelectorAll("details table")].map(each => each.checkVisibility())"""
    assert not any(opened.evaluate(folded))
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    ratio, text = opened.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    boxes = """[...document.querySelectorAll("details table")].map(each => each.getBoundingClientRect().height)"""
    assert min(opened.evaluate(boxes)) > 50
    assert opened.pdf().startswith(b"%PDF")


@pytest.mark.promise("hostile", "HTML and scripts in rows, labels and names of a report, in a browser")
def test_hostile_text_is_shown_and_runs_nothing(run: Run, look: Callable[..., Any]) -> None:
    labels = [f"{HOSTILE} {n}" for n in range(3)]
    rows = classification_rows(60, labels, prompt=HOSTILE * 3 + "{n}")
    for row in rows:
        row["group"] = f"$x_1$ {HOSTILE}"
    evaluate(run, rows, labels=labels, groups=True)
    facts = run.facts()
    facts["own"]["description"] = facts["recipe"] = facts["command"] = HOSTILE
    facts["findings"] = [dict.fromkeys(("rule", "severity", "message", "instead", "evidence", "silenced"), HOSTILE)]
    run.write(facts)
    opened = look(report.write(run))
    assert opened.evaluate(FOREIGN) == 0
    assert len(opened.evaluate(CHARTS)) == 12
    assert opened.evaluate("document.querySelector('.list').textContent").count("onerror=alert(2)") > 10
    text = opened.evaluate("document.body.textContent")
    assert text.count("<script>alert(1)</script><img src=x onerror=alert(2)> \"'&lt; \\x1b[31m \\u202eevil") > 40
    assert text.count("{{ 7*7 }}{% raw %}") > 20
    assert "\u202e" not in text and "\x1b" not in text
    assert fits(opened)
    assert "$x_1$" in opened.evaluate("document.querySelector('[aria-label^=FPR]').textContent")


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_a_long_run_on_long_rows_makes_a_small_page(run: Run, look: Callable[..., Any], task: str) -> None:
    labels = [f"class {n}" for n in range(40)]
    prompt = "{n} " + "<&> a long prompt " * 100
    rows = classification_rows(5000, labels, prompt=prompt) if task == "classification" else answer_rows(5000, prompt)
    for row in rows:
        row["group"] = f"group {row['row'] % 300}"
    evaluate(run, rows, task=task, labels=labels, groups=True)
    run.log.write_text(logged(20_000), encoding="utf-8")
    path = report.write(run)
    assert path.stat().st_size < 2_000_000
    opened = look(path)
    assert fits(opened)
    assert all(chart["outside"] == [] for chart in opened.evaluate(CHARTS))
    assert "400 more are not shown" in words(opened)
    assert opened.evaluate("Math.max(...[...document.querySelectorAll('tbody')].map(each => each.rows.length))") == 200


def test_what_is_cut_says_so(run: Run, look: Callable[..., Any]) -> None:
    evaluate(run, classification_rows(60, prompt="{n} " + "x" * 3000))
    said = words(look(report.write(run)))
    assert "x" * 900 in said and "x" * 1001 not in said
    assert "more characters" in said


def test_a_trained_run_without_evaluation_says_how_to_get_one(
    finished: Callable[..., Run], look: Callable[..., Any]
) -> None:
    run = finished()
    opened = look(report.write(run))
    assert "Not evaluated: nothing says whether the model got better." in words(opened)
    assert "make evaluate RUN=tuned" in words(opened)
    assert "Quality" not in words(opened)
    assert len(opened.evaluate(CHARTS)) == 4
    charts.draw_loss(run)
    assert run.curve.stat().st_size > 10_000


def test_a_validation_split_is_reported_where_no_test_rows_were_evaluated(run: Run, look: Callable[..., Any]) -> None:
    evaluate(run, classification_rows(80), split="validation")
    assert "Quality on validation" in words(look(report.write(run)))
    evaluate(run, classification_rows(70), split="train")
    assert "Quality on validation" in words(look(report.write(run)))
    evaluate(run, classification_rows(90))
    said = words(look(report.write(run)))
    assert "Quality on test 90 rows" in said and "Rows that tell most" in said


def test_a_generation_task_is_reported(run: Run, look: Callable[..., Any]) -> None:
    evaluate(run, answer_rows(60), task="generation")
    opened = look(report.write(run))
    said = words(opened)
    assert len(opened.evaluate(CHARTS)) == 2 + 4
    assert "most common answer" in said and "ROUGE-L" in said
    assert "Confusion" not in said and "Groups" not in said
    assert "Missed" in said and "something else entirely" in said and "Broken by training" in said


def test_a_run_without_base_scores_is_reported(run: Run, look: Callable[..., Any]) -> None:
    rows = classification_rows(60)
    evaluate(run, rows, outcome="none")
    path = run.directory / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    del metrics["models"]["base"], metrics["paired"]["base"]
    path.write_text(json.dumps(metrics), encoding="utf-8")
    lines = [json.dumps({key: each for key, each in row.items() if key != "base"}) + "\n" for row in rows]
    (run.directory / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    said = words(look(report.write(run)))
    assert (
        "No verdict" in said
        and "Missed" in said
        and "base model" not in said[said.index("Quality") : said.index("Training")]
    )


def test_a_run_of_which_no_row_could_be_scored_has_a_verdict_and_no_figures(
    run: Run, look: Callable[..., Any]
) -> None:
    evaluate(run, classification_rows(60))
    path = run.directory / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    text = "no verdict: every row's prompt is among the training rows"
    empty = {"models": {}, "baselines": {}, "paired": {}, "groups": None, "scored": 0, "leaked": 60}
    metrics |= {**empty, "verdict": {"outcome": "none", "text": text, "reasons": []}}
    path.write_text(json.dumps(metrics), encoding="utf-8")
    said = words(look(report.write(run)))
    assert "No verdict: every row's prompt is among the training rows" in said
    assert "Quality" not in said and "Training" in said


def test_a_full_fine_tune_is_reported(run: Run, look: Callable[..., Any]) -> None:
    facts = run.facts()
    facts["in_effect"]["adapter"]["modules"] = {}
    del facts["measured"]["adapter"]
    run.write(facts)
    said = words(look(report.write(run)))
    assert "modules none" in said and "lora_B" not in said


def test_a_failed_run_says_so_first(run: Run, look: Callable[..., Any]) -> None:
    facts = run.facts()
    for key in ("measured", "in_effect", "ended", "seconds"):
        del facts[key]
    facts |= {"status": "failed", "error": "RuntimeError: <disk> full"}
    (run.directory / "run.json").write_text(json.dumps(facts))
    run.log.unlink()
    said = words(look(report.write(run)))
    assert "The run is failed: RuntimeError: <disk> full" in said
    assert "No step was logged." in said and "The run ended before this was seen." in said


def test_a_resumed_run_lists_its_launches_and_names_the_loss_of_what_it_kept(run: Run) -> None:
    facts = run.facts()
    measured = facts["measured"] | {"kept_step": 4}
    measured["eval_loss"] = [{"step": step, "eval_loss": loss} for step, loss in ((0, 1.2), (4, 2.5), (8, 3.0))]
    resumed = [{"at": facts["started"], "step": 4, "skipped": []}]
    launches = [{"from_step": 0, "to_step": 6, "seconds": None}, {"from_step": 4, "to_step": 8, "seconds": 12.0}]
    run.write(facts | {"measured": measured, "resumed": resumed, "launches": launches})
    said = re.sub(r"<[^>]*>", " ", report.write(run).read_text(encoding="utf-8"))
    assert "1.2000 before training -&gt; 2.5000 at step 4; training made it worse" in said
    assert "from step 0 to 6, where it was killed" in said and "from step 4 to 8 in 12 s" in said
    assert "last launch" not in said
    # Of before launches were listed.
    run.write(facts | {"resumed": resumed})
    assert "speed and memory are those of the last launch" in report.write(run).read_text(encoding="utf-8")


def test_the_sources_of_a_split_have_a_table(run: Run) -> None:
    facts = run.facts()
    each = {"sha256": "f", "format": "alpaca", "rows": 30, "available": 30, "prepared_rows": 30, "weight": None}
    weighted = each | {"source": "<b>.jsonl", "weight": 0.25, "tokens": 1234, "supervised_tokens": 567}
    splits = facts["data"]["splits"]
    splits["train"] |= {"prepared_rows": 60, "sources": [each | {"source": "a.jsonl"}, weighted]}
    run.write(facts)
    said = re.sub(r"<[^>]*>", " ", report.write(run).read_text(encoding="utf-8"))
    assert re.search(r"&lt;b&gt;\.jsonl\s+alpaca\s+0\.25\s+30\s+30\s+50\.0 %\s+1,234\s+567", said)
    assert said.count("Sources of train") == 1 and "Sources of test" not in said


def test_a_line_that_a_crash_cut_off_is_no_obstacle(run: Run) -> None:
    run.log.write_text(logged(8) + '{"step": 9, "lo', encoding="utf-8")
    assert run.log_entries()[-1]["step"] == 8


def test_a_rehearsal_gets_no_report(run: Run) -> None:
    run.update(rehearsal=True)
    with pytest.raises(InputError, match="is a rehearsal, whose model was tiny and random"):
        report.write(run)
    assert not (run.directory / "report.html").exists()


def test_telling_rows_are_the_surest_misses_and_what_training_changed() -> None:
    def row(number: int, tuned: tuple[str, float], base: tuple[str, float], **more: Any) -> dict[str, Any]:
        said = {"tuned": tuned, "base": base}
        models = {m: {"prediction": label, "probabilities": {label: p}} for m, (label, p) in said.items()}
        return {"row": number, "gold": "a", "reference": "a", "leaked": False, **models, **more}

    rows = [
        *(row(n, ("b", 0.5 + n / 100), ("c", 0.9)) for n in range(1, 13)),
        row(20, ("b", 0.3), ("a", 0.9)),
        row(30, ("a", 0.8), ("b", 0.6)),
        row(31, ("a", 0.8), ("b", 0.7)),
        row(40, ("a", 0.9), ("a", 0.9)),
        row(50, ("b", 0.99), ("b", 0.99), leaked=True),
    ]
    chosen = [(why, each["row"]) for why, each in quality.telling("classification", rows)]
    assert chosen[:10] == [("missed", n) for n in range(12, 2, -1)]
    assert chosen[10:] == [
        ("broken by training", 20),
        ("fixed by training", 31),
        ("fixed by training", 30),
        ("missed", 2),
        ("missed", 1),
    ]
    many = [row(n, ("a", 0.9), ("b", 0.9)) for n in range(100)]
    assert len(quality.telling("classification", many)) == quality.TELLING


def test_a_long_curve_keeps_its_spikes(run: Run) -> None:
    run.log.write_text(logged(20_000), encoding="utf-8")
    with charts.figure(1, 1, (4, 2)) as (_, axes):
        charts.curve(axes, run.log_entries(), "grad_norm", "gradient norm")
        steps, values = axes.lines[0].get_data()
    assert len(steps) <= charts.MOST_POINTS and list(steps) == sorted(steps)
    assert values.max() == 25.0 and values.min() == 0.5


def test_a_run_that_logged_once_has_a_point_to_see() -> None:
    for log, mark in (([{"step": 5, "loss": 2.0}], "o"), ([{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}], "")):
        with charts.figure(1, 1, (4, 2)) as (_, axes):
            charts.curve(axes, log, "loss", "loss")
        assert axes.lines[0].get_marker() == mark


def compared(names: Sequence[str]) -> dict[str, Any]:
    """Facts as `compare` gives them: of the last entry there are two runs with other seeds."""

    def entry(name: str, value: float, runs: list[str]) -> dict[str, Any]:
        over = {"over": "rows"} if len(runs) == 1 else {"over": "seeds", "min": value - 0.01, "max": value + 0.01}
        return {
            "name": name,
            "runs": runs,
            "metrics": {key: {**estimate(value), **over} for key in ("macro_f1", "accuracy", "mcc")},
            "cost": {
                "training_seconds": 30.1 if len(runs) == 1 else None,
                "seconds": 41.5,
                "tokens_per_second": 5515.4,
                "peak_memory_bytes": 811646976,
                "steps": 150,
                "hardware": "CPU, 2 cores",
                "trainable_parameters": None,
                "evaluation_rows_per_second": 640.1,
            },
        }

    seeded = [f"{names[-1]}-{seed}" for seed in (42, 43)]
    entries = [entry(name, 0.9, [name]) for name in names[:-1]] + [entry(names[-1], 0.8, seeded)]
    runs = [entry(name, 0.9, [name]) for each in entries for name in each["runs"]]
    mcnemar = {"only_a": 12, "only_b": 3, "p": 0.03, "p_holm": 0.09}
    pairs = [
        {
            "a": a,
            "b": b,
            "difference": estimate(0.05),
            "p": 0.004,
            "p_holm": 0.012,
            "outcome": "better" if b == names[-1] else "not_distinguishable",
            "unequal_rows": 37,
            "includes": ["rows", "seeds"] if b == names[-1] else ["rows"],
            "mcnemar": None if b == names[-1] else mcnemar,
            "text": f"{a} and {b} in words",
        }
        for a, b in itertools.pairwise(names)
    ]
    return {
        "schema": 1,
        "split": "test",
        "task": "classification",
        "primary": "macro_f1",
        "confidence": 0.95,
        "data": {
            "fingerprint": "0c" * 32,
            "train_source": "data/train.jsonl",
            "train_rows": 64,
            "rows_source": "data/test.jsonl",
            "rows_fingerprint": "ab" * 32,
            "scored": 800,
        },
        "metrics": ["macro_f1", "accuracy", "mcc"],
        "entries": entries,
        "runs": runs,
        "references": [
            {"kind": "base", "name": "base", "runs": [], "metrics": entry("base", 0.1, [""])["metrics"]},
            {"kind": "baseline", "name": "majority", "runs": [], "metrics": {"macro_f1": estimate(0.05)}},
        ],
        "differences": [
            {"of": "recipe", "key": "lora_r", "values": {each["name"]: str(n) for n, each in enumerate(runs)}}
        ],
        "environment": [],
        "pairs": pairs,
        "notes": ["One seed each: what another seed would change is not in the intervals."],
    }


def made(facts: dict[str, Any], folder: Path) -> Path:
    """Logs, predictions and reports of the runs that facts compare; only the first has 20 of the rows wrong."""
    for number, each in enumerate(facts["runs"]):
        directory = folder / "runs" / each["name"]
        directory.mkdir(parents=True)
        rows = classification_rows(40)
        for row in rows[:20]:
            row["tuned"] = said(row["gold"] if number else LABELS[LABELS.index(row["gold"]) - 1], LABELS)
        (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / "log.jsonl").write_text(logged(8))
        if each is not facts["runs"][-1]:
            (directory / "report.html").touch()
    return folder / "runs"


def said(label: str, labels: Sequence[str]) -> dict[str, Any]:
    odds = {each: 0.7 if each == label else 0.1 for each in labels}
    return {"prediction": label, "probabilities": odds, "text": None, "finished": None}


def test_a_comparison_is_drawn_and_says_what_was_compared(look: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    facts = compared(["plain", "high_rank", "low_rate"])
    report.comparison(facts, path, made(facts, tmp_path))
    for scheme, width in (("light", 900), ("dark", 380)):
        opened = look(path, width, scheme)
        assert [chart["outside"] for chart in opened.evaluate(CHARTS)] == [[], [], [], []]
        assert opened.evaluate(BROKEN_IDS) == [] and fits(opened)
        assert opened.evaluate(CONTRAST)[0] >= 4.5
    together = opened.evaluate("document.querySelector('svg[aria-label^=\"eval loss\"]').textContent")
    assert all(f"{each['name']}, step 8: 0.325" in together for each in facts["runs"])
    links = opened.evaluate("[...document.querySelectorAll('a[href*=\"report.html\"]')].map(a => a.href)")
    assert links == [(tmp_path / "runs" / each["name"] / "report.html").as_uri() for each in facts["runs"][:-1]]
    listed = opened.evaluate("[...document.querySelectorAll('.list p')].map(each => each.textContent)")
    assert len(listed) == 20 and listed[0].startswith("row 1 · ") and "of 20 rows" in opened.inner_text("output")
    assert all(len(set(re.findall(r"(?:plain|high_rank|low_rate-4[23]) (\w+)", each))) > 1 for each in listed)
    said = words(opened)
    for expected in (
        "To 20 rows of 800 not all runs say the same.",
        "low_rate-43 (none; make report RUN=low_rate-43)",
        "Comparison of plain; high_rank; low_rate",
        "The same 800 rows of data/test.jsonl (test) for all",
        "plain and high_rank in words",
        "One seed each: what another seed would change",
        "low_rate 2 0.800 [0.760, 0.840]",
        "low_rate: least to most 0.790 to 0.810",
        "plain against high_rank +0.050 [+0.010, +0.090] 0.004 0.012 not distinguishable 12 and 3 0.09 rows",
        "high_rank against low_rate +0.050 [+0.010, +0.090] 0.004 0.012 better \u2013 \u2013 rows and seeds",
        "low_rate not known (resumed) 42 s 5,515 150 \u2013 0.76 GiB CPU, 2 cores 640",
        "lora_r 0 1 2 3",
    ):
        assert expected in said


@pytest.mark.promise("hostile", "HTML and scripts in a comparison, in a browser")
def test_hostile_text_in_a_comparison_is_shown_and_runs_nothing(look: Callable[..., Any], tmp_path: Path) -> None:
    facts = compared([f"{HOSTILE} {n}" for n in range(3)])
    facts["notes"] = [HOSTILE]
    facts["data"] |= dict.fromkeys(("train_source", "rows_source", "fingerprint"), HOSTILE)
    facts["differences"] = [
        {"of": "recipe", "key": HOSTILE, "values": {each["name"]: HOSTILE for each in facts["runs"]}}
    ]
    report.comparison(facts, tmp_path / "comparison.html", made(facts, tmp_path))
    opened = look(tmp_path / "comparison.html")
    assert opened.evaluate(FOREIGN) == 0
    text = opened.evaluate("document.body.textContent")
    assert text.count("onerror=alert(2)") > 25 and text.count("{{ 7*7 }}{% raw %}") > 10
    assert fits(opened)


@pytest.mark.promise("hostile", "HTML and scripts in the rows of a preview, in a browser")
def test_hostile_rows_in_a_preview_are_shown_and_run_nothing(look: Callable[..., Any], tmp_path: Path) -> None:
    row = {"row": 7, "tokens": 9, "supervised": 3, "tokens_lost": 2, "supervised_lost": 1, "lost": False}
    row |= {"segments": [["masked", HOSTILE], ["trained", f"</pre>{HOSTILE}"], ["lost", HOSTILE]]}
    facts = {"recipe": HOSTILE, "model": HOSTILE, "max_length": 9, "packing": False, "of": 1, "tokens_lost": 2}
    page = tmp_path / "preview.html"
    page.write_text(preview.as_html({**facts, "rows": [row]}), encoding="utf-8")
    opened = look(page)
    assert opened.evaluate("document.querySelectorAll('script, img, [onerror]').length") == 0
    text = opened.evaluate("document.body.textContent")
    assert text.count("onerror=alert(2)") >= 4
    assert "\u202e" not in text and "\x1b" not in text


def swept(folder: Path, **facts: Any) -> tuple[dict[str, Any], Path]:
    """Facts of a sweep as sweep.json holds them, and where its runs are, of which the first has a report."""
    tried = [(2e-4, [HOSTILE], 0.31), (1e-3, ["all-linear"], 0.305), (5e-5, [HOSTILE], 0.6), (9e-4, [HOSTILE], None)]
    states = ["finished", "finished", "pruned", "failed"]
    trials = [
        {
            "number": n,
            "run": f"s-t00{n}",
            "state": state,
            "values": {"learning_rate": rate, "lora_target_modules": modules},
            "eval_loss": loss,
            "evaluations": 3,
            "seconds": 61.0 if n else None,
        }
        for n, ((rate, modules, loss), state) in enumerate(zip(tried, states, strict=True))
    ]
    (folder / "runs" / "s-t000").mkdir(parents=True)
    (folder / "runs" / "s-t000" / "report.html").touch()
    space = {
        "learning_rate": {"low": 5e-5, "high": 1e-3, "log": True},
        "lora_target_modules": {"choices": [[HOSTILE], ["all-linear"]]},
    }
    asked = {
        "recipe": "tiny",
        "over": f"learning_rate=5e-5..1e-3 {HOSTILE}",
        "overrides": [HOSTILE],
        "data": "0c" * 32,
    }
    asked |= {"chosen_by": "Optuna", "seed": 42, "space": space, "trials": trials}
    return {"schema": 1, "name": "s", **asked, **facts}, folder / "runs"


@pytest.mark.promise("hostile", "HTML and scripts in the page of a sweep, in a browser")
def test_a_sweep_is_drawn_and_links_its_runs(look: Callable[..., Any], tmp_path: Path) -> None:
    facts, runs = swept(tmp_path)
    path = runs / "s.sweep" / "sweep.html"
    path.parent.mkdir()
    sweeps.write(path, facts, {"learning_rate": 0.9, "lora_target_modules": 0.1}, [(HOSTILE, HOSTILE)], runs)
    for scheme, width in (("light", 900), ("dark", 380)):
        opened = look(path, width, scheme)
        assert [chart["outside"] for chart in opened.evaluate(CHARTS)] == [[], []]
        assert opened.evaluate(BROKEN_IDS) == [] and fits(opened)
        assert opened.evaluate(CONTRAST)[0] >= 4.5
        assert opened.evaluate(FOREIGN) == 0
    links = opened.evaluate("[...document.querySelectorAll('th a')].map(a => a.href)")
    assert links == [(runs / "s-t000" / "report.html").as_uri()]
    values = opened.locator("svg title").evaluate_all("found => found.map(each => each.textContent)")
    assert "s-t001: learning_rate 0.001, eval loss 0.3050, finished" in values and len(values) == 2 * 3
    said = words(opened)
    for expected in (
        "4 trials: 2 finished, 1 pruned, 1 failed",
        "Lowest eval loss 0.3100, by s-t000: learning_rate 0.0002",
        "learning_rate 90 %",
        's-t001 0.3050 0.001 ["all-linear"] finished 1 min 1 s',
        "The lowest of 2 eval losses flatters itself",
    ):
        assert expected in said, expected
    assert "\u202e" not in said and "\x1b" not in said
    facts["trials"] = []
    sweeps.write(path, facts, {}, [], runs)
    assert "No trial has finished" in words(look(path))
