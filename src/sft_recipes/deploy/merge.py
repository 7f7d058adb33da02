"""The adapter of a run added into its base's weights, and the proof that the files written compute the same.

The adding is PEFT's. It happens in a process of its own, `python -m sft_recipes.deploy.merge DIRECTORY`, on the
unquantised base, in the dtype that the recipe computes in: bfloat16 in every shipped recipe for a GPU. Adding a
float32 update to a bfloat16 weight rounds once; updates much smaller than the weight's last bit are lost by it, which
is why the result is measured and not assumed.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.data import templates
from sft_recipes.environment import quiet, quiet_environment
from sft_recipes.errors import InputError, refuse
from sft_recipes.files import difference, sealed, staged, taken, write_whole
from sft_recipes.launch import launch
from sft_recipes.models import base_model
from sft_recipes.report import card
from sft_recipes.runs import identity, provenance
from sft_recipes.runs.run import Run, adapter_damage, rehearsed
from sft_recipes.terminal import count, print_lines, say, say_error

Facts = dict[str, Any]

PROOF = "merge.json"
ROWS = 32
# Answer tokens of a row that are compared: 32 rows of them are 0.3 GB of float32 at a vocabulary of 150,000.
ANSWER_TOKENS = 16
ROW_TOKENS = 1024
SHARD = "5GB"

# Kullback-Leibler divergence (nats per answer token) and top-1 agreement that a merge must keep. Computed in float32
# from the stored weights, so that what is measured is the rounding of the weights and not of bfloat16 activations
# (which alone differ by 1e-3 nats from float32 ones). Measured so on a 135M-parameter Llama with rank 32 on queries
# and values: 7e-6 nats and 100 % as trained; 2e-2 and 91 % with the adapter scaled by 0.1, whose updates bfloat16
# mostly rounds away; 1e-1 and 78 % on the same base in NF4. A merge that lost the adapter loses all of its effect.
LIMITS = {"kl": 0.01, "top1": 0.95, "share_of_effect": 0.1}


def merge(name: str, out: Path | None = None, *, rows: int = ROWS) -> tuple[int, Facts]:
    """Write the base with the run's adapter merged into it, whole or not at all.

    Memory: the base's weights once, in the recipe's dtype, and beside them the widest layer in float32 and the
    distributions of the compared answers. Where the base was quantised, it is loaded so afterwards, as for training.

    Returns:
        The exit code (0, or 1 where merged and unmerged differ too much or the process failed; nothing is left then)
        and what is in merge.json.

    Raises:
        InputError: The run has no adapter to trust, its base or data are not there, or there is no room.
    """
    run, out, size = checked(name, out)
    split, chosen = excerpt(run, rows)
    with run.locked() as lock, staged(out.with_name(f".{out.name}.unfinished")) as staging:
        job = {"run": str(run.directory), "split": split, "rows": chosen, "bytes": size}
        (staging / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = quiet_environment(on_cpu=run.facts()["topology"]["use_cpu"])
        command = [sys.executable, "-m", "sft_recipes.deploy.merge", str(staging)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, pass_fds=(lock,))
        if done.returncode or not (staging / PROOF).is_file():
            say_error(f"not merged: {children.reason(done)}")
            return launch.FAILED, {}
        proof = json.loads((staging / PROOF).read_text(encoding="utf-8"))
        if proof.get("problems"):
            raise InputError(*proof["problems"])
        if proof["refused"]:
            say_error(f"not merged: {proof['refused']}")
            return launch.FAILED, proof
        card.write_beside(staging, run, proof)
        staging.rename(out)
        run.update(merged={"directory": str(out), **proof})
    print_lines(render(out, proof))
    return launch.FINISHED, proof


def render(out: Path, proof: Facts) -> Iterator[tuple[str, str]]:
    """What was merged and how far it is from what was trained, as (subject, text)."""
    size = sum(file["bytes"] for file in proof["files"].values())
    yield "merged", f"{out}, {size / 1e6:,.0f} MB in {proof['dtype']}"
    over = f"{count(proof['answer_tokens'], 'answer token')} of {count(proof['rows'], proof['split'] + ' row')}"
    yield (
        "proof",
        f"merged from base and adapter: {apart(proof)}, over {over}\n"
        f"base and adapter from the base alone: {apart(proof['effect'])}",
    )
    if proof["quantised"]:
        yield "quantised", f"base and adapter as trained, on quantised weights: {apart(proof['quantised'])}"


def apart(compared: Facts) -> str:
    """How far two models are from each other, in words."""
    return f"{compared['kl']:.2g} nats a token, the same most likely token in {compared['top1']:.1%}"


def checked(name: str, out: Path | None) -> tuple[Run, Path, int]:
    """The run, where its merged model goes, and how many bytes that will have.

    Raises:
        InputError: With everything that stands in the way.
    """
    run = Run.open(name)
    recipe, out = run.values(), out or run.directory / "merged"
    damage = adapter_damage(run)
    if not recipe.get("use_peft"):
        damage = f"{run.directory} trained the whole model and has nothing to merge; {run.adapter} is that model"
    refuse([rehearsed(run), damage, taken(out)])
    identity.check(run)
    base = base_model.find(recipe["model_name_or_path"], recipe.get("model_revision", "main"))
    if base is None:
        raise InputError(
            f"the base model {recipe['model_name_or_path']} is not on this machine any more; put it back, or fetch it "
            f"with: hf download {recipe['model_name_or_path']}"
        )
    if base.config.get("quantization_config") and not base_model.dequantised(recipe):
        raise InputError(
            f"{base.name} is stored quantised, and nothing is merged into rounded weights; use base and adapter as "
            "they are, or train on the weights made whole, with dequantize: true in the quantization_config of "
            "model_init_kwargs, where its method can"
        )
    size = base.elements() * (4 if recipe.get("dtype", "float32") == "float32" else 2)
    free = shutil.disk_usage(out.absolute().parent).free
    if free < 1.02 * size:
        raise InputError(
            f"{out}: the merged model takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, or name "
            "an OUT= on another disk"
        )
    return run, out, size


def whole(run: Run) -> tuple[Path, str | None]:
    """Where the whole model of a run lies, merged or trained whole; and what is wrong with it, with a remedy."""
    return product(run) if run.values().get("use_peft") else (run.adapter, adapter_damage(run))


def product(run: Run) -> tuple[Path, str | None]:
    """Where the merged model of a run lies; and what is wrong with it, with a remedy."""
    facts = run.facts()
    if not run.values().get("use_peft"):
        return run.directory, f"{run.directory} trained the whole model and has nothing merged; leave out MERGED=1"
    if "merged" not in facts:
        return run.directory, f"{run.directory} has no merged model; make one with: make merge RUN={run.name}"
    directory = Path(facts["merged"]["directory"])
    damage = difference(directory, facts["merged"]["files"])
    return directory, damage and f"{directory} is not what was merged: {damage}; delete it and merge again"


def excerpt(run: Run, rows: int) -> tuple[str, list[Facts]]:
    """A split of a run that was held out, where there is one, and rows of it, the same ones whenever it is asked."""
    prepared = identity.training_rows(run, run.facts())
    split = next(split for split in ("test", "validation", "train") if split in prepared.splits)
    total = prepared.splits[split]["prepared_rows"]
    numbers = set(random.Random(0).sample(range(total), min(rows, total)))  # noqa: S311, a choice of rows
    with (prepared.directory / f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        return split, [json.loads(line) for number, line in enumerate(lines) if number in numbers]


def main(directory: Path) -> None:
    """The process with torch in it: `job.json` to the merged model and `merge.json`, in the same directory."""
    quiet()
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    (directory / "job.json").unlink()
    try:
        proof = merged(Run(Path(job["run"])), job, directory)
    except InputError as error:
        proof = {"problems": error.problems}
    write_whole(directory / PROOF, json.dumps(proof, indent=2) + "\n")


def merged(run: Run, job: Facts, directory: Path) -> Facts:
    """Merge, write, read back what was written, and compare it with base and adapter."""
    import torch

    from sft_recipes.evaluate import scoring

    facts, recipe = run.facts(), run.values()
    on_cpu = not (torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.5 * job["bytes"])
    unquantised = {**recipe, "load_in_4bit": False, "load_in_8bit": False}
    say("merging", f"{run.adapter} into {recipe['model_name_or_path']}, {job['bytes'] / 1e6:,.0f} MB of weights")
    both, tokenizer = scoring.load(unquantised, run.adapter, on_cpu=on_cpu)
    commit, dtype = getattr(both.config, "_commit_hash", None), str(both.dtype).removeprefix("torch.")
    rows = [tokens(tokenizer, row) for row in job["rows"]]
    with computing_in_float32():
        expected = log_probabilities(both, rows)
        with both.disable_adapter():
            effect = divergence(expected, log_probabilities(both, rows))
    model = both.merge_and_unload()
    # Upstream would save weights that were made whole under their quantised names, by which nothing can read them.
    model.save_pretrained(directory, max_shard_size=SHARD, save_original_format=not base_model.dequantised(recipe))
    tokenizer.save_pretrained(directory)
    del both, model
    written, _ = scoring.load({**unquantised, "use_peft": False}, directory, on_cpu=on_cpu)
    with computing_in_float32():
        compared = divergence(expected, log_probabilities(written, rows))
    del written
    quantised = None
    if recipe.get("load_in_4bit") or recipe.get("load_in_8bit"):
        as_trained, _ = scoring.load(recipe, run.adapter, on_cpu=on_cpu)
        quantised = divergence(expected, log_probabilities(as_trained, rows))
    return {
        "schema": 1,
        "run": run.name,
        "base": recipe["model_name_or_path"],
        "revision": recipe.get("model_revision", "main"),
        "commit": commit,
        "dtype": dtype,
        "adapter_sha256": facts["measured"]["saved"]["adapter_model.safetensors"]["sha256"],
        "split": job["split"],
        "rows": len(rows),
        **compared,
        "effect": effect,
        "quantised": quantised,
        "limits": LIMITS,
        "refused": refusal(compared, effect),
        "files": sealed(directory, besides="README.md"),
        "versions": provenance.versions(),
        "peak_memory_bytes": children.peak_resident(),
    }


def tokens(tokenizer: Any, row: Facts) -> tuple[list[int], int]:
    """A row's tokens as far as they are compared, and where its (last) answer begins among them."""
    from trl import apply_chat_template

    if "messages" in row:
        last = max(index for index, turn in enumerate(row["messages"]) if turn["role"] == "assistant")
        row = {"prompt": row["messages"][:last], "completion": row["messages"][last : last + 1]}
    if isinstance(row["prompt"], list):
        turns = {key: templates.decoded(row[key], tokenizer.get_chat_template()) for key in ("prompt", "completion")}
        row = apply_chat_template({**row, **turns}, tokenizer, json.loads(row.get("tools") or "[]"))
    prompt = tokenizer(row["prompt"])["input_ids"]
    whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    kept = whole[: len(prompt) + ANSWER_TOKENS][-ROW_TOKENS:]
    answer = max(1, min(len(whole), len(prompt) + ANSWER_TOKENS) - len(prompt))
    return kept, len(kept) - answer


