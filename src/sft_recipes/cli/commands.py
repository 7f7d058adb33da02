"""The commands: a signature and a docstring are the help of each, and a `Result` is what it prints.

Each imports what it needs when it runs, so that `--help` and a wrong recipe answer at once.
"""

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from sft_recipes.benchmark import BUDGET, RESULTS
from sft_recipes.cli.app import Result, command
from sft_recipes.cli.options import (
    Changes,
    Gpu,
    Job,
    Model,
    NewRun,
    OpenedRun,
    Overrides,
    RecipeName,
    RunName,
    Site,
    Split,
    amount,
    argument,
    flag,
    known_gpus,
    known_runs,
    names_in,
    number,
    opened,
    option,
    output,
    word,
)
from sft_recipes.errors import InputError
from sft_recipes.recipes import clusters, schema
from sft_recipes.recipes import recipe as recipes
from sft_recipes.terminal import in_colour, table

BEFORE, TRAIN, BETTER = "Before it costs anything", "Train", "Is it better"
USE, RECIPES, MACHINE = "Use it", "Recipes", "This machine"


@command(BEFORE)
def plan(
    recipe: RecipeName,
    job: Job,
    gpu: Gpu = None,
    trace: Annotated[bool, flag("trace", "also run the real modules on tensors without data")] = False,
    fetch: Annotated[bool, flag("fetch", "get the model's config and tokenizer from the Hub first")] = False,
    why: Annotated[bool, flag("why", "say all the evidence of each finding")] = False,
) -> Result:
    """Say what a recipe will do before it runs."""
    from sft_recipes.models import base_model
    from sft_recipes.plan import plan

    if fetch:
        base_model.fetch(recipes.load(recipe, job.words))
    figures = plan.plan(recipe, gpu=gpu, traced=trace, **job.where)
    return Result(figures, plan.render(figures, whole=why), 2 if figures["blocking"] else 0)


@command(BEFORE)
def recommend(
    data: Annotated[str, argument("DATA", "a file of rows")],
    gpu: Annotated[
        str | None, option("NAME", "a GPU such as rtx-4090, or cpu; what this machine has without it", known_gpus)
    ] = None,
    gpus: Annotated[int | None, number("N", "how many GPUs; those visible, or one of a named kind")] = None,
    model: Model = None,
    overrides: Overrides = None,
    name: Annotated[str | None, option("NAME", "write it as this recipe")] = None,
) -> Result:
    """Make a recipe of rows and a machine, each value with its reason."""
    from sft_recipes.plan import recommend, recommended
    from sft_recipes.recipes import project

    path = None if name is None else project.unwritten(name)
    facts = recommend.recommend(data, gpu, gpus, Changes(overrides, model=model).words)
    path = None if facts["blocking"] else path
    if path:
        project.write(path, recommended.written(facts))
    code = 2 if facts["blocking"] else 0
    return Result(facts | {"file": path and str(path)}, recommended.render(facts, path), code)


@command(BEFORE)
def fit(
    recipe: RecipeName,
    vram: Annotated[float, amount("GIB", "memory of one GPU, in GiB")],
    changes: Changes,
    gpus: Annotated[int, number("N", "how many GPUs")] = 1,
) -> Result:
    """Find the largest micro-batch that fits the same global batch."""
    from sft_recipes.plan import fit, plan

    found = fit.fit(*plan.to_fit(recipe, changes.words), gpus, vram)
    facts = fit.facts(found)
    return Result(facts, fit.render(facts), 0 if found.best else 2)


@command(BEFORE)
def preview(
    recipe: RecipeName,
    changes: Changes,
    rows: Annotated[int, number("N", "how many rows")] = 5,
    seed: Annotated[int | None, option("N", "random rows instead of the first")] = None,
    html: Annotated[Path | None, output("FILE", "write a page instead")] = None,
) -> Result:
    """Show rows as the trainer sees them."""
    from sft_recipes.plan import preview

    with contextlib.redirect_stdout(sys.stderr):
        facts = preview.preview(recipe, overrides=changes.words, rows=rows, seed=seed)
    if html:
        return Result(facts, _written(html, preview.as_html(facts)))
    return Result(facts, preview.as_text(facts, colour=in_colour()).removesuffix("\n"))


