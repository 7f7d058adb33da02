"""The process with a model in it: lm-evaluation-harness asks base and tuned model the same tasks.

`python -m sft_recipes.evaluate.harness WORKDIR` reads `job.json` and ends with `samples.json`: of each task its metric
and, by model, the value of each sample by its number. What is wrong with the input is in `answer.json`.
"""

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sft_recipes.environment import quiet
from sft_recipes.errors import InputError
from sft_recipes.files import write_whole
from sft_recipes.terminal import say_error

WRONG_INPUT = 2


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """What the tasks of a job find of base and tuned model.

    Raises:
        InputError: A task is not known, cannot be loaded, runs code, or has no value for each sample.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sft_recipes.evaluate import scoring

    manager = TaskManager(include_path=job["include"])
    tasks = [_shipped(Path(job["shipped"]), name) or name for name in job["tasks"]]
    if unknown := [name for name in tasks if isinstance(name, str) and not manager.match_tasks([name])]:
        raise InputError(
            *(f"TASKS: lm-evaluation-harness knows no task {name}; `lm-eval ls tasks` lists them" for name in unknown)
        )
    found: dict[str, Any] = {"tasks": {}, "seconds": {}, "version": lm_eval.__version__, "device": None}
    models = scoring.each_model(job["recipe"], Path(job["tuned"]), ("base", "tuned"), on_cpu=job["on_cpu"])
    for name, model, tokenizer in models:
        began = time.perf_counter()
        found["device"] = model.device.type
        try:
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
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"TASKS: refused by lm-evaluation-harness: {reason}") from error
        found["seconds"][name] = time.perf_counter() - began
        for task, samples in results["samples"].items():
            better = results["higher_is_better"].get(task, {})
            metric, values = _values(task, samples)
            kept = found["tasks"].setdefault(
                task, {"metric": metric, "higher_is_better": better.get(metric) is not False, "values": {}}
            )
            kept["values"][name] = values
    return found


def _shipped(folder: Path, name: str) -> dict[str, Any] | None:
    """A task of our own with the place of its rows; None where a name is none of them."""
    import yaml

    path = folder / f"{name}.yaml"
    if not path.is_file():
        return None
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {split: str(folder / file) for split, file in task["dataset_kwargs"]["data_files"].items()}
    return task | {"dataset_kwargs": {"data_files": rows}}


def _values(task: str, samples: list[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The first metric of a task that has a number for each sample, and the numbers by the sample's own.

    Of a task with several filters of the answers, the first is taken.
    """
    kept = [each for each in samples if each["filter"] == samples[0]["filter"]]
    for metric in samples[0]["metrics"]:
        values = {str(each["doc_id"]): each[metric] for each in kept}
        if all(isinstance(value, (bool, int, float)) for value in values.values()):
            return metric, {number: float(value) for number, value in values.items()}
    raise InputError(
        f"TASKS: {task} has no metric with a number for each sample, so nothing can be paired; name another"
    )


def main(workdir: Path) -> int:
    """The process: its exit code is 0, 1 where it failed, 2 with `answer.json` for wrong input."""
    # It says on the way what nobody asked.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        found = ask(json.loads((workdir / "job.json").read_text(encoding="utf-8")))
    except InputError as error:
        write_whole(workdir / "answer.json", json.dumps({"problems": error.problems}))
        return WRONG_INPUT
    except KeyboardInterrupt:
        return 3
    except Exception as error:
        say_error(f"lm-evaluation-harness failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    write_whole(workdir / "samples.json", json.dumps(found))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quiet()
    sys.exit(main(Path(sys.argv[1])))