def log_probabilities(model: Any, rows: list[tuple[list[int], int]]) -> list[Any]:
    """For each row the log-probabilities before each of its answer tokens: (answer tokens, vocabulary), float32."""
    import torch

    found = []
    with torch.inference_mode():
        for ids, start in rows:
            answer = len(ids) - start
            ids_here = torch.tensor([ids], device=model.device)
            logits = model(input_ids=ids_here, logits_to_keep=answer + 1).logits[0, -answer - 1 : -1]
            found.append(logits.float().log_softmax(-1).cpu())
    return found


def divergence(expected: list[Any], found: list[Any]) -> Facts:
    """Kullback-Leibler divergence of `found` from `expected` in nats per answer token, and top-1 agreement."""
    import torch

    each = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(expected, found, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(expected, found, strict=True)])
    # Of equal distributions, float32 gives sums a little below zero.
    return {
        "answer_tokens": len(each),
        "kl": max(0.0, float(each.mean())),
        "kl_max": max(0.0, float(each.max())),
        "top1": float(same.float().mean()),
    }


def refusal(compared: Facts, effect: Facts) -> str | None:
    """Why the merged model is not base and adapter, or None; also where a figure is not a number."""
    share = compared["kl"] / effect["kl"] if effect["kl"] else 0.0
    if compared["kl"] <= LIMITS["kl"] and compared["top1"] >= LIMITS["top1"] and share <= LIMITS["share_of_effect"]:
        return None
    return (
        f"the merged model differs from base and adapter by {compared['kl']:.2g} nats per answer token (limit "
        f"{LIMITS['kl']:g}), {share:.0%} of what the adapter changes (limit {LIMITS['share_of_effect']:.0%}), and "
        f"agrees on {compared['top1']:.1%} of {compared['answer_tokens']} most likely tokens (limit "
        f"{LIMITS['top1']:.0%}). Either the updates are too small for the dtype of the weights, or the adapter is on "
        "a module that the base shares, such as an output layer tied to the embedding: use base and adapter apart"
    )


@contextmanager
def computing_in_float32() -> Iterator[None]:
    """Compute in float32 from weights that stay as they are stored; one matrix at a time is widened."""
    import torch
    from torch.overrides import TorchFunctionMode

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    class Widen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
            name = getattr(func, "__name__", "")
            # What works in place must get the tensor itself.
            if len({each.dtype for each in given if each.is_floating_point()}) > 1 and (
                not name.endswith("_") or "matmul" in name
            ):
                args, kwargs = [wide(each) for each in args], {key: wide(each) for key, each in kwargs.items()}
            result = func(*args, **kwargs)
            return wide(result) if func is torch.nn.functional.embedding else result

    with Widen():
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]))
