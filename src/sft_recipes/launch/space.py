"""What a sweep goes over: `learning_rate=1e-4,2e-4 lora_r=16,32`, and whether every trial of it is a recipe.

No torch and no Optuna: whatever is wrong is said before the first trial.
"""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from sft_recipes.errors import InputError, refuse
from sft_recipes.plan import job as jobs
from sft_recipes.plan import lint
from sft_recipes.plan.job import Job, Where
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema

# The keys that act on training alone, so that the eval loss, by which trials are compared, stays one measure.
SWEPT = {
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("global_batch_size", "per_device_train_batch_size", "train_sampling_strategy", "neftune_noise_alpha"),
    *("optim", "optim_args", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
    *("lora_modules_to_save", "use_rslora", "use_dora", "adapter_dtype", "router_aux_loss_coef"),
    "init_lora_weights",
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
}
_ROWS = "another value holds out, reads or cuts other rows, so the eval losses of two trials could not be compared"
_LOSS = "another value is another loss on the same rows, so the eval losses of two trials could not be compared"
_MODEL = "another model has another loss on the same text, whatever is learned; compare runs on test rows"
# Why keys are refused that somebody may well want to vary.
REFUSED = {
    **dict.fromkeys(("seed", "data_seed"), 'a seed is luck and not a setting; train the best with SEEDS="42 43 44"'),
    **dict.fromkeys(("data", "train_file", "validation_file", "validation_split_size", "test_split_size"), _ROWS),
    **dict.fromkeys(("data_format", "data_columns"), _ROWS),
    "drop_reasoning": _ROWS,
    **dict.fromkeys(("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"), _ROWS),
    "stopping_strategy": _ROWS,
    **dict.fromkeys(("max_length", "truncation_mode", "packing", "packing_strategy", "eval_packing"), _ROWS),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss", "loss_type", "label_smoothing_factor"), _LOSS),
    "mask_empty_reasoning": _LOSS,
    **dict.fromkeys(("model", "model_name_or_path", "model_revision", "model_init_kwargs"), _MODEL),
    **dict.fromkeys(("adapter_name_or_path", "adapter_revision"), _MODEL),
    **dict.fromkeys(("chat_template_path", "eos_token"), _ROWS),
    "per_device_eval_batch_size": "it changes how fast an evaluation is, and nothing that it finds",
    "accelerate_config": "where a recipe runs changes nothing that is learned; choose it with ACCEL=",
}
_EXAMPLE = 'write OVER="learning_rate=1e-4,2e-4 lora_r=16,32"'
# Their whole numbers must divide one another, so most of a range could not be trained.
DIVISORS = ("global_batch_size", "per_device_train_batch_size")
# So near to the end of a range, as a share of it, the best may lie beyond.
EDGE = 0.1
# Each combination is looked at before the first trial, which takes a twentieth of a second; of more than these, each
# value is, beside the first of the others.
LARGEST = 256


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values of a key, one after another."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that have to be looked at before the first trial."""
        return self.values

    def facts(self) -> dict[str, Any]:
        """As sweep.json holds it."""
        return {"choices": list(self.values)}

    def distribution(self) -> Any:
        """As Optuna draws from it, of values as a study stores them."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([*map(self.stored, self.values)])

    # As JSON, because a list is no value of Optuna's.
    stored, read = staticmethod(json.dumps), staticmethod(json.loads)


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers between two, ends included; on a logarithmic scale from a factor of ten on."""

    low: float
    high: float

    @property
    def ends(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant, as both ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def logarithmic(self) -> bool:
        return self.low > 0 and self.high >= 10 * self.low

    def facts(self) -> dict[str, Any]:
        """As sweep.json holds it."""
        return {"low": self.low, "high": self.high, "log": self.logarithmic}

    def distribution(self) -> Any:
        """As Optuna draws from it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.logarithmic)
        return FloatDistribution(self.low, self.high, log=self.logarithmic)

    @staticmethod
    def stored(value: Any) -> Any:
        """A value as a study stores it, which `read` reads."""
        return value

    read = stored


Space = dict[str, Choices | Range]


def parse(over: str) -> tuple[Space, list[str]]:
    """The keys of OVER with their choices or ranges, in the order written, and what is wrong with the others."""
    try:
        words = shlex.split(over)
    except ValueError as error:
        return {}, [f"OVER: {error}; {_EXAMPLE}"]
    found: Space = {}
    problems = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or not text:
            problems.append(f"OVER: {word!r} is not key=value,value; {_EXAMPLE}")
        elif key in found:
            problems.append(f"OVER: {key} appears twice; keep one")
        elif key not in schema.known() and key not in REFUSED:
            problems.append(f"OVER: {schema.problem(key, text)}")
        elif key not in SWEPT:
            why = REFUSED.get(key, f"it is none of the keys that act on training alone: {', '.join(sorted(SWEPT))}")
            problems.append(f"OVER: {key} cannot be swept: {why}")
        elif key in DIVISORS and ".." in text:
            problems.append(f"OVER: {key} has to divide, or be divided; write its values one by one: {key}=8,16,32")
        else:
            try:
                found[key] = _values(key, text)
            except InputError as error:
                problems += error.problems
    if not words:
        problems.append(f"OVER names nothing to vary; {_EXAMPLE}")
    return found, problems


def _values(key: str, text: str) -> Choices | Range:
    low, dots, high = text.partition("..")
    if dots:
        ends = [_value(key, end) for end in (low, high)]
        numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
        if len(numbers) < 2 or not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
            raise InputError(f"OVER: {key}={text} is no range; write two numbers, the smaller first: {key}=1e-5..1e-3")
        if (key == "max_steps" and numbers[0] < 1) or (key == "warmup_steps" and numbers[0] < 1 < numbers[1]):
            what = "steps begin at 1" if key == "max_steps" else "below 1 it is a share, and above a number of steps"
            raise InputError(f"OVER: {key}={text} would mean two things: {what}; write a range on one side")
        # 0..1 of a number that need not be whole is all between.
        if "float" in schema.known()[key]["types"]:
            numbers = [float(number) for number in numbers]
        return Range(*numbers)
    values = [_value(key, part) for part in _parts(text)]
    twice = [value for n, value in enumerate(values) if value in values[:n]]
    if twice:
        raise InputError(f"OVER: {key} has {schema.as_yaml(twice[0])} twice; keep one")
    return Choices(tuple(values))


def _value(key: str, text: str) -> Any:
    try:
        return recipes.parse_overrides(shlex.quote(f"{key}={text}"))[key].value
    except InputError:
        raise InputError(f"OVER: {key}: {text!r} is not a YAML value; quote it") from None


def _parts(text: str) -> Iterator[str]:
    """The text between commas that stand in no bracket: `[q_proj, v_proj],[all-linear]` has two parts."""
    part, depth = "", 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            yield part
            part = ""
        else:
            part += letter
    yield part


def beyond(key: str, each: Choices | Range, best: Any) -> tuple[str, str] | None:
    """Where the best value of a key is at an end of what was tried: which end, and values that go on there, as OVER.

    None where it is not, where values have no order, and where the key goes no further, as none does below 0. Steps
    are those of the values, or half of a range; where both are positive they multiply, by 10 at most.
    """
    numbers = sorted(value for value in each.ends if isinstance(value, int | float) and not isinstance(value, bool))
    if len(numbers) < max(2, len(each.ends)):
        return None
    low, high = numbers[0], numbers[-1]
    if isinstance(each, Range):
        multiplies = each.logarithmic
        share = math.log(best / low) / math.log(high / low) if multiplies else (best - low) / (high - low)
        up, down = share > 1 - EDGE, share < EDGE
        step = 2.0 if multiplies else (high - low) / 2
    else:
        up, down = best == high, best == low
        neighbour = numbers[-2] if up else numbers[1]
        multiplies = min(best, neighbour) > 0
        step = min(max(best, neighbour) / min(best, neighbour), 10) if multiplies else abs(best - neighbour)
    if not up and (not down or best <= 0):
        return None
    values = [best * step**n if multiplies else best + step * n for n in ((0, 1, 2) if up else (-2, -1, 0))]
    whole = all(isinstance(value, int) for value in numbers)
    # Below 1 warm-up is a share, and above a number of steps.
    limit = 1 if key == "warmup_steps" and high < 1 else math.inf
    rounded = {round(value) if whole else float(f"{value:.3g}") for value in values}
    found = sorted(value for value in rounded if value > 0)
    texts = [schema.as_yaml(value) for value in found if value < limit and not schema.problem(key, value)]
    if len(texts) < 2:
        return None
    over = f"{texts[0]}..{texts[-1]}" if isinstance(each, Range) else ",".join(texts)
    return "largest" if up else "smallest", f"{key}={over}"


def said(values: Mapping[str, Any]) -> str:
    """Values as a line says them: `learning_rate 0.0002, lora_r 16`."""
    return ", ".join(f"{key} {schema.as_yaml(value)}" for key, value in values.items())


def size(space: Space) -> int:
    """The number of combinations, of ranges with their ends alone."""
    return math.prod(len(each.ends) for each in space.values())


def looked_at(space: Space) -> list[dict[str, Any]]:
    """The combinations that are checked before the first trial."""
    if size(space) <= LARGEST:
        return grid(space)
    first = {key: each.ends[0] for key, each in space.items()}
    return [first, *(first | {key: value} for key, each in space.items() for value in each.ends[1:])]


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination, of ranges with their ends alone; the last key changes fastest."""
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*(each.ends for each in space.values()))
    ]


