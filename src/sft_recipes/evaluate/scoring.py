"""The base, an earlier and the tuned model on the same rows: how likely each answer is, or what they generate.

It needs torch, so it is a process of its own: `python -m sft_recipes.evaluate.scoring_process WORKDIR` reads
`job.json` and `rows.jsonl`, appends to `outputs.jsonl`, so that an interrupted evaluation goes on where it stopped,
and ends with `measured.json`, or with `answer.json` for what is wrong with the input.
"""

import contextlib
import gc
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, HfArgumentParser
from trl import ModelConfig, get_quantization_config
from trl.trainer.utils import create_model_from_path

from sft_recipes.children import peak_resident
from sft_recipes.data import templates, tokens
from sft_recipes.errors import InputError
from sft_recipes.evaluate.likelihood import BATCH_TOKENS, Candidates, Prompt, candidates, in_batches, likelihoods
from sft_recipes.files import write_whole
from sft_recipes.models import base_model
from sft_recipes.models.loading import (
    can_merge,
    keep_four_bit,
    made_whole,
    offloaded,
    put_adapter,
    stored_quantisation,
)
from sft_recipes.recipes import topology
from sft_recipes.terminal import counting_rows, say_error

WRONG_INPUT, INTERRUPTED = 2, 3


def load(
    recipe: Mapping[str, Any], tuned: Path | None, *, on_cpu: bool, tokenizer: Path | None = None, whole: bool = False
) -> tuple[Any, Any]:
    """A run's model and tokenizer, in the precision and quantisation of its recipe.

    The model's `generation_config` is greedy and stops at the tokenizer's end token, at those of the model's own
    generation config, and at the one that ends an answer in the chat template.

    Args:
        recipe: The resolved recipe, upstream's keys alone.
        tuned: What training saved: with `use_peft` the adapter, which goes on the base model, or the whole model. None
            for the base model.
        on_cpu: Rather than on the GPUs that there are.
        tokenizer: Where the tokenizer is, if not in `tuned` or with the base model.
        whole: Whether weights of 4 bit may be dequantised once on a CPU, for the same numbers in less time.

    Raises:
        InputError: Something of it cannot be loaded, or is not whole.
    """
    (config,) = HfArgumentParser(ModelConfig).parse_dict(dict(recipe), allow_extra_keys=True)
    adapter = tuned if recipe.get("use_peft") else None
    base = tuned is None or adapter is not None
    path = config.model_name_or_path if base else str(tuned)
    revision = {"revision": config.model_revision} if base else {}
    with _input_to_blame(path):
        # SFTTrainer's own way, which takes the class that the model's config names.
        model, found = create_model_from_path(
            path,
            **revision,
            **(base_model.further_arguments(recipe) if base else {}),
            dtype=config.dtype,
            # Whatever training used: masks that are not causal need sdpa, the default, or eager where a recipe asks
            # for it or a model has no other.
            attn_implementation="eager" if config.attn_implementation == "eager" else None,
            # What training saved whole is as it was trained.
            quantization_config=(stored_quantisation(recipe) if base else None) or get_quantization_config(config),
            device_map={"": "cpu"} if on_cpu else "auto",
            trust_remote_code=False,
            output_loading_info=True,
        )
        if found["missing_keys"]:
            # Upstream makes them up.
            raise ValueError(f"its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    if not on_cpu and (where := offloaded(model)):
        raise InputError(
            f"{path} does not fit: {where}. Free the GPU of other processes, or set CUDA_VISIBLE_DEVICES= to compute "
            "on the CPU"
        )
    if not on_cpu and model.device.type == "cpu":
        raise InputError(topology.UNSEEN_GPU)
    keep_four_bit(model)
    if whole and on_cpu:
        model = made_whole(model)
    source = tokenizer or tuned
    with _input_to_blame(f"the tokenizer of {source or path}"):
        # Said, because upstream asks on the terminal otherwise.
        kwargs = {"trust_remote_code": False} | ({} if source else revision)
        words = AutoTokenizer.from_pretrained(str(source or path), **kwargs)
    if len(words) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer of {source or path} has tokens that {path} has no embeddings for, as added where "
            "chat_template_path is a model: set it to a .jinja file and train again"
        )
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=tokens.stops(words, ends if isinstance(ends, list) else [ends]),
        pad_token_id=words.pad_token_id or 0,
    )
    if adapter is not None:
        with _input_to_blame(str(adapter)), warnings.catch_warnings():
            trained_on = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
            if trained_on != path:
                raise ValueError(f"it was trained on {trained_on}, and the recipe names {path}")
            # What the file lacks would stay as it was drawn.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), words


