"""The model card: README.md beside the adapter or the merged model, from the run directory and nothing else.

Paths of this machine are left out of it, because a card is published with the weights.
"""

import html
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sft_recipes.files import write_whole
from sft_recipes.models import base_model
from sft_recipes.recipes import schema
from sft_recipes.runs.run import Run
from sft_recipes.terminal import count, duration, visible

Facts = dict[str, Any]

CARD = "README.md"
# Keys of a recipe that say where files lie, not what was learned.
_PLACES = {
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "train_file",
    "validation_file",
    "test_file",
    "json_schema",
    "output_dir",
    "run_name",
    "report_to",
}


def write(run: Run) -> None:
    """Replace the card in the adapter's directory; upstream leaves one of its own there, with gaps."""
    write_whole(run.adapter / CARD, card(run))


def card(run: Run, proof: Facts | None = None) -> str:
    """The card of what training saved, or of the merged model if the proof of its merge is given."""
    from huggingface_hub import ModelCardData

    facts, recipe = run.facts(), yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    adapter = bool(recipe.get("use_peft")) and proof is None
    base, dataset = hub_id(recipe["model_name_or_path"]), hub_id(facts["data"]["source"]["dataset_name"])
    four_bit = recipe.get("load_in_4bit") and recipe.get("use_peft")
    header = ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["sft", "trl", *(["qlora" if four_bit else "lora"] if recipe.get("use_peft") else [])],
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        "\n\n".join(what(run, facts, recipe, proof)),
        f"## How to load\n\n```python\n{loading(recipe, facts, adapter=adapter)}```",
        "## Evaluation\n\n" + "\n\n".join(evaluation(run, facts)),
        "## Limits\n\n" + "\n".join(f"- {each}" for each in limits(run, facts, recipe)),
        "## Data\n\n" + "\n".join(f"- {each}" for each in data(facts, dataset)),
        "## Training\n\n" + "\n".join(f"- {each}" for each in training(facts)),
        f"<details><summary>Recipe</summary>\n\n```yaml\n{settings(recipe, facts)}```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def hub_id(name: str | None) -> str | None:
    """The name if it is one on the Hub, None for a directory or file of this machine."""
    if name is None or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) or Path(name).exists():
        return None
    return name


def what(run: Run, facts: Facts, recipe: Facts, proof: Facts | None) -> Iterator[str]:
    """Title and first sentences: what the files are, and what they are not."""
    yield f"# {run.name}"
    base = hub_id(recipe["model_name_or_path"])
    named = f"[{base}](https://huggingface.co/{base})" if base else "a local model"
    revision = recipe.get("model_revision", "main")
    if base:
        named += f" (revision {revision})"
    if proof:
        yield (
            f"{named[0].upper()}{named[1:]} with the LoRA adapter of the run {run.name} merged into its "
            f"{proof['dtype']} weights. On {count(proof['answer_tokens'], 'answer token')} of "
            f"{count(proof['rows'], 'held-out row')} the merged files differ from base and adapter by "
            f"{proof['kl']:.2g} nats (Kullback-Leibler divergence) and agree on {proof['top1']:.1%} of the "
            "most likely tokens."
        )
    elif recipe.get("use_peft"):
        kind = "QLoRA" if recipe.get("load_in_4bit") else "LoRA"
        yield f"A {kind} adapter (r={recipe['lora_r']}, alpha={recipe['lora_alpha']}) for {named}."
    else:
        yield f"All weights of {named}, fine-tuned."
    if facts["own"]["description"]:
        yield f"Recipe {facts['recipe']}: {plain(facts['own']['description'])}"