def check(name: str | Path, space: Space, make: Callable[..., Job] = jobs.check, **where: Unpack[Where]) -> Job:
    """The job with the first values, when every combination that can be foreseen is a run that would start.

    Args:
        make: What makes a job of a recipe for where its trials run; here without it.

    Raises:
        InputError: With all that is wrong.
    """
    given = recipes.parse_overrides(where.get("overrides", ()))
    problems = [f"{key} is in SET and in OVER; keep one" for key in space if key in given]
    corners, loaded = looked_at(space), []
    for values in corners:
        try:
            swept = {key: recipes.Value(value, "OVER") for key, value in values.items()}
            loaded.append(recipes.load(name, given | swept))
        except InputError as error:
            # What is wrong with one value is wrong in every combination that has it.
            problems += [text for text in error.problems if text not in problems]
    refuse(problems)
    first = loaded[0]
    if first["eval_strategy"] == "no":
        problems.append(f"{name} has eval_strategy: no, and trials are compared by the eval loss; set it to steps")
    metric = first["metric_for_best_model"]
    if first["load_best_model_at_end"] and metric not in (None, "loss", "eval_loss"):
        problems.append(
            f"{name} keeps the best weights by {metric}, and trials are compared by the eval loss; set "
            "metric_for_best_model: eval_loss"
        )
    where["overrides"] = given | recipes.parse_overrides(corners[0])
    job = make(name, **where)
    for values, recipe in zip(corners, loaded, strict=True):
        found = lint.findings(job.with_recipe(recipe).case)
        problems += [f"{said(values)}: {each}" for each in found if each.stops]
    refuse(problems)
    return job
