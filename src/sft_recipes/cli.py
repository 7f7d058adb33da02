"""The commands. Each imports what it needs when it runs, so that `--help` and a wrong recipe answer at once."""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_recipes.errors import InputError
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema
from sft_recipes.terminal import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 fine, 1 failed while running, 2 wrong input, 3 interrupted and resumable."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        if options.json:
            print(json.dumps({"problems": error.problems}, indent=2))
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough, as `head` does; what is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("error: stopped; nothing half-written is left behind", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="sft-recipes", description="Supervised fine-tuning recipes on TRL, checked.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="the same facts as JSON")
        sub.set_defaults(run=run)
        return sub

    def with_recipe(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("recipe", metavar="RECIPE", help="a name in recipes/, such as default")
        return with_model(with_overrides(sub))

    def with_overrides(
        sub: argparse.ArgumentParser, rows: str = "training rows, instead of the recipe's train_file"
    ) -> argparse.ArgumentParser:
        sub.add_argument("--set", action="append", default=[], metavar="'KEY=VALUE ...'", help="override recipe keys")
        sub.add_argument("--data", metavar="FILE", help=rows)
        return sub

    def with_model(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--model", metavar="NAME", help="a model of models/, instead of the recipe's")
        return sub

    def with_topology(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("--accel", metavar="NAME", help="an accelerate config of accelerate_configs/")
        sub.add_argument("--gpus", type=_count, metavar="N", help="processes, instead of the accelerate config's")
        return sub

    sub = with_topology(with_recipe(command("train", _train, "Fine-tune a recipe into runs/NAME.")))
    sub.add_argument("--name", help="the run's name; the recipe's name and the time without it")
    sub.add_argument("--resume", action="store_true", help="continue the run --name, if it is the same recipe")
    sub.add_argument("--seeds", metavar="'N ...'", help="train once for each of these seeds, one after another")
    text = "Train a recipe with several values, compare them, and write the best as a recipe."
    sub = with_topology(with_recipe(command("sweep", _sweep, text)))
    sub.add_argument("--over", required=True, metavar="'KEY=VALUE,VALUE KEY=LOW..HIGH'", help="what is varied")
    sub.add_argument(
        "--trials", type=_count, metavar="N", help="let Optuna choose so many; all combinations without it"
    )
    sub.add_argument("--jobs", type=_count, metavar="N", help="trials at a time; one for each GPU without it")
    sub.add_argument("--name", help="the runs are NAME-t000 and so on")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the best as this recipe")
    sub = command("resume", _resume, "Continue an interrupted run from its newest whole checkpoint.")
    sub.add_argument("name", metavar="NAME", help="the run's name")

    def with_run(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("run_name", metavar="RUN", help="the run's name")
        return sub

    sub = with_run(command("evaluate", _evaluate, "Score a finished run on rows it has not seen, with intervals."))
    sub.add_argument("--split", choices=SPLITS, help="test without it, or validation where there are no test rows")
    sub.add_argument("--base", action="store_true", help="score the base model on the same rows too")
    with_overrides(sub, "rows to evaluate on, instead of the recipe's test_file")
    with_run(command("report", _report, "Write the report of a run anew."))
    sub = command("compare", _compare, "Say what runs changed, what came of it, and which differences are real.")
    sub.add_argument("runs", metavar="RUN", nargs="+", help="the runs' names")
    sub.add_argument("--split", choices=SPLITS, default="test", help="test without it")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write a page (.html), Markdown (.md) or CSV (.csv)")
    sub = command("leaderboard", _leaderboard, "Rank the evaluated runs, as far as they can be told apart.")
    sub.add_argument("--split", choices=SPLITS, default="test", help="test without it")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write Markdown (.md) or CSV (.csv)")
    sub = with_run(command("merge", _merge, "Merge a run's adapter into unquantised base weights, and prove it."))
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="runs/RUN/merged without it")
    sub = with_run(command("predict", _predict, "Write what a run answers to the rows of a file."))
    sub.add_argument("--input", type=Path, required=True, metavar="FILE", help="rows with prompts")
    sub.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; beside the input without it")
    sub = with_run(command("chat", _chat, "Talk to a run in the terminal."))
    sub.add_argument("--base", action="store_true", help="begin with the base model")
    sub = with_run(command("push", _push, "Upload a run's adapter to the Hub."))
    sub.add_argument("--repo", required=True, metavar="ORG/NAME", help="the repository, made if it is not there")
    sub.add_argument("--merged", action="store_true", help="upload the merged model instead")
    sub.add_argument("--public", action="store_true", help="a new repository is public, not private")
    sub = with_topology(with_recipe(command("plan", _plan, "Say what a recipe will do before it runs.")))
    sub.add_argument("--gpu", metavar="NAME", help="a GPU to plan for, such as a100-80gb; the visible one without it")
    sub.add_argument("--trace", action="store_true", help="also run the real modules on tensors without data")
    sub.add_argument("--fetch", action="store_true", help="get the model's config and tokenizer from the Hub first")
    sub = with_recipe(command("fit", _fit, "Find the largest micro-batch that fits the same global batch."))
    sub.add_argument("--gpus", type=_count, default=1, metavar="N", help="how many GPUs; 1 without it")
    sub.add_argument("--vram", type=float, required=True, metavar="GIB", help="memory of one GPU, in GiB")
    sub = command("diff", _diff, "Show what two recipes do differently, why, and what follows.")
    sub.add_argument("a", metavar="A", help="a recipe")
    sub.add_argument("b", metavar="B", help="another recipe")
    with_topology(with_model(with_overrides(sub)))
    sub.add_argument("--gpu", metavar="NAME", help="a GPU to plan for, such as a100-80gb")
    sub = with_recipe(command("preview", _preview, "Show rows as the trainer sees them."))
    sub.add_argument("--rows", type=_count, default=5, metavar="N", help="how many rows; 5 without it")
    sub.add_argument("--seed", type=int, metavar="N", help="random rows instead of the first")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    text = "Run a recipe for a few steps with a tiny model, on CPU processes."
    sub = with_topology(with_recipe(command("rehearse", _rehearse, text)))
    sub.add_argument("--name", help="the rehearsal's name")
    sub = command("audit", _audit, "Check another tool's SFT configuration, and translate it into a recipe.")
    sub.add_argument("file", type=Path, metavar="FILE", help="YAML of TRL, alignment-handbook, Axolotl, LLaMA-Factory")
    sub.add_argument("--tool", metavar="NAME", help="whose it is, where its keys do not tell")
    sub.add_argument("--gpus", type=_count, metavar="N", help="processes it was written for, where it does not say")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the recipe there")
    sub = command("gpu", _gpu, "Measure this machine: memory, speed, accelerate configs, within a budget of seconds.")
    sub.add_argument("--budget", type=_count, metavar="SECONDS", help="in all; 400 without it")
    sub.add_argument("--only", metavar="'SECTION ...'", default="", help="these sections; all without it")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="where the result is written; benchmarks/ without it")
    command("rules", _rules, "List every rule that plan and train apply.")
    command("list", _list, "List the recipes and the one idea of each.")
    command("models", _models, "List the models that any recipe can be trained on.")
    text = "Print a resolved recipe: its base, overrides and what follows from them."
    sub = with_topology(with_recipe(command("show", _show, text)))
    beside = sub.add_mutually_exclusive_group()
    beside.add_argument("--origin", action="store_true", help="say where each value comes from")
    beside.add_argument("--why", action="store_true", help="say one reason for each value")
    text = "Write a resolved recipe that stock `trl sft --config` reads."
    sub = with_topology(with_recipe(command("export", _export, text)))
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="the YAML file to write")
    sub = with_model(command("pin", _pin, "Write the Hub's current commit of the base model into its file."))
    sub.add_argument("recipe", metavar="RECIPE", help="a name in recipes/, such as default")
    sub = command("why", _why, "Say what a key does, why it has its value, and what to change first when it is wrong.")
    sub.add_argument("key", metavar="KEY", help="a key of a recipe, such as lora_alpha")
    sub.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a name in recipes/, for its value and its neighbours"
    )
    sub = command("new", _new, "Write a recipe of three lines that extends another.")
    sub.add_argument("recipe", metavar="NAME", help="the new recipe's name")
    sub.add_argument("--from", dest="base", default="default", metavar="RECIPE", help="default without it")
    command("keys", _keys, "List every key a recipe may set, with type and default.")
    return top


SPLITS = ("test", "validation")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    from sft_recipes.launch import launch, seeds

    if options.seeds is not None:
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            code, runs = seeds.train_seeds(
                options.recipe,
                options.seeds,
                accel=options.accel,
                processes=options.gpus,
                overrides=_words(options),
                run_name=options.name,
                resume=options.resume,
            )
        if options.json:
            print(json.dumps([run.facts() for run in runs], indent=2))
        return code
    with _facts_on_stdout(options) as name_of:
        code, name_of["run"] = launch.train(
            options.recipe,
            accel=options.accel,
            processes=options.gpus,
            overrides=_words(options),
            run_name=options.name,
            resume=options.resume,
        )
    return code


def _sweep(options: argparse.Namespace) -> int:
    from sft_recipes.launch import sweep

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        code, facts = sweep.sweep(
            options.recipe,
            options.over,
            trials=options.trials,
            jobs=options.jobs,
            accel=options.accel,
            processes=options.gpus,
            overrides=_words(options),
            run_name=options.name,
            out=options.out,
        )
    if options.json:
        print(json.dumps(facts, indent=2))
    return code


def _evaluate(options: argparse.Namespace) -> int:
    from sft_recipes.evaluate import evaluate
    from sft_recipes.report import pages
    from sft_recipes.runs.run import Run

    rows = [] if options.data is None else [shlex.quote(f"test_file={json.dumps(options.data)}")]
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        code, path = evaluate.evaluate(
            options.run_name, split=options.split, base=options.base, overrides=[*options.set, *rows]
        )
        if path:
            pages.write(Run.open(options.run_name))
    if options.json and path:
        print(path.read_text(encoding="utf-8"), end="")
    return code


def _report(options: argparse.Namespace) -> int:
    from sft_recipes.report import report
    from sft_recipes.runs.run import Run

    path = report.write(Run.open(options.run_name))
    print(json.dumps({"file": str(path)}) if options.json else f"wrote {path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from sft_recipes.report import compare, report, tables

    _check_form(options.out, (".html", ".md", ".csv"))
    facts = compare.compare(options.runs, options.split)
    return _say_or_write(facts, tables, options, page=report.comparison)


def _leaderboard(options: argparse.Namespace) -> int:
    from sft_recipes.report import compare, tables

    _check_form(options.out, (".md", ".csv"))
    return _say_or_write(compare.leaderboard(options.split), tables, options)


def _merge(options: argparse.Namespace) -> int:
    from sft_recipes.deploy import merge

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        code, proof = merge.merge(options.run_name, options.out)
    if options.json:
        print(json.dumps(proof, indent=2))
    return code


def _predict(options: argparse.Namespace) -> int:
    from sft_recipes.deploy import predict

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        code, path = predict.predict(options.run_name, options.input, options.out)
    if options.json:
        print(json.dumps({"file": str(path)}))
    return code


def _chat(options: argparse.Namespace) -> int:
    from sft_recipes.deploy import chat

    return chat.chat(options.run_name, base=options.base)


def _push(options: argparse.Namespace) -> int:
    from sft_recipes.deploy import push

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        facts = push.push(options.run_name, options.repo, merged=options.merged, public=options.public)
    if options.json:
        print(json.dumps(facts, indent=2))
    return 0


def _check_form(out: Path | None, forms: Sequence[str]) -> None:
    if out is not None and out.suffix not in forms:
        raise InputError(f"OUT={out}: end the file's name in {' or '.join(forms)}, which says what is written")


def _say_or_write(facts: Any, tables: Any, options: argparse.Namespace, page: Any = None) -> int:
    """The lines for people or the facts as JSON, or a file in the form that its name says."""
    from sft_recipes.files import write_whole

    out = options.out
    if out is None or options.json:
        _say(facts, tables.render, options)
    if out is not None:
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            if out.suffix == ".html":
                _written(out, lambda: page(facts, out))
            else:
                text = tables.as_markdown(facts) if out.suffix == ".md" else tables.as_csv(facts)
                _written(out, lambda: write_whole(out, text))
    return 0


def _resume(options: argparse.Namespace) -> int:
    from sft_recipes.launch import launch

    with _facts_on_stdout(options) as name_of:
        code, name_of["run"] = launch.resume(options.name)
    return code


@contextlib.contextmanager
def _facts_on_stdout(options: argparse.Namespace) -> Any:
    """With --json the lines for people go to stderr, and stdout holds run.json when the run has ended."""
    name_of: dict[str, Any] = {}
    if not options.json:
        yield name_of
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield name_of
    print(json.dumps(name_of["run"].facts(), indent=2))


def _words(options: argparse.Namespace) -> list[str]:
    """The overrides of a command, with its MODEL and DATA among them."""
    words = [*options.set]
    if options.model is not None:
        words.append(shlex.quote(f"model={json.dumps(options.model)}"))
    if options.data is not None:
        words += [shlex.quote(f"train_file={json.dumps(options.data)}"), "dataset_name=null"]
    return words


def _say(facts: Any, render: Any, options: argparse.Namespace) -> None:
    """The facts as JSON, or the lines that people read."""
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for subject, text in render(facts):
        say(subject, text)


def _plan(options: argparse.Namespace) -> int:
    from sft_recipes.models import base_model
    from sft_recipes.plan import plan

    if options.fetch:
        base_model.fetch(recipes.load(options.recipe, recipes.parse_overrides(_words(options))))
    figures = plan.plan(
        options.recipe,
        accel=options.accel,
        processes=options.gpus,
        overrides=_words(options),
        gpu=options.gpu,
        traced=options.trace,
    )
    _say(figures, plan.render, options)
    return 2 if figures["blocking"] else 0


def _diff(options: argparse.Namespace) -> int:
    from sft_recipes.plan import diff

    where = {"accel": options.accel, "processes": options.gpus, "gpu": options.gpu}
    _say(diff.diff(options.a, options.b, overrides=_words(options), **where), diff.render, options)
    return 0


def _fit(options: argparse.Namespace) -> int:
    from sft_recipes.plan import fit, plan

    found = fit.fit(*plan.to_fit(options.recipe, _words(options)), options.gpus, options.vram)
    _say(fit.facts(found), fit.render, options)
    return 0 if found.best else 2


def _preview(options: argparse.Namespace) -> int:
    from sft_recipes.files import write_whole
    from sft_recipes.plan import preview

    with contextlib.redirect_stdout(sys.stderr):
        facts = preview.preview(options.recipe, overrides=_words(options), rows=options.rows, seed=options.seed)
    if options.json:
        print(json.dumps(facts, indent=2))
    elif options.html:
        _written(options.html, lambda: write_whole(options.html, preview.as_html(facts)))
    else:
        text = preview.as_text(facts, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 0


def _rehearse(options: argparse.Namespace) -> int:
    from sft_recipes.launch import rehearse

    with _facts_on_stdout(options) as name_of:
        code, name_of["run"] = rehearse.rehearse(
            options.recipe,
            accel=options.accel,
            processes=options.gpus,
            overrides=_words(options),
            run_name=options.name,
        )
    return code


def _audit(options: argparse.Namespace) -> int:
    from sft_recipes.interop import audit

    made = audit.audit(options.file, options.tool, options.gpus)
    if options.json:
        print(json.dumps(audit.facts(made), indent=2))
    else:
        print(audit.render(made))
    if options.out:
        for path in audit.write(made, options.out):
            print(f"wrote {path}", file=sys.stderr)
    return 0 if made.complete else 2


def _written(path: Path, write: Any) -> None:
    """Write a file that the user has named, and say so."""
    try:
        write()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    print(f"wrote {path}")


def _gpu(options: argparse.Namespace) -> int:
    from sft_recipes.benchmark import program

    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        code, path = program.benchmark(
            options.budget or program.BUDGET, options.out or program.RESULTS, options.only.split()
        )
    if options.json:
        print(path.read_text(encoding="utf-8"), end="")
    return code


def _rules(options: argparse.Namespace) -> int:
    from sft_recipes.plan import lint

    facts = [
        {"rule": rule.id, "severity": rule.severity, "idea": rule.idea, "evidence": rule.evidence}
        for rule in lint.rules().values()
    ]
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(len(each["rule"]) for each in facts)
    for each in facts:
        print(f"{each['rule']:<{width}}  {each['severity']:<8}  {each['idea']}")
    return 0


def _list(options: argparse.Namespace) -> int:
    ideas = {name: recipes.load(name)["description"] for name in recipes.names()}
    if not ideas:
        raise InputError(f"no recipes in {recipes.RECIPES.absolute()}; run from the project's root")
    if options.json:
        print(json.dumps(ideas, indent=2))
    else:
        width = max(map(len, ideas))
        for name, idea in ideas.items():
            print(f"{name:<{width}}  {idea}")
    return 0


def _models(options: argparse.Namespace) -> int:
    found = {name: recipes.read_model(name)["description"].value for name in recipes.names(recipes.MODELS)}
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    width = max(map(len, found), default=0)
    for name, text in found.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _resolved(options: argparse.Namespace) -> recipes.Recipe:
    from sft_recipes.recipes import topology

    # A file is shown by its path too, so that a foreign preset can be checked before it becomes a recipe.
    named = Path(options.recipe) if options.recipe.endswith((".yaml", ".yml", ".json")) else options.recipe
    recipe = recipes.load(named, recipes.parse_overrides(_words(options)))
    accel = options.accel or recipe["accelerate_config"]
    if accel is None:
        return recipe
    origin = "ACCEL" if options.accel else "the recipe"
    return topology.resolve(recipe, topology.read(accel, origin, options.gpus))


def _new(options: argparse.Namespace) -> int:
    path = recipes.write_new(options.recipe, options.base)
    if options.json:
        print(json.dumps({"file": str(path)}))
    else:
        print(f"wrote {path}\nnext: put the change it tries into it, then make plan RECIPE={options.recipe}")
    return 0


def _why(options: argparse.Namespace) -> int:
    from sft_recipes.recipes import why

    _say(why.why(options.key, options.recipe), why.render, options)
    return 0


def _show(options: argparse.Namespace) -> int:
    recipe = _resolved(options)
    beside = {key: item.origin for key, item in recipe.values.items()}
    if options.why:
        from sft_recipes.recipes import why

        beside = why.reasons(recipe)
    if options.json:
        values = {
            key: {"value": item.value, "origin": item.origin} | ({"why": beside[key]} if options.why else {})
            for key, item in recipe.values.items()
        }
        print(json.dumps({"name": recipe.name, "values": values}, indent=2))
        return 0
    lines = {key: f"{key}: {schema.as_yaml(item.value)}" for key, item in recipe.values.items()}
    # A long description must not push what stands beside the others out of sight.
    width = min(48, max(map(len, lines.values()))) if options.origin or options.why else 0
    for key, line in lines.items():
        print(f"{line:<{width}}  # {beside[key]}" if width else line)
    return 0


def _export(options: argparse.Namespace) -> int:
    from sft_recipes.data import preparation
    from sft_recipes.files import write_whole
    from sft_recipes.plan import job as jobs

    recipe = _resolved(options)
    prepared = preparation.prepare(**preparation.source_of(recipe), cache=preparation.CACHE)
    resolved = jobs.with_data(recipe, prepared).derive(output_dir=(f"runs/{recipe.name}-trl", "stock trl needs one"))
    if options.json:
        print(json.dumps(resolved.upstream(), indent=2))
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        _written(options.out, lambda: write_whole(options.out, recipes.dump(resolved.upstream())))
    return 0


def _pin(options: argparse.Namespace) -> int:
    from sft_recipes.recipes import pin

    words = [] if options.model is None else [shlex.quote(f"model={json.dumps(options.model)}")]
    path, commit = pin.pin(options.recipe, words)
    print(
        json.dumps({"file": str(path), "model_revision": commit})
        if options.json
        else f"{path}: model_revision: {commit}"
    )
    return 0


def _keys(options: argparse.Namespace) -> int:
    known = schema.known()
    if options.json:
        print(json.dumps(known, indent=2))
        return 0
    width = max(map(len, known))
    for key, entry in known.items():
        types = " or ".join(entry["types"])
        print(f"{key:<{width}}  {types}, {schema.as_yaml(entry['default'])} if not set  ({entry['class']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
