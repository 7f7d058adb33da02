"""The process with a model in it: lm-evaluation-harness asks base and tuned model the same tasks.

`python -m sft_recipes.evaluate.harness WORKDIR` reads `job.json` and ends with `samples.json`: of each task its metric
and, by model, the value of each sample by its number. What is wrong with the input is in `answer.json`.
"""

import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tqdm

from sft_recipes.environment import importing, quiet
from sft_recipes.errors import InputError, did_you_mean, hub_reason, refuse
from sft_recipes.files import write_whole
from sft_recipes.terminal import say_error

WRONG_INPUT, INTERRUPTED = 2, 3
NO_VALUES = "has no metric with a number for each sample, so nothing can be paired; name another"


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """What the tasks of a job find of base and tuned model.

    Raises:
        InputError: A task is not known, cannot be loaded, runs code, or has no value for each sample.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from sft_recipes.evaluate import scoring

    manager, tasks = _tasks(job)
    found: dict[str, Any] = {"tasks": {}, "seconds": {}, "version": lm_eval.__version__, "device": None}
    prompts: dict[str, Any] = {}
    models = scoring.each_model(job["recipe"], Path(job["tuned"]), ("base", "tuned"), on_cpu=job["on_cpu"])
    for name, model, tokenizer in models:
        began = time.perf_counter()
        found["device"] = model.device.type
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job["batch"], trust_remote_code=False),
            tasks=tasks,
            task_manager=manager,
            limit=job["limit"],
            # Intervals are ours, of pairs.
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=False,
        )
        found["seconds"][name] = time.perf_counter() - began
        for task, samples in results["samples"].items():
            asked = {each["doc_id"]: each["prompt_hash"] for each in samples}
            if prompts.setdefault(task, asked) != asked:
                raise RuntimeError(f"{task} did not ask both models the same, so nothing can be paired")
            better = results["higher_is_better"].get(task, {})
            metric, values = _values(task, samples)
            kept = found["tasks"].setdefault(
                task, {"metric": metric, "higher_is_better": better.get(metric) is not False, "values": {}}
            )
            kept["values"][name] = values
    return found


def _tasks(job: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The harness's index of tasks, and those of a job, loaded with their rows before a model is."""
    from lm_eval.tasks import TaskManager

    try:
        manager = TaskManager(include_path=job["include"])
    except Exception as error:
        raise InputError(
            f"INCLUDE={job['include']}: lm-evaluation-harness cannot read it: {_reason(error)}"
        ) from error
    shipped = {path.stem: path for path in Path(job["shipped"]).glob("*.yaml")}
    loaded: dict[str, Any] = {}
    problems = []
    for name in job["tasks"]:
        named = manager.match_tasks([name]) or [_shipped(shipped[each]) for each in shipped if each == name]
        if not named:
            meant = did_you_mean(name, [*shipped, *manager.all_tasks])
            ls = Path(os.path.relpath(sys.prefix)) / "bin" / "lm-eval"
            problems.append(f"TASKS: lm-evaluation-harness knows no task {name}; {ls} ls tasks lists them{meant}")
            continue
        try:
            tasks = manager.load(named)["tasks"]
        # A task is a program of others: whatever its definition, its rows or a package that it needs may raise.
        except Exception as error:
            problems.append(f"TASKS: lm-evaluation-harness cannot load {name}: {_reason(error)}")
            continue
        loaded |= tasks
        problems += [f"TASKS: {task} {problem}" for task in tasks for problem in _unfit(tasks[task])]
    refuse(problems)
    return manager, list(loaded.values())


def _unfit(task: Any) -> Iterator[str]:
    """Why a task cannot be asked."""
    if getattr(task, "UNSAFE_CODE", False):
        yield "runs the code that a model writes, which is not done here; leave it out"
    if getattr(task, "MULTIMODAL", False):
        yield "asks about pictures or sound, and only text is asked here; leave it out"
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield NO_VALUES


def _reason(error: Exception) -> str:
    return hub_reason(error) if isinstance(error, ConnectionError) else " ".join(str(error).split())[:300]


def _shipped(path: Path) -> dict[str, Any]:
    """A task of our own, with the place of its rows."""
    import yaml

    task: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {split: str(path.parent / file) for split, file in task["dataset_kwargs"]["data_files"].items()}
    return task | {"dataset_kwargs": {"data_files": rows}}


def _values(task: str, samples: list[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The first metric of a task that has a number for each sample, and the numbers by the sample's own.

    Of a task with several filters of the answers, the first is taken.
    """
    kept = [each for each in samples if each["filter"] == samples[0]["filter"]]
    for metric in samples[0]["metrics"]:
        values = {str(each["doc_id"]): each[metric] for each in kept}
        if all(isinstance(value, (bool, int, float)) and math.isfinite(value) for value in values.values()):
            return metric, {number: float(value) for number, value in values.items()}
    raise InputError(f"TASKS: {task} {NO_VALUES}")


class _Bar(tqdm.tqdm):
    """The harness's bars, on a terminal alone, and gone when they are full."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"disable": options.get("disable") or None, "leave": False})


def main(workdir: Path) -> int:
    """The process: 0 done, 1 failed, 2 with `answer.json` for wrong input, 3 interrupted."""
    # They say on the way what nobody asked, and each attempt to reach the Hub.
    for name in ("lm_eval", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        found = ask(json.loads((workdir / "job.json").read_text(encoding="utf-8")))
    except InputError as error:
        write_whole(workdir / "answer.json", json.dumps({"problems": error.problems}))
        return WRONG_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        say_error(f"lm-evaluation-harness failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    write_whole(workdir / "samples.json", json.dumps(found))
    return 0


if __name__ == "__main__":
    # While the libraries are imported, which takes seconds, there is nothing to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tqdm.tqdm = _Bar  # type: ignore[misc]
    with importing():
        quiet()
        import lm_eval.models.huggingface  # noqa: F401
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(Path(sys.argv[1])))
