"""Supervised fine-tuning recipes on TRL, checked before, during and after training.

The functions of `api.py`, which docs/api.md describes, are here: `sft_recipes.plan("default")`. Each is imported when
it is first used, so that `import sft_recipes` costs nothing.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_recipes.api import compare, evaluate, list_recipes, load_model, load_recipe, load_run, plan, train
    from sft_recipes.errors import EvaluationFailed, InputError, Interrupted, TrainingFailed

__all__ = [
    "EvaluationFailed",
    "InputError",
    "Interrupted",
    "TrainingFailed",
    "compare",
    "evaluate",
    "list_recipes",
    "load_model",
    "load_recipe",
    "load_run",
    "plan",
    "train",
]

# The wings whose name is a function's too.
_BOTH = ("evaluate", "plan", "train")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _BOTH:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{'errors' if name[0].isupper() else 'api'}"), name)


def __dir__() -> list[str]:
    return __all__


class _CallableWing(types.ModuleType):
    """A wing that is called by the function of its name: `sft_recipes.plan` holds modules, and plans."""

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function)

    @property
    def _function(self) -> Any:
        api = importlib.import_module("sft_recipes.api")
        return getattr(api, self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)


class _Package(types.ModuleType):
    """This package, which makes those wings callable when they are imported, whoever imports them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _BOTH and isinstance(value, types.ModuleType):
            value.__class__ = _CallableWing
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