def each_model(
    recipe: Mapping[str, Any], tuned: Path, names: Sequence[str], *, on_cpu: bool, earlier: Path | None = None
) -> Iterator[tuple[str, Any, Any]]:
    """(name, model, tokenizer) for each of "base", "earlier" and "tuned"; let go of a model before taking the next.

    An adapter is switched off for the base model, and another one on for the `earlier` one, which the tuned one was
    continued from; two whole models are loaded one after the other. On a CPU in float32 an adapter is merged into the
    weights as long as it is on.
    """
    if recipe.get("use_peft"):
        model, tokenizer = load(recipe, tuned, on_cpu=on_cpu, whole=True)
        if earlier:
            put_adapter(model, earlier, "earlier")
        merges = on_cpu and can_merge(model)
        for name in names:
            model.set_adapter("earlier" if name == "earlier" else "default", inference_mode=True)
            if name == "base":
                with model.disable_adapter():
                    yield name, model, tokenizer
                continue
            if merges:
                model.merge_adapter()
            yield name, model, tokenizer
            if merges:
                model.unmerge_adapter()
        return
    for name in names:
        yield name, *load(recipe, tuned if name == "tuned" else None, on_cpu=on_cpu, tokenizer=tuned, whole=True)
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _input_to_blame(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what} cannot be loaded: {reason}. Where memory is short, free some; otherwise put back what the run "
            "had, or train again"
        ) from error


@torch.inference_mode()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int
) -> Iterator[dict[int, dict[str, Any]]]:
    """Greedy answers, by transformers' own `generate`.

    Yields:
        Prompt number to `text` (without special tokens), `tokens` (the stop token included) and whether it `finished`
        with a stop token, a batch at a time; prompts of like length share one.
    """
    if isinstance(prompts[0], str):
        every = tokenizer(list(prompts))["input_ids"]
    else:
        turns = [prompt for prompt in prompts if not isinstance(prompt, str)]
        every = templates.encoded(tokenizer, turns, add_generation_prompt=True)["input_ids"]
    stops = model.generation_config.eos_token_id

    def answer(batch: list[int]) -> dict[int, dict[str, Any]]:
        width = max(len(every[number]) for number in batch)
        padding = [width - len(every[number]) for number in batch]
        ids = [[0] * pad + every[number] for pad, number in zip(padding, batch, strict=True)]
        answers = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device),
            max_new_tokens=max_new_tokens,
        )[:, width:].tolist()
        return {number: read(tokens) for number, tokens in zip(batch, answers, strict=True)}

    def read(tokens: list[int]) -> dict[str, Any]:
        end = next((place for place, token in enumerate(tokens) if token in stops), None)
        text = tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return {"text": text, "tokens": len(tokens) if end is None else end + 1, "finished": end is not None}

    yield from in_batches({n: len(ids) + max_new_tokens for n, ids in enumerate(every)}, BATCH_TOKENS, answer)