def loading(recipe: Facts, facts: Facts, *, adapter: bool) -> str:
    """Python that loads the files in the precision they were trained in, and answers one prompt."""
    quantised = adapter and (recipe.get("load_in_4bit") or recipe.get("load_in_8bit"))
    stored = base_model.described_quantisation(recipe) if adapter else {}
    base = hub_id(recipe["model_name_or_path"]) or "PATH OF THE BASE MODEL"
    names = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if quantised else [])]
    dtype = recipe.get("dtype", "float32")
    lines = [*(["from peft import PeftModel"] if adapter else []), f"from transformers import {', '.join(names)}"]
    lines += [*(["from transformers.quantizers import AutoQuantizationConfig"] if stored else []), ""]
    lines.append('here = "PATH OR HUB ID OF THIS DIRECTORY"')
    lines.append("tokenizer = AutoTokenizer.from_pretrained(here)")
    if recipe.get("load_in_4bit") and adapter:
        lines += [
            "quantization = BitsAndBytesConfig(",
            "    load_in_4bit=True,",
            f'    bnb_4bit_quant_type="{recipe.get("bnb_4bit_quant_type", "nf4")}",',
            f"    bnb_4bit_use_double_quant={bool(recipe.get('use_bnb_nested_quant'))},",
            f'    bnb_4bit_compute_dtype="{dtype}",',
            ")",
        ]
    elif quantised:
        lines.append("quantization = BitsAndBytesConfig(load_in_8bit=True)")
    elif stored:
        # The class is that of the method, as in training: Mxfp4Config for mxfp4.
        lines.append(f"quantization = AutoQuantizationConfig.from_dict({stored!r})")
    arguments = [f'"{base}"' if adapter else "here", f'dtype="{dtype}"', 'device_map="auto"']
    if adapter and hub_id(recipe["model_name_or_path"]):
        arguments.insert(1, f'revision="{recipe.get("model_revision", "main")}"')
    if recipe.get("attn_implementation") == "eager":
        arguments.append('attn_implementation="eager"')
    if adapter:
        further = base_model.further_arguments(recipe)
        arguments += [f"{key}={public(key, value)!r}" for key, value in further.items()]
    if quantised or stored:
        arguments.append("quantization_config=quantization")
    lines += ["model = AutoModelForCausalLM.from_pretrained(", *(f"    {each}," for each in arguments), ")"]
    if adapter:
        lines.append("model = PeftModel.from_pretrained(model, here)")
    if facts["data"]["conversational"]:
        lines += [
            'turns = [{"role": "user", "content": "..."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ").to(model.device)",
        ]
    else:
        lines.append('inputs = tokenizer("...", return_tensors="pt").to(model.device)')
    lines.append("output = model.generate(**inputs, max_new_tokens=64, do_sample=False)")
    lines.append('print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))')
    return "\n".join(lines) + "\n"


def evaluation(run: Run, facts: Facts) -> Iterator[str]:
    """The metrics of metrics.json with their intervals, beside those of the base and of trivial predictors."""
    metrics = metrics_of(run)
    if metrics is None:
        yield "Not evaluated; nothing is known of how well it answers."
        losses = (facts.get("measured") or {}).get("eval_loss")
        if losses:
            each = ", ".join(f"{loss['eval_loss']:.4f} at step {loss['step']}" for loss in losses)
            yield f"Loss on held-out rows: {each}."
        return
    from sft_recipes.evaluate.evaluate import estimate
    from sft_recipes.report.quality import METRICS, NAMES

    yield f"Verdict: {plain(metrics['verdict']['text'])}."
    yield (
        f"On {count(metrics['scored'], 'row')} of the {metrics['split']} split, without the {metrics['leaked']:,} "
        f"that are training rows too; predicted by {metrics['predict_by']}. In brackets "
        f"{100 * metrics['confidence']:g} % intervals."
    )
    scored = {**metrics["models"], **{name: M for name, M in metrics["baselines"].items() if name in NAMES}}
    names = [name for name in METRICS if any(model.get(name) for model in scored.values())]
    yield table(
        ["", *(NAMES[model] for model in scored)],
        [[METRICS[name], *(estimate(model.get(name)) for model in scored.values())] for name in names],
    )
    if groups := metrics["groups"]:
        some = next(iter(groups["by"].values()))
        sides = [(model, name) for name in METRICS for model in metrics["models"] if name in some.get(model, {})]
        yield f"By {plain(groups['column'])}; groups of fewer than {groups['minimum']} rows say little."
        yield table(
            ["", "rows", *(f"{METRICS[name]}, {model}" for model, name in sides)],
            [
                [plain(group), f"{by['n']:,}", *(estimate(by.get(model, {}).get(name)) for model, name in sides)]
                for group, by in groups["by"].items()
            ],
        )