@command(BEFORE)
def diff(
    a: Annotated[str, argument("A", "a recipe", names_in("recipes"))],
    b: Annotated[str, argument("B", "another recipe", names_in("recipes"))],
    job: Job,
    gpu: Gpu = None,
) -> Result:
    """Show what two recipes do differently, why, and what follows."""
    from sft_recipes.plan import diff

    facts = diff.diff(a, b, gpu=gpu, **job.where)
    return Result(facts, diff.render(facts))


@command(BEFORE)
def rehearse(
    recipe: RecipeName,
    job: Job,
    name: Annotated[str | None, option("NAME", "the rehearsal's name")] = None,
) -> Result:
    """Run a recipe for a few steps with a tiny model, on CPU processes."""
    from sft_recipes.launch import rehearse

    code, run = rehearse.rehearse(recipe, run_name=name, **job.where)
    return Result(run.facts(), code=code)


@command(BEFORE)
def audit(
    file: Annotated[Path, argument("FILE", "YAML of TRL, Axolotl, LLaMA-Factory, ms-swift, torchtune, oumi")],
    tool: Annotated[str | None, option("NAME", "whose it is, where its keys do not tell")] = None,
    gpus: Annotated[int | None, number("N", "processes it was written for, where it does not say")] = None,
    out: Annotated[Path | None, output("FILE", "write the recipe there")] = None,
) -> Result:
    """Check another tool's SFT configuration, and translate it into a recipe."""
    from sft_recipes.interop import audit

    made = audit.audit(file, tool, gpus)
    if out and made.problems:
        print(f"{out} is not written, since the recipe would be refused", file=sys.stderr)
    for path in audit.write(made, out) if out and not made.problems else ():
        print(f"wrote {path}", file=sys.stderr)
    return Result(audit.facts(made), audit.render(made), 0 if made.complete else 2)


@command(BEFORE)
def rules() -> Result:
    """List every rule that plan and train apply."""
    from sft_recipes.plan import lint

    facts = [
        {"rule": rule.id, "severity": rule.severity, "idea": rule.idea, "evidence": rule.evidence}
        for rule in lint.rules().values()
    ]
    return Result(facts, table([[each["rule"], each["severity"], each["idea"]] for each in facts]))


@command(TRAIN)
def train(
    recipe: RecipeName,
    job: Job,
    name: NewRun = None,
    resume: Annotated[bool, flag("resume", "continue the run --name, if it is the same recipe")] = False,
    seeds: Annotated[str | None, option("'N ...'", "train once for each, one after another")] = None,
) -> Result:
    """Fine-tune a recipe into runs/NAME."""
    from sft_recipes.launch import launch
    from sft_recipes.launch import seeds as several

    named: dict[str, Any] = {"run_name": name, "resume": resume}
    if seeds is not None:
        code, runs = several.train_seeds(recipe, seeds, **named, **job.where)
        return Result([run.facts() for run in runs], code=code)
    code, run = launch.train(recipe, **named, **job.where)
    return Result(run.facts(), code=code)


@command(TRAIN)
def resume(
    name: OpenedRun,
    forget_best: Annotated[bool, flag("forget-best", "seek the best anew, where its checkpoint is lost")] = False,
    machines: Annotated[int, number("N", "how many machines train it together, each by this command")] = 1,
    machine: Annotated[int, Option(min=0, metavar="N", help="which of them this is; 0 keeps the run")] = 0,
    head: Annotated[str | None, option("HOST:PORT", "where the others reach machine 0")] = None,
) -> Result:
    """Continue an interrupted run from its newest whole checkpoint."""
    from sft_recipes.launch import launch, processes

    place = processes.place(machines, machine, head)
    code, run = launch.resume(name, forget_best=forget_best, place=place)
    return Result(run.facts(), code=code)


@command(TRAIN)
def launch(
    recipe: RecipeName,
    on: Annotated[str, option("ENGINE", "slurm, kubernetes, skypilot, ray; torchrun is by hand", clusters.names)],
    job: Job,
    nodes: Annotated[int, number("N", "how many machines; --gpus are those of each")] = 1,
    site: Site = None,
    name: NewRun = None,
    gpu: Gpu = None,
    seeds: Annotated[str | None, option("'N ...'", "a job for each")] = None,
    dry: Annotated[bool, flag("dry", "write the run and the job, and submit nothing")] = False,
) -> Result:
    """Plan a recipe for several machines, write its job and submit it."""
    from sft_recipes.launch import submit

    asked: dict[str, Any] = {"nodes": nodes, "site_name": site, "dry": dry, "run_name": name, "gpu": gpu, **job.where}
    if seeds is not None:
        return Result([run.facts() for run in submit.submit_seeds(recipe, on, seeds, **asked)])
    return Result(submit.submit(recipe, on, **asked).facts())


