"""Talk to a run's model in the terminal, with the adapter on or off.

The model is in a process of its own, `python -m sft_recipes.deploy.chat RUN`, which reads the lines itself.
"""

import contextlib
import functools
import readline  # noqa: F401, input() then edits lines
import subprocess
import sys
from pathlib import Path
from typing import Any

from sft_recipes.environment import quiet, quiet_environment
from sft_recipes.errors import refuse
from sft_recipes.recipes import topology
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage
from sft_recipes.terminal import say, visible

MAX_NEW_TOKENS = 512
_HELP = "/tuned and /base choose the model, /reset forgets the conversation, Ctrl-D ends"


def chat(name: str, *, base: bool = False) -> int:
    """Talk until the input ends; gives the process's exit code.

    Raises:
        InputError: There is no such run, or its adapter is not what was trained.
    """
    run = Run.open(name)
    refuse([adapter_damage(run)])
    identity.check(run)
    on_cpu = topology.no_gpu()
    command = [sys.executable, "-m", "sft_recipes.deploy.chat", str(run.directory), "base" if base else "tuned"]
    process = subprocess.Popen(command, env=quiet_environment(on_cpu=on_cpu))
    while True:
        # Ctrl-C is for the process: it ends an answer.
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()


def main(run: Run, role: str) -> None:
    """Read lines and stream answers, of the role `tuned` or `base`."""
    quiet()
    import torch

    from sft_recipes.evaluate import scoring

    facts, recipe = run.facts(), run.values()
    load = functools.partial(scoring.load, recipe, on_cpu=not torch.cuda.is_available())
    tuned, tokenizer = load(run.adapter)
    # Where the whole model was trained, its base is another one, loaded if it is asked for.
    base = functools.cache(lambda: load(None, tokenizer=run.adapter)[0])
    say("chat", f"{run.name}; {_HELP}")
    turns: list[dict[str, str]] = []
    while True:
        try:
            line = input(f"{role}> ").encode("utf-8", "replace").decode().strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line in ("/base", "/tuned"):
            role = line[1:]
        elif line == "/reset":
            turns = []
        elif line.startswith("/"):
            say("commands", _HELP)
        elif line:
            asked = [*turns, {"role": "user", "content": line}] if facts["data"]["conversational"] else line
            without = role == "base" and recipe.get("use_peft")
            with tuned.disable_adapter() if without else contextlib.nullcontext():
                model = base() if role == "base" and not without else tuned
                answer = stream(model, tokenizer, asked, facts["own"].get("max_new_tokens") or MAX_NEW_TOKENS)
            if isinstance(asked, list) and answer is not None:
                turns = [*asked, {"role": "assistant", "content": answer}]


def stream(model: Any, tokenizer: Any, prompt: str | list[dict[str, str]], most: int) -> str | None:
    """Print the greedy answer as it comes, and give it; None where Ctrl-C ends it, or there is no room for one."""
    import torch
    from transformers import TextStreamer

    class Visible(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print("\n".join(map(visible, text.split("\n"))), end="\n" if stream_end else "", flush=True)

    if isinstance(prompt, str):
        inputs = tokenizer(prompt, return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    length, room = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
    if room and length >= room:
        say("too long", f"{length:,} tokens, and the model reads {room:,}; /reset forgets what was said")
        return None
    shown = Visible(tokenizer, skip_prompt=True, skip_special_tokens=True)
    most = min(most, room - length) if room else most
    try:
        with torch.inference_mode():
            output = model.generate(**inputs.to(model.device), max_new_tokens=most, streamer=shown)
    except KeyboardInterrupt:
        print()
        return None
    return tokenizer.decode(output[0, length:], skip_special_tokens=True)


if __name__ == "__main__":
    main(Run(Path(sys.argv[1])), sys.argv[2])
