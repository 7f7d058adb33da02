"""The learning rate at every step, by transformers' own functions, without the seconds that importing torch takes.

A schedule is arithmetic: what torch adds is the object that calls it at each step. So the functions are read from the
installed transformers and run here as they are; a test holds them against the schedulers that transformers makes.
"""

import __future__

import ast
import enum
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

Rate = Callable[[int], float]
"""The learning rate of a step, the first of which is number 0."""
# The schedules that follow the evaluations, so that nobody knows their rates before.
ADAPTIVE = ("reduce_lr_on_plateau", "greedy")
# Of longer runs so many steps are looked at.
LOOKED_AT = 10_000


class Rates(NamedTuple):
    """What is said of the learning rates of a run."""

    warmup_steps: int  # steps at the beginning after which the rate is a higher one
    peak: float
    """The highest that is reached; by a schedule that follows the evaluations, as long as they change nothing."""
    last: float  # that of the last step, likewise


def schedule(kind: str, given: Mapping[str, Any], learning_rate: float, warmup: int, steps: int) -> Rate:
    """The learning rates that transformers makes of a recipe's schedule.

    Args:
        kind: `lr_scheduler_type`.
        given: `lr_scheduler_kwargs`, which `arguments.of_schedule` accepts.
        warmup: the steps that warm-up is to take, where the schedule has one.
    """
    factor = _upstream()["get_scheduler"](kind, _optimizer(learning_rate), warmup, steps, dict(given))
    return lambda step: learning_rate * factor(step)


def summary(rate: Rate, warmup: int, steps: int) -> Rates:
    """What is said of such rates, where warm-up was asked to take so many steps.

    Raises:
        ArithmeticError: The schedule cannot be computed on so many steps.
    """
    spread = (steps * each // LOOKED_AT for each in range(LOOKED_AT)) if steps > LOOKED_AT else range(steps)
    looked = sorted({*spread, *(each for each in range(warmup - 1, warmup + 2) if 0 <= each < steps), steps - 1})
    found = [rate(step) for step in looked]
    # That of one step more is asked for too, after the last one.
    rises = (after > before for before, after in itertools.pairwise([*found, rate(steps)]))
    rising = next((step for step, higher in zip(looked, rises, strict=True) if not higher), steps)
    return Rates(rising, max(found), found[-1])


def _optimizer(learning_rate: float) -> Any:
    return SimpleNamespace(defaults={"lr": learning_rate})


@functools.cache
def _upstream() -> dict[str, Any]:
    """`transformers.optimization` as far as it computes rates; an object of torch is a factor's function here."""
    names: dict[str, Any] = {
        "math": math,
        "warnings": warnings,
        "partial": functools.partial,
        "ExplicitEnum": enum.StrEnum,
        "LambdaLR": lambda optimizer, factor, last_epoch=-1: factor,
        **dict.fromkeys(("ReduceLROnPlateau", "GreedyLR"), lambda optimizer, **given: lambda step: 1.0),
        "LayerWiseDummyOptimizer": (),
    }
    (folder,) = find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
    for file, wanted in {"trainer_utils": (ast.ClassDef,), "optimization": (ast.FunctionDef, ast.Assign)}.items():
        path = Path(folder) / f"{file}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [each for each in tree.body if isinstance(each, wanted) and _of_a_schedule(each)]
        # Annotations name classes of torch.
        flags = __future__.annotations.compiler_flag
        exec(compile(tree, str(path), "exec", flags, dont_inherit=True), names)  # noqa: S102, an installed package
    return names


def _of_a_schedule(node: ast.stmt) -> bool:
    name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
    return (name or getattr(node, "name", "")) in ("SchedulerType", "TYPE_TO_SCHEDULER_FUNCTION") or (
        isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("get_")
    )