@command(TRAIN)
def status(name: OpenedRun) -> Result:
    """Say how far a run is, and what the engine says of its job."""
    from sft_recipes.launch import submit

    return Result(*submit.status(name))


@command(TRAIN)
def logs(
    name: OpenedRun,
    lines: Annotated[int, number("N", "the last of them")] = 40,
) -> Result:
    """Print the last lines of what a run's job has written."""
    from sft_recipes.launch import submit

    path, text = submit.logs(name, lines)
    return Result({"file": str(path), "lines": text.splitlines()}, text)


@command(TRAIN)
def watch(
    name: Annotated[str | None, argument("NAME", "the run's name; all runs without it", known_runs, opened)] = None,
    port: Annotated[int, number("PORT", "of 127.0.0.1")] = 6006,
) -> Result:
    """Show the curves of a run while it trains: TensorBoard, on this machine alone."""
    from sft_recipes.report import watch

    watch.watch(name, port)
    return Result()


@command(TRAIN)
def reproduce(
    run: RunName,
    name: Annotated[str | None, option("NAME", "the new run's name; RUN-again without it")] = None,
) -> Result:
    """Train a finished run again from its directory alone, and say what differs."""
    from sft_recipes.launch import reproduce

    code, made = reproduce.reproduce(run, name)
    return Result(made.facts(), code=code)


@command(TRAIN)
def sweep(
    recipe: RecipeName,
    over: Annotated[str, option("'KEY=VALUE,VALUE KEY=LOW..HIGH'", "what is varied")],
    job: Job,
    trials: Annotated[int | None, number("N", "let Optuna choose so many; all combinations without it")] = None,
    jobs: Annotated[int | None, number("N", "trials at a time; one for each GPU without it")] = None,
    name: Annotated[str | None, option("NAME", "the runs are NAME-t000 and so on")] = None,
    out: Annotated[Path | None, output("FILE", "write the best as this recipe")] = None,
    on: Annotated[str | None, option("ENGINE", "make jobs of the trials, as launch does", clusters.names)] = None,
    site: Site = None,
    dry: Annotated[bool, flag("dry", "write the trials' jobs, and submit nothing")] = False,
) -> Result:
    """Train a recipe with several values, compare them, and write the best as a recipe."""
    from sft_recipes.launch import sweep

    asked: dict[str, Any] = {"trials": trials, "jobs": jobs, "run_name": name, "out": out}
    code, facts = sweep.sweep(recipe, over, **asked, engine=on, site_name=site, dry=dry, **job.where)
    return Result(facts, code=code)


@command(BETTER)
def evaluate(
    run: RunName,
    split: Annotated[
        Literal["test", "validation"] | None,
        Option(help="test without it, or validation where there are no test rows"),
    ] = None,
    base: Annotated[bool, flag("base", "score the base model on the same rows too")] = False,
    overrides: Overrides = None,
    data: Annotated[str | None, option("FILE", "rows to evaluate on, instead of the test_file")] = None,
) -> Result:
    """Score a finished run on rows it has not seen, with intervals."""
    from sft_recipes.evaluate import evaluate
    from sft_recipes.report import pages
    from sft_recipes.runs.run import Run

    rows = [] if data is None else [word("test_file", data)]
    code, path = evaluate.evaluate(run, split=split, base=base, overrides=[*(overrides or ()), *rows])
    if path:
        pages.write(Run.open(run))
    return Result(path, code=code)


@command(BETTER)
def forgetting(
    run: RunName,
    tasks: Annotated[str, option("'TASK ...'", "tasks of lm-evaluation-harness; sums opposites need no network")],
    include: Annotated[Path | None, option("FOLDER", "more tasks, in the harness's form")] = None,
    limit: Annotated[int | None, number("N", "the first samples of each task; all without it")] = None,
    batch: Annotated[int, number("N", "samples in one batch")] = 8,
) -> Result:
    """Say what a run has lost: tasks of lm-evaluation-harness, base against tuned, paired."""
    from sft_recipes.evaluate import forgetting
    from sft_recipes.report import pages
    from sft_recipes.runs.run import Run

    asked = tasks.replace(",", " ").split()
    code, found = forgetting.forgetting(run, asked, include=include, limit=limit, batch=batch)
    if found:
        pages.write(Run.open(run))
    return Result(found, code=code)