def metrics_of(run: Run) -> Facts | None:
    """What the last evaluation found, on the test rows or where there are none on the validation rows; or None."""
    path = next((path for split in ("test", "validation") if (path := run.metrics(split)).is_file()), None)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def limits(run: Run, facts: Facts, recipe: Facts) -> Iterator[str]:
    """What was not looked at, which is most of what matters before anybody relies on a model."""
    metrics = metrics_of(run)
    if metrics:
        yield (
            f"The figures come from {count(metrics['scored'], 'row')} of one source. Other sources, and inputs "
            "written to mislead, were not tried."
        )
        if metrics["verdict"]["reasons"]:
            yield "On the verdict: " + "; ".join(plain(each) for each in metrics["verdict"]["reasons"])
    yield "No evaluation of safety, bias or privacy was made, and nothing was filtered from the answers."
    yield "The languages of the data were not recorded, nor whether the base was pretrained on the same texts."
    effect = facts.get("in_effect", {}).get("data", {})
    if effect.get("rows_cut") or effect.get("rows_lost"):
        yield (
            f"At max_length {recipe['max_length']}, {count(effect['rows_cut'], 'training answer')} were cut short and "
            f"{count(effect['rows_lost'], 'row')} left out."
        )
    yield "No licence is stated here. Those of the base and of the data hold."


def data(facts: Facts, dataset: str | None) -> Iterator[str]:
    """Rows and checksums, so that whoever has the data can tell that they are the same."""
    if dataset:
        yield f"[{dataset}](https://huggingface.co/datasets/{dataset})"
    for split, of in facts["data"]["splits"].items():
        yield f"{split}: {count(of['prepared_rows'], 'row')}, SHA-256 of the source {of['sha256']}"
    yield f"format {facts['data']['format']}; fingerprint of content and preparation {facts['data']['fingerprint']}"


def training(facts: Facts) -> Iterator[str]:
    """How it was trained: command, hardware, versions, commit."""
    changed = [
        f"{key}={schema.as_yaml(public(key, value))}"
        for key, value in facts["overrides"].items()
        if key not in _PLACES
    ]
    setting = f" SET={shlex.quote(' '.join(map(shlex.quote, changed)))}" if changed else ""
    yield f"`make train RECIPE={facts['recipe']} ACCEL={facts['topology']['name']}{setting}`"
    measured = facts.get("measured") or {}
    if measured:
        yield f"{count(measured['step'], 'optimizer step')} in {duration(measured['training_seconds'])}"
    gpus = sorted({gpu.split(",")[0] for gpu in facts["gpus"]})
    where = "CPU" if facts["topology"]["use_cpu"] else " and ".join(gpus)
    yield f"{count(facts['topology']['processes'], 'process')} on {where}, {facts['topology']['backend']}"
    yield ", ".join(f"{name} {version}" for name, version in {"python": facts["python"], **facts["versions"]}.items())
    if facts["git"] and facts["git"]["commit"]:
        yield f"commit {facts['git']['commit']}{', with changes' if facts['git']['dirty'] else ''}"


def settings(recipe: Facts, facts: Facts) -> str:
    """The resolved recipe without what says where files lie."""
    own = {key: value for key, value in facts["own"].items() if value is not None and key != "description"}
    kept = {key: public(key, value) for key, value in {**recipe, **own}.items() if key not in _PLACES}
    return "".join(f"{key}: {schema.as_yaml(value)}\n" for key, value in kept.items())


def public(key: str, value: Any) -> Any:
    """A key's value, or `(local)` for what lies on this machine."""
    if isinstance(value, dict):
        return {each: public(each, held) for each, held in value.items()}
    if isinstance(value, list):
        return [public(key, held) for held in value]
    if key == "model_name_or_path":
        return hub_id(value) or "(local)"
    if isinstance(value, str) and (
        value.startswith(("/", "./", "../", "~")) or ("/" in value and Path(value).exists())
    ):
        return "(local)"
    return value


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text of a recipe or of rows as one line of Markdown that is text and nothing else."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(visible(text.replace("\n", " ")), quote=False))
