"""A conversation through a pipe, as through a terminal: turns, the adapter off and on, and nothing that hides."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finished import FLOAT32

from sft_recipes.deploy import chat
from sft_recipes.errors import InputError
from sft_recipes.runs.run import Run

pytest_plugins = ["finished", "forks"]

Finished = Callable[..., Run]
# Long enough to say something else than the base.
TALKS = FLOAT32 | {
    "task": "generation",
    "max_new_tokens": 12,
    "num_train_epochs": 2,
    "learning_rate": 2e-2,
    "lora_target_modules": ["all-linear"],
}


def through_a_pipe(run: Run, *lines: str) -> list[str]:
    """What the command answers to lines on its standard input."""
    command = [sys.executable, "-m", "sft_recipes", "chat", run.name]
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return parts(run, done.stdout)


def parts(run: Run, printed: str) -> list[str]:
    """What was printed between the prompts."""
    first, *rest = printed.split("> ")
    assert first.startswith(f"chat       {run.name}; /tuned and /base choose the model")
    return [part.rpartition("\n")[0] for part in rest]


def answer(run: Run, question: str, *, base: bool = False) -> str:
    """What the model generates for a question, by the code that evaluates it."""
    recipe = yaml.safe_load(run.recipe.read_text())
    from sft_recipes.evaluate import scoring

    model, tokenizer = scoring.load(recipe, None if base else run.adapter, on_cpu=True, tokenizer=run.adapter)
    (output,) = scoring.generate(model, tokenizer, [[{"role": "user", "content": question}]], 12)
    return output[0]["text"]


@pytest.mark.parametrize("whole", [False, True])
def test_the_adapter_is_switched_off_and_on_and_the_base_of_a_whole_model_is_loaded(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, whole: bool
) -> None:
    every_weight = {"use_peft": False, "lora_target_modules": None, "learning_rate": 5e-3}
    run = finished("whole", **TALKS | every_weight) if whole else finished("talks", **TALKS)
    tuned, base = answer(run, "red cat"), answer(run, "red cat", base=True)
    assert tuned != base
    monkeypatch.setattr(sys, "stdin", io.StringIO("red cat\n/nonsense\n\n/reset\n/tuned\nred cat\n"))
    chat.main(run, "base")
    told = [part for part in parts(run, capsys.readouterr().out) if part]
    assert told[0] == base and told[2:] == [tuned]
    assert told[1].startswith("commands   /tuned and /base")


@pytest.mark.usefixtures("forks")
def test_a_conversation_is_kept_until_it_is_reset(finished: Finished) -> None:
    """Shown by its length: two such questions are more than the model reads."""
    run = finished("talks", **TALKS)
    long = "red cat " * 100
    heard = through_a_pipe(run, long, long, "/reset", long)
    assert heard[0] == heard[3] == answer(run, long.strip())
    assert "the model reads 512; /reset forgets what was said" in heard[1]


@pytest.mark.promise("hostile", "a model that answers with escape codes")
def test_what_would_move_the_cursor_is_written_out(finished: Finished, capsys: pytest.CaptureFixture) -> None:
    run = finished("talks", **TALKS)
    from sft_recipes.evaluate import scoring

    model, tokenizer = scoring.load(yaml.safe_load(run.recipe.read_text()), run.adapter, on_cpu=True)
    escape = tokenizer("\x1b[2J", add_special_tokens=False)["input_ids"][0]
    model.generation_config.suppress_tokens = [token for token in range(len(tokenizer)) if token != escape]
    assert chat.stream(model, tokenizer, "red", 3) == "\x1b" * 3
    assert capsys.readouterr().out == "\\x1b\\x1b\\x1b\n"


def test_a_damaged_adapter_does_not_speak(finished: Finished) -> None:
    run = finished("talks", **TALKS)
    Path(run.adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json has 2 bytes instead of"):
        chat.chat("talks")