@command(BETTER)
def report(run: RunName) -> Result:
    """Write the report of a run anew."""
    from sft_recipes.report import report
    from sft_recipes.runs.run import Run

    path = str(report.write(Run.open(run)))
    return Result({"file": path}, f"wrote {path}")


@command(BETTER)
def compare(
    runs: Annotated[list[str], argument("RUN...", "the runs' names", known_runs, opened)],
    split: Split = "test",
    out: Annotated[Path | None, output("FILE", "write a page (.html), Markdown (.md) or CSV (.csv)")] = None,
) -> Result:
    """Say what runs changed, what came of it, and which differences are real."""
    from sft_recipes.report import compare, report

    _check_form(out, (".html", ".md", ".csv"))
    return _tables(compare.compare(runs, split), out, page=report.comparison)


@command(BETTER)
def leaderboard(
    split: Split = "test",
    out: Annotated[Path | None, output("FILE", "write Markdown (.md) or CSV (.csv)")] = None,
) -> Result:
    """Rank the evaluated runs, as far as they can be told apart."""
    from sft_recipes.report import compare

    _check_form(out, (".md", ".csv"))
    return _tables(compare.leaderboard(split), out)


def _check_form(out: Path | None, forms: Sequence[str]) -> None:
    if out is not None and out.suffix not in forms:
        raise InputError(f"OUT={out}: end the file's name in {' or '.join(forms)}, which says what is written")


def _tables(facts: Any, out: Path | None, page: Any = None) -> Result:
    """The tables for people, or a file in the form that its name says."""
    from sft_recipes.report import tables

    if out is None:
        return Result(facts, tables.render(facts))
    if out.suffix == ".html":
        return Result(facts, _written(out, write=lambda: page(facts, out)))
    return Result(facts, _written(out, tables.as_markdown(facts) if out.suffix == ".md" else tables.as_csv(facts)))


@command(USE)
def predict(
    run: RunName,
    rows: Annotated[Path, option("FILE", "rows with prompts", None, "--input")],
    out: Annotated[Path | None, output("FILE", "JSON lines; beside the input without it")] = None,
) -> Result:
    """Write what a run answers to the rows of a file."""
    from sft_recipes.deploy import predict

    code, path = predict.predict(run, rows, out)
    return Result({"file": str(path)}, code=code)


@command(USE)
def chat(run: RunName, base: Annotated[bool, flag("base", "begin with the base model")] = False) -> Result:
    """Talk to a run in the terminal."""
    from sft_recipes.deploy import chat

    return Result(code=chat.chat(run, base=base))


@command(USE)
def merge(
    run: RunName,
    out: Annotated[Path | None, option("FOLDER", "runs/RUN/merged without it")] = None,
) -> Result:
    """Merge a run's adapter into unquantised base weights, and prove it."""
    from sft_recipes.deploy import merge

    code, proof = merge.merge(run, out)
    return Result(proof, code=code)


@command(USE)
def serve(
    run: RunName,
    merged: Annotated[bool, flag("merged", "the merged model instead of the adapter")] = False,
    port: Annotated[int, number("PORT", "where it listens, on this machine alone")] = 8000,
) -> Result:
    """Serve a run with vLLM, or say how where it is not installed."""
    from sft_recipes.deploy import serve

    return Result(serve.serve(run, merged=merged, port=port))


@command(USE)
def gguf(
    run: RunName,
    quant: Annotated[str, option("NAME", "f32, f16, bf16, q8_0, or one of llama-quantize's")] = "q4_k_m",
    out: Annotated[Path | None, option("FOLDER", "runs/RUN/gguf-QUANT without it")] = None,
    llama_cpp: Annotated[Path | None, option("FOLDER", "llama.cpp's; PATH without it")] = None,
) -> Result:
    """Write a run's merged model as GGUF by llama.cpp, read it back, and write Ollama's Modelfile."""
    from sft_recipes.deploy import gguf

    code, proof = gguf.gguf(run, quant, out, llama_cpp)
    return Result(proof, code=code)


@command(USE)
def push(
    run: RunName,
    repo: Annotated[str, option("ORG/NAME", "the repository, made if it is not there")],
    merged: Annotated[bool, flag("merged", "upload the merged model instead")] = False,
    public: Annotated[bool, flag("public", "a new repository is public, not private")] = False,
) -> Result:
    """Upload a run's adapter to the Hub."""
    from sft_recipes.deploy import push

    return Result(push.push(run, repo, merged=merged, public=public))