def run(workdir: Path) -> None:
    """Do what of a job is not done yet.

    Raises:
        InputError: The models or the labels are not fit for it.
    """
    job = json.loads((workdir / "job.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (workdir / "rows.jsonl").read_bytes().splitlines()]
    done = _done(workdir / "outputs.jsonl")
    left = {name: [row for row in rows if (row["row"], name) not in done] for name in job["models"]}
    names = [name for name in job["models"] if left[name]]
    if not names and (workdir / "measured.json").exists():
        return
    device, load_seconds = None, 0.0
    measured: dict[str, dict[str, float]] = {}
    known: dict[Any, list[Candidates]] = {}
    clock = time.perf_counter()
    with (workdir / "outputs.jsonl").open("a", encoding="utf-8") as file:
        earlier = Path(job["earlier"]) if job.get("earlier") else None
        models = each_model(job["recipe"], Path(job["tuned"]), names, on_cpu=job["on_cpu"], earlier=earlier)
        for name, model, tokenizer in models:
            began = time.perf_counter()
            load_seconds += began - clock
            device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
            written = generated = 0
            with counting_rows(name, len(left[name])) as show:
                for batch in _outputs(job, model, tokenizer, [row["prompt"] for row in left[name]], known):
                    for number, output in batch.items():
                        line = {"row": left[name][number]["row"], "model": name, **output}
                        file.write(json.dumps(line) + "\n")
                    file.flush()
                    written += len(batch)
                    generated += sum(output.get("tokens", 0) for output in batch.values())
                    show(written)
            clock = time.perf_counter()
            seconds = clock - began
            measured[name] = {"rows": written, "seconds": seconds, "rows_per_second": written / seconds}
            if generated:
                measured[name] |= {"tokens": generated, "tokens_per_second": generated / seconds}
            del model
    facts = {
        "device": device,
        "load_seconds": load_seconds,
        "peak_memory_bytes": _peak_memory(),
        "max_new_tokens": job["max_new_tokens"],
        "models": measured,
    }
    write_whole(workdir / "measured.json", json.dumps(facts, indent=2) + "\n")


def _done(outputs: Path) -> set[tuple[int, str]]:
    """(row, model) of what a file of outputs holds; a last line that was cut off is taken away."""
    text = outputs.read_bytes() if outputs.exists() else b""
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(outputs, len(whole))
    return {(output["row"], output["model"]) for output in map(json.loads, whole.splitlines())}


def _outputs(
    job: dict[str, Any], model: Any, tokenizer: Any, prompts: list[Prompt], known: dict[Any, list[Candidates]]
) -> Iterator[dict[int, Any]]:
    """What a job asks of its rows, by number, a batch at a time; sets the job's `max_new_tokens` if it is open.

    Args:
        known: What was tokenised so far, which base and tuned model share where they are one with an adapter.
    """
    if job["by"] == "likelihood":
        labels, answers = zip(*job["candidates"].items(), strict=True)
        key = (tokenizer, *model.generation_config.eos_token_id, *map(id, prompts))
        rows = known[key] = known.get(key) or candidates(model, tokenizer, prompts, answers)
        for batch in likelihoods(model, tokenizer, prompts, answers, rows):
            yield {n: {"log_likelihoods": dict(zip(labels, each, strict=True))} for n, each in batch.items()}
        return
    if job["max_new_tokens"] is None:
        lengths = [len(ids) + 1 for ids in tokenizer(job["longest_answers"], add_special_tokens=False)["input_ids"]]
        job["max_new_tokens"] = max(32, 2 * max(lengths))
    yield from generate(model, tokenizer, prompts, job["max_new_tokens"])


def _peak_memory() -> int:
    """Bytes that torch allocated on all GPUs, or the largest resident set of this process."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    return peak_resident()


def main(workdir: Path) -> int:
    """The process: its exit code is 0, 1 out of memory, 2 with `answer.json` for wrong input, 3 if interrupted."""
    try:
        run(workdir)
    except InputError as error:
        (workdir / "answer.json").write_text(json.dumps({"problems": error.problems}), encoding="utf-8")
        return WRONG_INPUT
    except torch.OutOfMemoryError as error:
        # Batches were halved down to one row by then.
        say_error(f"out of GPU memory: {error}; what was answered is kept")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