@command(RECIPES)
def list_() -> Result:
    """List the recipes and the one idea of each."""
    ideas = {name: recipes.load(name)["description"] for name in recipes.names()}
    return Result(ideas, table([*ideas.items()]))


@command(RECIPES)
def models() -> Result:
    """List the models that any recipe can be trained on."""
    found = {name: recipes.read_model(name)["description"].value for name in recipes.names(recipes.MODELS)}
    return Result(found, table([*found.items()]))


@command(RECIPES)
def show(
    recipe: RecipeName,
    job: Job,
    origin: Annotated[bool, flag("origin", "say where each value comes from")] = False,
    why: Annotated[bool, flag("why", "say one reason for each value")] = False,
) -> Result:
    """Print a resolved recipe: its base, overrides and what follows from them."""
    from sft_recipes.recipes import why as evidence

    resolved = _resolved(recipe, job)
    reasons = evidence.reasons(resolved) if why else {}
    values, lines = {}, {}
    for key, item in resolved.values.items():
        reason = {"why": reasons[key]} if why else {}
        values[key] = {"value": item.value, "origin": item.origin} | reason
        beside = dict.fromkeys([*([item.origin] if origin else []), *reason.values()])
        lines[f"{key}: {schema.as_yaml(item.value)}"] = f"# {': '.join(beside)}" if beside else ""
    # A long description must not push what stands beside the others out of sight.
    width = min(48, max(map(len, lines)))
    text = "\n".join(f"{line:<{width}}  {beside}" if beside else line for line, beside in lines.items())
    return Result({"name": resolved.name, "values": values}, text)


def _resolved(name: str, job: Job) -> recipes.Recipe:
    from sft_recipes.recipes import topology

    recipe = recipes.load(name, job.words)
    if recipe["execution"] == "auto":
        from sft_recipes.plan.job import resolve

        whole = resolve(name, overrides=job.words, accel=job.accel, processes=job.gpus, planned=True)
        return topology.resolve(whole.recipe, whole.topology)
    chosen = job.accel or recipe["accelerate_config"]
    if chosen is None:
        return recipe
    return topology.resolve(recipe, topology.read(chosen, "ACCEL" if job.accel else "the recipe", job.gpus))


@command(RECIPES)
def why(
    key: Annotated[str, argument("KEY", "a key of a recipe, such as lora_alpha", lambda: list(schema.known()))],
    recipe: Annotated[
        str | None,
        argument("RECIPE", "a name in recipes/, for its value and its neighbours", names_in("recipes")),
    ] = None,
) -> Result:
    """Say what a key does, why it has its value, and what to change first when it is wrong."""
    from sft_recipes.recipes import why

    facts = why.why(key, recipe)
    return Result(facts, why.render(facts))


@command(RECIPES)
def keys() -> Result:
    """List every key a recipe may set, with type and default."""
    known = schema.known()
    rows = [
        [key, f"{' or '.join(each['types'])}, {schema.as_yaml(each['default'])} if not set  ({each['class']})"]
        for key, each in known.items()
    ]
    return Result(known, table(rows))


@command(RECIPES)
def init(
    folder: Annotated[Path, argument("FOLDER", "where it begins; this folder without it")] = Path(),
    name: Annotated[str, option("NAME", "the name of its first recipe")] = "my_experiment",
    base: Annotated[str, option("RECIPE", "the recipe that it extends", names_in("recipes"), "--from")] = "default",
) -> Result:
    """Begin a project of one's own: a Makefile, a first recipe, the accelerate configs."""
    from sft_recipes.recipes import project

    files = [str(path) for path in project.init(folder, name, base)]
    there = "" if folder == Path() else f"cd {shlex.quote(str(folder))}, "
    said = "\n".join(f"wrote {path}" for path in files)
    following = f"next: {there}put your rows and the change into the recipe, then make plan RECIPE={name}"
    return Result({"files": files}, f"{said}\n{following}")


@command(RECIPES)
def new(
    name: Annotated[str, argument("NAME", "the new recipe's name")],
    base: Annotated[str, option("RECIPE", "the recipe that it extends", names_in("recipes"), "--from")] = "default",
    data: Annotated[str | None, option("FILE", "look at these rows, and write what was seen")] = None,
) -> Result:
    """Write a recipe of four lines that extends another, or one for your rows."""
    from sft_recipes.recipes import project

    said = None
    if data is not None:
        from sft_recipes.data import look

        said = look.said(data, base)
    path = str(project.new(name, base, said=said))
    if said:
        return Result({"file": path}, f"wrote {path}\nnext: make plan RECIPE={name}, then make train RECIPE={name}")
    return Result({"file": path}, f"wrote {path}\nnext: put the change it tries into it, then make plan RECIPE={name}")


@command(RECIPES)
def schema_(
    kind: Annotated[
        Literal["recipe", "model", "accelerate", "cluster"],
        argument("KIND", "recipe, model (of models/), accelerate (of accelerate_configs/) or cluster (of clusters/)"),
    ] = "recipe",
) -> Result:
    """Print the JSON Schema of a recipe, by which editors complete and explain its keys."""
    from sft_recipes.recipes import editor

    found = editor.of(kind)
    return Result(found, json.dumps(found, indent=1))


@command(RECIPES)
def export(
    out: Annotated[Path, output("FILE", "the YAML file to write")],
    job: Job,
    recipe: Annotated[str | None, argument("RECIPE", "a name in recipes/", names_in("recipes"))] = None,
    run: Annotated[str | None, option("RUN", "a finished run instead, for dpo", known_runs)] = None,
    method: Annotated[Literal["sft", "dpo"], option("METHOD", "sft, or dpo with RUN and DATA", None, "--for")] = "sft",
) -> Result:
    """Write a recipe for stock `trl sft --config`, or a run for `trl dpo --config`."""
    from sft_recipes.data import preparation
    from sft_recipes.plan.job import with_data

    if method == "dpo":
        from sft_recipes.deploy import handover

        if not run or recipe or job != Job(data=job.data):
            raise InputError("FOR=dpo goes on from a run: it needs RUN= and DATA=, and reads nothing else but OUT=")
        values = handover.dpo(run, job.data)
        return Result(values, f"{_written(out, recipes.dump(values))}\nnext: trl dpo --config {shlex.quote(str(out))}")
    if run or not recipe:
        said = f"stock trl sft reads runs/{run}/recipe.yaml as it is; or" if run else "name the recipe, or"
        raise InputError(f"{said} go on from a run by RUN=, FOR=dpo and DATA=")
    resolved = _resolved(recipe, job)
    if continued := resolved["adapter_name_or_path"]:
        raise InputError(
            f"{resolved.values['adapter_name_or_path'].origin}: stock trl sft would begin with a new adapter and not "
            f"with {continued}; train it here, or merge that adapter and name the result as model_name_or_path"
        )
    prepared = preparation.prepare(**preparation.source_of(resolved), cache=preparation.CACHE)
    stock = with_data(resolved, prepared).derive(output_dir=(f"runs/{resolved.name}-trl", "stock trl needs one"))
    return Result(stock.upstream(), _written(out, recipes.dump(stock.upstream())))


@command(RECIPES)
def pin(recipe: RecipeName, model: Model = None) -> Result:
    """Write the Hub's current commit of the base model into its file."""
    from sft_recipes.recipes import pin

    path, commit = pin.pin(recipe, Changes(model=model).words)
    return Result({"file": str(path), "model_revision": commit}, f"{path}: model_revision: {commit}")


@command(MACHINE)
def gpu(
    budget: Annotated[int, number("SECONDS", "in all")] = BUDGET,
    only: Annotated[str, option("'SECTION ...'", "these sections; all without it")] = "",
    out: Annotated[Path, option("FOLDER", "where the result is written")] = RESULTS,
) -> Result:
    """Measure this machine: memory, speed, accelerate configs, within a budget of seconds."""
    from sft_recipes.benchmark import program

    code, path = program.benchmark(budget, out, only.split())
    return Result(path, code=code)


@command(MACHINE)
def tune(recipe: RecipeName, job: Job) -> Result:
    """Measure how a recipe is executed fastest here, for execution: auto."""
    from sft_recipes.benchmark import tune

    facts = tune.tune(recipe, **job.where)
    return Result(facts, tune.render(facts))


def _written(path: Path, text: str = "", write: Callable[[], object] | None = None) -> str:
    """Write a file that the user has named, and say so."""
    from sft_recipes.files import write_whole

    try:
        write() if write else write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return f"wrote {path}"
